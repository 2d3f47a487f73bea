import time
from collections.abc import Callable

import pytest

from lbguard.affinity.names import IN_TABLE, AffinityOptions
from lbguard.affinity.trial import refusal
from lbguard.cli.host_check import check_host
from lbguard.core.addr import parse_prefix
from lbguard.core.model import StreamSpec
from lbguard.kernel.process import InstanceLock
from lbguard.kernel.requests import local_prefixes
from lbguard.lab.netns import Namespace
from lbguard.settings.model import load

pytestmark = pytest.mark.netns

NETWORK = {
    "ipv4_forwarding_off",
    "ipv6_forwarding_off",
    "strict_rp_filter",
    "ipv4_fwmark_reflect_off",
    "ipv6_fwmark_reflect_off",
    "another_instance",
}


def found(namespace: Namespace) -> set[str]:
    with namespace.entered():
        return {finding.id for finding in check_host(load().settings)} & NETWORK


def test_the_sysctls_of_a_namespace_are_read(namespace: Namespace) -> None:
    for key in ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"):
        namespace.sysctl(key, "0")
    for key in ("net.ipv4.fwmark_reflect", "net.ipv6.fwmark_reflect"):
        namespace.sysctl(key, "0")
    namespace.sysctl("net.ipv4.conf.all.rp_filter", "1")
    assert found(namespace) == NETWORK - {"another_instance"}
    for key in ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"):
        namespace.sysctl(key, "1")
    for key in ("net.ipv4.fwmark_reflect", "net.ipv6.fwmark_reflect"):
        namespace.sysctl(key, "1")
    namespace.sysctl("net.ipv4.conf.all.rp_filter", "2")
    assert found(namespace) == set()


def test_an_instance_is_seen_in_its_own_namespace_only(make_namespace: Callable[[str], Namespace]) -> None:
    here, there = make_namespace("here"), make_namespace("there")
    lock = InstanceLock()
    with here.entered():
        lock.acquire()
    try:
        assert "another_instance" in found(here)
        assert "another_instance" not in found(there)
    finally:
        lock.release()
    assert "another_instance" not in found(here)


def test_addresses_of_the_machine_itself_are_found(namespace: Namespace) -> None:
    namespace.add_addresses("lo", "20.0.0.1/32", "20.0.1.0/24", "2000::1/128")
    namespace.add_route("20.0.2.0/24", link="lo", kind="local")
    expected = {parse_prefix(text) for text in ("127.0.0.0/8", "20.0.0.1", "20.0.1.0/24", "20.0.2.0/24", "2000::1")}
    # IPv6 enters an address into the table of local routes a moment after it was added.
    with namespace.entered():
        deadline = time.monotonic() + 20
        while not expected <= (local := local_prefixes()):
            assert time.monotonic() < deadline, expected - local
            time.sleep(0.01)
    vips = tuple(map(parse_prefix, ("20.0.0.1", "20.0.1.7", "20.0.2.7", "20.0.3.7", "2000::1", "2000::2")))
    with namespace.entered():
        findings = check_host(load().settings, (StreamSpec(name="a", vips=vips),))
    told = " ".join(finding.what for finding in findings if finding.id == "vip_is_local")
    assert [str(vip) for vip in vips if f"VIP {vip} " in told] == [
        "20.0.0.1/32",
        "20.0.1.7/32",
        "20.0.2.7/32",
        "2000::1/128",
    ]


def test_a_local_table_of_many_addresses_is_read_whole(namespace: Namespace) -> None:
    namespace.add_addresses("lo", *(f"20.{n >> 8}.{n & 255}.1/32" for n in range(3000)))
    with namespace.entered():
        assert len([prefix for prefix in local_prefixes() if prefix.length == 32 and prefix.network[0] == 20]) == 3000


def test_the_rules_of_flow_affinity_are_tried_and_nothing_is_left(namespace: Namespace) -> None:
    options = AffinityOptions(udp=True)
    with namespace.entered():
        assert refusal(options) == ""
        # This kernel has no `queue` of nftables, as another one may lack what flow affinity needs.
        assert "No such file" in refusal(options, more=(f"add rule {IN_TABLE} prerouting queue num 3",))
    assert namespace.run("nft", "list", "ruleset") == ""
