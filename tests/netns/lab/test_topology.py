import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from lbguard.core.addr import parse_ip
from lbguard.lab.topology import Chain
from lbguard.sources.file import TargetsFile


@pytest.fixture
def chain(sandbox: None) -> Iterator[Chain]:
    with Chain() as made:
        yield made


def _talks(chain: Chain, identifier: int, *, family: socket.AddressFamily) -> None:
    """Send a datagram from the load balancer to a target's own address and back."""
    place = chain.place(identifier)
    address = place.ipv4 if family == socket.AF_INET else place.ipv6
    with chain.target(identifier).entered():
        there = socket.socket(family, socket.SOCK_DGRAM)
    with chain.lb.entered():
        here = socket.socket(family, socket.SOCK_DGRAM)
    with there, here:
        there.settimeout(10)
        here.settimeout(10)
        there.bind((address, 7))
        here.sendto(b"question", (address, 7))
        data, back = there.recvfrom(100)
        there.sendto(data[::-1], back)
        assert here.recv(100) == b"noitseuq"


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_the_load_balancer_reaches_every_target(chain: Chain, family: socket.AddressFamily) -> None:
    assert [(place.identifier, place.proxy) for place in chain.places] == [(1, 1), (2, 1), (3, 2), (4, 2)]
    for place in chain.places:
        _talks(chain, place.identifier, family=family)


def test_a_link_that_is_made_again_has_another_mac_and_name_and_works(chain: Chain) -> None:
    old = chain.lb.link(chain.lb_links[1])
    chain.delete_lb_link(1)
    assert old.name not in [link.name for link in chain.lb.links()]
    chain.create_lb_link(1)
    assert chain.lb_links[1] != old.name
    assert chain.lb.link(chain.lb_links[1]).mac != old.mac
    _talks(chain, 1, family=socket.AF_INET)
    _talks(chain, 1, family=socket.AF_INET6)


def test_a_second_link_stands_beside_the_first_until_it_is_deleted(chain: Chain) -> None:
    first = chain.lb_links[1]
    chain.create_lb_link(1)
    second = chain.lb_links[1]
    assert {address.link for address in chain.lb.addresses() if address.ip == "172.16.1.2"} == {first, second}
    chain.delete_superseded_link(1)
    links = [link.name for link in chain.lb.links()]
    assert first not in links
    assert second in links


def test_a_target_that_is_deaf_in_ipv6_still_talks_ipv4(chain: Chain) -> None:
    _talks(chain, 1, family=socket.AF_INET6)
    chain.block_target_ipv6(1)
    with chain.target(1).entered():
        there = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    with chain.lb.entered():
        here = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    with there, here:
        there.bind((chain.place(1).ipv6, 7))
        here.sendto(b"question", (chain.place(1).ipv6, 7))
        _talks(chain, 1, family=socket.AF_INET)
        there.setblocking(False)
        with pytest.raises(BlockingIOError):
            there.recv(100)
    chain.unblock_target_ipv6(1)
    _talks(chain, 1, family=socket.AF_INET6)


def test_the_targets_file_is_one_the_service_reads(chain: Chain, tmp_path: Path) -> None:
    path = tmp_path / "targets.yaml"
    chain.write_targets_file(path)
    (stream,) = TargetsFile(path).read()
    assert stream.mark(1) == 5001
    assert [target.ips for target in stream.targets] == [
        (parse_ip(place.ipv4), parse_ip(place.ipv6)) for place in chain.places
    ]


def test_closing_removes_every_namespace(sandbox: None) -> None:
    with Chain(proxies=2, targets_per_proxy=1) as chain:
        paths = [namespace.path for namespace in chain.namespaces()]
        assert len(paths) == 6
        assert all(path.exists() for path in paths)
    assert not any(path.exists() for path in paths)
