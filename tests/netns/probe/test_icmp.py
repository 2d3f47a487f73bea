import errno
import socket
import time
from collections.abc import Iterator

import pytest

from lbguard.core.addr import parse_ip
from lbguard.probe.connections import Pair
from lbguard.probe.icmp import SEND_BATCH, IcmpSocket, Reply
from tests.netns.probe.conftest import Ends

pytestmark = pytest.mark.netns


@pytest.fixture(params=["ipv4", "ipv6"])
def ipv4(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "ipv4")


@pytest.fixture(params=["raw", "ping"])
def sock(request: pytest.FixtureRequest, ends: Ends, ipv4: bool) -> Iterator[IcmpSocket]:
    if request.param == "ping":
        ends.near.sysctl("net.ipv4.ping_group_range", "0 2147483647")
    with ends.near.entered():
        made = IcmpSocket(ipv4=ipv4, raw=request.param == "raw")
    yield made
    made.close()


def pair(ends: Ends, ipv4: bool) -> Pair:
    return Pair(ends.ours[not ipv4], ends.theirs[not ipv4])


def replies(sock: IcmpSocket, count: int) -> list[Reply]:
    """Read until so many replies came."""
    got: list[Reply] = []
    deadline = time.monotonic() + 20
    while len(got) < count and time.monotonic() < deadline:
        got += sock.receive()
        time.sleep(0.005)
    assert len(got) == count
    return got


def test_a_batch_comes_back_with_tokens_sequence_and_time(ends: Ends, sock: IcmpSocket, ipv4: bool) -> None:
    slots = [sock.slot(pair(ends, ipv4), 0xFFFFFFF0 + n if n < 16 else n, 0) for n in range(SEND_BATCH)]
    assert sock.send([slot.message for slot in slots], 0xABCD) == []
    time.sleep(0.3)  # the replies wait, and their age shows it
    got = replies(sock, SEND_BATCH)
    assert {reply.token for reply in got} == {0xFFFFFFF0 + n for n in range(16)} | set(range(16, SEND_BATCH))
    assert {reply.sequence for reply in got} == {0xABCD}
    # The very first replies may carry the time of reading: the kernel turns stamping on a moment after it was asked to.
    assert sock.send([slots[0].message], 1) == []
    time.sleep(0.3)
    [reply] = replies(sock, 1)
    assert 0.25 < reply.age_s < 10


def test_each_message_names_its_source(ends: Ends, sock: IcmpSocket, ipv4: bool) -> None:
    second = "10.7.0.77" if ipv4 else "fd07::77"
    ends.near.add_addresses("eth0", f"{second}/{24 if ipv4 else 64}")
    if not ipv4 and not sock.raw:
        pytest.skip("IPv6 ping sockets let the kernel choose the source; raw ones are preferred")
    family = "ip" if ipv4 else "ip6"
    ends.drop(f"{family} saddr {second}")
    first_slot = sock.slot(pair(ends, ipv4), 1, 0)
    second_slot = sock.slot(Pair(parse_ip(second), ends.theirs[not ipv4]), 2, 0)
    assert sock.send([second_slot.message, first_slot.message], 5) == []
    assert [reply.token for reply in replies(sock, 1)] == [1]
    ends.pass_all()
    assert sock.send([second_slot.message], 6) == []
    assert [reply.token for reply in replies(sock, 1)] == [2]


def test_each_message_names_its_link(ends: Ends, sock: IcmpSocket, ipv4: bool) -> None:
    ends.near.add_link("other", "bridge")
    assert sock.ifindex("eth0") > 0
    assert sock.ifindex("other") not in (0, sock.ifindex("eth0"))
    assert sock.ifindex("missing") == 0
    right = sock.slot(pair(ends, ipv4), 2, sock.ifindex("eth0"))
    assert sock.send([right.message], 2) == []
    [reply] = replies(sock, 1)
    assert (reply.token, reply.ifindex) == (2, sock.ifindex("eth0"))
    # IPv6 may send it by the link that has a route after all; then the reply tells.
    right.set_ifindex(sock.ifindex("other"))
    sock.send([right.message], 3)
    right.set_ifindex(sock.ifindex("eth0"))
    assert sock.send([right.message], 4) == []
    deadline = time.monotonic() + 20
    got: list[Reply] = []
    while 4 not in {reply.sequence for reply in got} and time.monotonic() < deadline:
        got += sock.receive()
    assert {reply.ifindex for reply in got} == {sock.ifindex("eth0")}
    if ipv4:
        assert [reply.sequence for reply in got] == [4]


def test_the_better_kind_of_socket_is_taken(ends: Ends) -> None:
    with ends.near.entered():
        ends.near.sysctl("net.ipv4.ping_group_range", "1 0")
        chosen = [IcmpSocket(ipv4=ipv4) for ipv4 in (True, False)]
        ends.near.sysctl("net.ipv4.ping_group_range", "0 2147483647")
        chosen += [IcmpSocket(ipv4=ipv4) for ipv4 in (True, False)]
        ends.near.sysctl("net.ipv4.ping_group_range", "1 0")
        with pytest.raises(PermissionError):
            IcmpSocket(ipv4=True, raw=False)
    assert [sock.raw for sock in chosen] == [True, True, False, True]
    for sock in chosen:
        sock.close()


def test_what_does_not_leave_is_named_and_stops_nothing(ends: Ends, sock: IcmpSocket, ipv4: bool) -> None:
    good = sock.slot(pair(ends, ipv4), 1, 0)
    no_link = sock.slot(pair(ends, ipv4), 2, 9999)
    foreign = Pair(parse_ip("10.7.0.99") if ipv4 else parse_ip("fd07::99"), ends.theirs[not ipv4])
    not_ours = sock.slot(foreign, 3, 0)
    failed = sock.send([no_link.message, good.message, not_ours.message, good.message, no_link.message], 4)
    assert [place for place, _ in failed] == [0, 2, 4]
    assert [code for place, code in failed if place in (0, 4)] == [errno.ENODEV] * 2
    assert [reply.token for reply in replies(sock, 2)] == [1, 1]


def test_link_local_addresses_need_no_scope_but_the_link(ends: Ends) -> None:
    near_address, far_address = "fe80::aaaa", "fe80::bbbb"
    for end, address in ((ends.near, near_address), (ends.far, far_address)):
        end.add_addresses("eth0", f"{address}/64")
    with ends.near.entered():
        sock = IcmpSocket(ipv4=False)
    slot = sock.slot(Pair(parse_ip(near_address), parse_ip(far_address)), 1, sock.ifindex("eth0"))
    assert sock.send([slot.message], 1) == []
    assert [reply.token for reply in replies(sock, 1)] == [1]
    sock.close()


def test_pings_of_others_stay_out(ends: Ends, sock: IcmpSocket, ipv4: bool) -> None:
    with ends.near.entered():
        other = IcmpSocket(ipv4=ipv4)
    ours, theirs = sock.slot(pair(ends, ipv4), 1, 0), other.slot(pair(ends, ipv4), 2, 0)
    for sequence in range(20):
        other.send([theirs.message], sequence)
    sock.send([ours.message], 100)
    assert [reply.token for reply in replies(sock, 1)] == [1]
    assert len(replies(other, 20)) == 20
    assert sock.receive() == []
    assert sock.drops() == 0
    other.close()


def test_dropped_replies_are_counted(ends: Ends, sock: IcmpSocket, ipv4: bool) -> None:
    with socket.socket(fileno=socket.dup(sock.fileno())) as same:
        same.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    slot = sock.slot(pair(ends, ipv4), 1, 0)
    sent = 200
    for sequence in range(sent):
        assert sock.send([slot.message], sequence) == []
    deadline = time.monotonic() + 20
    while sock.drops() == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert 0 < sock.drops() < sent


def test_a_closed_socket_reads_nothing(sock: IcmpSocket) -> None:
    sock.close()
    assert sock.fileno() == -1
    assert sock.receive() == []


def test_a_link_is_found_by_its_name_of_any_bytes_and_never_by_the_beginning_of_a_name(
    ends: Ends, sock: IcmpSocket
) -> None:
    ends.near.add_veth("\udcff\udcfe", "fifteen-bytes-x", up=False)
    assert sock.ifindex(r"\xff\xfe") > 0
    assert sock.ifindex("fifteen-bytes-x") > 0
    assert sock.ifindex("fifteen-bytes-x-and-more") == 0
    assert sock.ifindex("\udc80") == 0
