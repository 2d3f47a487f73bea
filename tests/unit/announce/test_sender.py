"""The announcer on a fake wire: ownership, counters, bounds, budgets and failures."""

import asyncio
import errno
from collections.abc import Callable, Iterable

import pytest

from lbguard.announce.plan import Announcement
from lbguard.announce.sender import Announcer, FrameKind, Suppressed
from lbguard.core.addr import Ip
from lbguard.core.effects import Announce, SolicitNeighbors
from lbguard.core.model import LinkKey

LINK = LinkKey(7, 1)
MAC = bytes.fromhex("02a1b2c3d4e5")
OTHER_MAC = bytes.fromhex("02a1b2c3d4e6")
IP4 = bytes([10, 0, 0, 1])
IP6 = bytes.fromhex("fd000000000000000000000000000001")
FOREVER_S = 3600.0


class FakeWire:
    """A working model of the packet socket: links exist or not, are up or not, and one send can be made to fail."""

    def __init__(self) -> None:
        self.frames: list[tuple[int, bytes]] = []
        self.absent: set[int] = set()
        self.down: set[int] = set()
        self.fail_next_with = 0
        self.closed = False

    def send(self, ifindex: int, frame: bytes) -> int:
        assert not self.closed
        if self.fail_next_with:
            code, self.fail_next_with = self.fail_next_with, 0
            return code
        if ifindex in self.absent:
            return errno.ENXIO
        if ifindex in self.down:
            return errno.ENETDOWN
        self.frames.append((ifindex, frame))
        return 0

    def close(self) -> None:
        self.closed = True


def effect(*ips: Ip, link: LinkKey = LINK, mac: bytes = MAC) -> Announce:
    return Announce(link=link, ifname="nsm-1", mac=mac, addresses=ips)


def addresses(count: int) -> tuple[Ip, ...]:
    return tuple((0x0A000000 + number).to_bytes(4, "big") for number in range(count))


def owns_all(link: LinkKey, ip: Ip) -> bool:
    return True


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition, for at least 30 seconds."""
    for _ in range(15_000):
        if condition():
            return
        await asyncio.sleep(0.002)
    raise AssertionError("the condition never came true")


def sources(frames: Iterable[tuple[int, bytes]]) -> list[bytes]:
    return [frame[6:12] for _, frame in frames]


@pytest.fixture
def wire() -> FakeWire:
    return FakeWire()


async def test_the_first_burst_leaves_inside_the_call(wire: FakeWire) -> None:
    announcer = Announcer(owns=owns_all, repeats_s=(0, FOREVER_S), frame_socket=wire)
    announcer.announce(effect(IP4, IP6))
    assert [(ifindex, frame[12:14].hex(), len(frame)) for ifindex, frame in wire.frames] == [
        (7, "0806", 42),
        (7, "0806", 42),
        (7, "86dd", 86),
    ]
    assert [frame[20:22].hex() for _, frame in wire.frames[:2]] == ["0001", "0002"]
    assert announcer.counters.sent == {FrameKind.ARP_REQUEST: 1, FrameKind.ARP_REPLY: 1, FrameKind.NA: 1}
    assert announcer.pending == 2
    announcer.close()


@pytest.mark.parametrize(("kind", "operation"), [(FrameKind.ARP_REQUEST, "0001"), (FrameKind.ARP_REPLY, "0002")])
async def test_one_form_alone(wire: FakeWire, kind: FrameKind, operation: str) -> None:
    announcer = Announcer(owns=owns_all, repeats_s=(0,), arp_kinds=[kind], frame_socket=wire)
    announcer.announce(effect(IP4))
    assert [frame[20:22].hex() for _, frame in wire.frames] == [operation]
    assert announcer.counters.sent == {kind: 1}
    announcer.close()


@pytest.mark.parametrize(("router", "flags"), [(True, "a0000000"), (False, "20000000")])
async def test_the_router_flag_follows_the_setting(wire: FakeWire, router: bool, flags: str) -> None:
    announcer = Announcer(owns=owns_all, repeats_s=(0,), router=router, frame_socket=wire)
    announcer.announce(effect(IP6))
    assert [frame[58:62].hex() for _, frame in wire.frames] == [flags]
    announcer.close()


async def test_repeats_follow_by_themselves_and_end(wire: FakeWire) -> None:
    announcer = Announcer(owns=owns_all, repeats_s=(0, 0.01, 0.02, 0.03), frame_socket=wire)
    announcer.announce(effect(IP6))
    assert len(wire.frames) == 1
    await until(lambda: announcer.pending == 0)
    # A stalled machine merges repeats that are past, so between two and four sends are right; never more.
    assert 2 <= len(wire.frames) <= 4
    assert len({frame for _, frame in wire.frames}) == 1
    announcer.close()


async def test_a_repeat_that_is_due_before_all_others_is_not_late(wire: FakeWire) -> None:
    announcer = Announcer(owns=owns_all, repeats_s=(0, 0.01, FOREVER_S), frame_socket=wire)
    announcer.announce(effect(IP6))
    await until(lambda: len(wire.frames) == 2)
    # Nothing is due for an hour now; a new announcement has to bring the timer forward.
    announcer.announce(effect(IP6, link=LinkKey(8, 1)))
    await until(lambda: len(wire.frames) == 4)
    assert [ifindex for ifindex, _ in wire.frames] == [7, 7, 8, 8]
    announcer.close()


async def test_ownership_is_asked_before_each_send(wire: FakeWire) -> None:
    asked: list[tuple[LinkKey, Ip]] = []

    def owns(link: LinkKey, ip: Ip) -> bool:
        asked.append((link, ip))
        return len(asked) < 2

    announcer = Announcer(owns=owns, repeats_s=(0, 0.01, FOREVER_S), frame_socket=wire)
    announcer.announce(effect(IP6))
    assert announcer.pending == 1
    await until(lambda: announcer.pending == 0)
    assert asked == [(LINK, IP6)] * 2
    assert len(wire.frames) == 1
    assert announcer.counters.suppressed == {Suppressed.NOT_OWNED: 1}
    announcer.close()


async def test_an_address_that_is_not_usable_is_never_announced(wire: FakeWire) -> None:
    announcer = Announcer(owns=lambda _, ip: ip != IP6, repeats_s=(0,), frame_socket=wire)
    announcer.announce(effect(IP6, IP4))
    assert [frame[12:14].hex() for _, frame in wire.frames] == ["0806", "0806"]
    assert announcer.counters.suppressed == {Suppressed.NOT_OWNED: 1}
    announcer.close()


async def test_the_newest_mac_wins_and_replaces_what_waits(wire: FakeWire) -> None:
    announcer = Announcer(owns=owns_all, repeats_s=(0, 0.05), frame_socket=wire)
    announcer.announce(effect(IP6))
    announcer.announce(effect(IP6, mac=OTHER_MAC))
    assert announcer.pending == 1
    await until(lambda: announcer.pending == 0)
    assert sources(wire.frames) == [MAC, OTHER_MAC, OTHER_MAC]
    assert announcer.counters.suppressed == {Suppressed.SUPERSEDED: 1}
    announcer.close()


@pytest.mark.parametrize("code", ["ENETDOWN", "ENXIO", "ENODEV", "ENOBUFS"])
async def test_a_failed_send_is_named_and_tried_again(wire: FakeWire, code: str) -> None:
    announcer = Announcer(owns=owns_all, repeats_s=(0, 0.01), frame_socket=wire)
    wire.fail_next_with = getattr(errno, code)
    announcer.announce(effect(IP4))
    assert wire.frames == []
    await until(lambda: announcer.pending == 0)
    assert len(wire.frames) == 2
    assert announcer.counters.errors == {code: 1}
    assert announcer.counters.sent == {FrameKind.ARP_REQUEST: 1, FrameKind.ARP_REPLY: 1}
    announcer.close()


async def test_a_link_that_never_comes_back_ends_with_errors_only(wire: FakeWire) -> None:
    announcer = Announcer(owns=owns_all, repeats_s=(0,), frame_socket=wire)
    wire.absent.add(LINK.ifindex)
    announcer.announce(effect(IP4, IP6))
    assert announcer.counters.errors == {"ENXIO": 2}
    assert announcer.pending == 0
    announcer.close()


async def test_an_unknown_errno_gets_a_label_too(wire: FakeWire) -> None:
    announcer = Announcer(owns=owns_all, repeats_s=(0,), frame_socket=wire)
    wire.fail_next_with = 9999
    announcer.announce(effect(IP6))
    assert announcer.counters.errors == {"unknown": 1}
    announcer.close()


async def test_the_burst_is_limited_per_tick_over_all_calls(wire: FakeWire) -> None:
    announcer = Announcer(owns=owns_all, repeats_s=(0,), frames_per_tick_max=10, frame_socket=wire)
    per_tick: list[int] = []
    announcer.announce(effect(*addresses(4)))
    announcer.announce(effect(*addresses(20), link=LinkKey(8, 1)))
    seen = len(wire.frames)
    per_tick.append(seen)
    while announcer.pending:
        await asyncio.sleep(0)
        per_tick.append(len(wire.frames) - seen)
        seen = len(wire.frames)
    assert sum(per_tick) == 48
    assert max(per_tick) == 10
    # Addresses leave in the order in which they were asked for, each once.
    announced = [(ifindex, frame[28:32]) for ifindex, frame in wire.frames[::2]]
    assert announced == [(7, ip) for ip in addresses(4)] + [(8, ip) for ip in addresses(20)]
    announcer.close()


async def test_an_odd_limit_is_never_exceeded(wire: FakeWire) -> None:
    announcer = Announcer(owns=owns_all, repeats_s=(0,), frames_per_tick_max=3, frame_socket=wire)
    announcer.announce(effect(*addresses(3)))
    assert len(wire.frames) == 2
    await until(lambda: announcer.pending == 0)
    assert len(wire.frames) == 6
    announcer.close()


async def test_what_waits_is_bounded_by_name(wire: FakeWire) -> None:
    announcer = Announcer(owns=owns_all, repeats_s=(0, FOREVER_S), addresses_max=6, frame_socket=wire)
    announcer.announce(effect(*addresses(5)))
    announcer.announce(effect(*addresses(3), link=LinkKey(8, 1)))
    assert announcer.pending == 6
    assert announcer.counters.suppressed == {Suppressed.QUEUE_FULL: 2}
    announcer.close()


async def test_one_link_may_fill_a_bound_that_was_raised(wire: FakeWire) -> None:
    announcer = Announcer(owns=owns_all, repeats_s=(0, FOREVER_S), addresses_max=5000, frame_socket=wire)
    announcer.announce(effect(*addresses(5001)))
    assert announcer.pending == 5000
    assert announcer.counters.suppressed == {Suppressed.QUEUE_FULL: 1}
    announcer.close()


async def test_a_link_without_ethernet_addresses_is_passed_over(wire: FakeWire) -> None:
    announcer = Announcer(owns=owns_all, frame_socket=wire)
    announcer.announce(effect(IP4, IP6, mac=b""))
    assert wire.frames == []
    assert announcer.counters.suppressed == {Suppressed.NOT_ETHERNET: 2}
    announcer.close()


async def test_the_first_send_of_each_announcement_is_reported_once(wire: FakeWire) -> None:
    clock = iter(range(100, 200))
    reported: list[Announcement] = []
    announcer = Announcer(
        owns=owns_all,
        repeats_s=(0, FOREVER_S),
        clock=lambda: float(next(clock)),
        on_first_send=reported.append,
        frame_socket=wire,
    )
    announcer.announce(effect(IP4, IP6))
    announcer.announce(effect(IP4, mac=OTHER_MAC))
    assert [(one.link, one.mac) for one in reported] == [(LINK, MAC), (LINK, OTHER_MAC)]
    for one in reported:
        assert one.sent_at is not None
        assert one.sent_at > one.asked_at
    announcer.close()


async def test_a_failed_first_send_is_reported_when_it_succeeds(wire: FakeWire) -> None:
    reported: list[Announcement] = []
    announcer = Announcer(owns=owns_all, repeats_s=(0, 0.01), on_first_send=reported.append, frame_socket=wire)
    wire.down.add(LINK.ifindex)
    announcer.announce(effect(IP6))
    assert reported == []
    wire.down.clear()
    await until(lambda: announcer.pending == 0)
    assert len(reported) == 1
    sent_at = reported[0].sent_at
    assert sent_at is not None
    assert sent_at - reported[0].asked_at >= 0.01
    announcer.close()


async def test_close_cancels_everything_by_name(wire: FakeWire) -> None:
    announcer = Announcer(owns=owns_all, repeats_s=(0, 0.01), frame_socket=wire)
    announcer.announce(effect(IP4, IP6))
    sent = len(wire.frames)
    announcer.close()
    announcer.close()
    announcer.announce(effect(IP4))
    await asyncio.sleep(0.03)
    assert wire.closed
    assert len(wire.frames) == sent
    assert announcer.pending == 0
    assert announcer.counters.suppressed == {Suppressed.CLOSED: 3}


def solicited(wire: FakeWire) -> list[bytes]:
    return [frame[38:42] for _, frame in wire.frames]


async def test_solicitations_leave_room_in_the_loop_and_each_is_sent_once(wire: FakeWire) -> None:
    announcer = Announcer(owns=owns_all, frame_socket=wire)
    asked = addresses(200)
    questions = SolicitNeighbors(link=LINK, mac=MAC, pairs=tuple((IP4, ip) for ip in asked))
    announcer.solicit(questions)
    assert solicited(wire) == list(asked[:64])
    between: list[int] = []
    asyncio.get_running_loop().call_soon(lambda: between.append(len(wire.frames)))
    announcer.solicit(SolicitNeighbors(link=LINK, mac=MAC, pairs=tuple((IP4, ip) for ip in asked[64:])))
    assert solicited(wire) == list(asked[:64]), "the budget of this iteration is spent"
    await until(lambda: len(wire.frames) >= 200)
    assert solicited(wire) == list(asked), "an address that waits is not queued twice"
    assert between == [128], "another callback of the loop ran between two shares"
    announcer.close()


async def test_waiting_solicitations_end_with_the_address_and_with_the_announcer(wire: FakeWire) -> None:
    held = True
    announcer = Announcer(owns=lambda link, ip: held, frame_socket=wire)
    questions = SolicitNeighbors(link=LINK, mac=MAC, pairs=tuple((IP4, ip) for ip in addresses(200)))
    announcer.solicit(questions)
    held = False
    await until(lambda: announcer.counters.suppressed[Suppressed.NOT_OWNED] == 136)
    held = True
    announcer.solicit(questions)
    sent = len(wire.frames)
    announcer.close()
    await asyncio.sleep(0.01)
    assert len(wire.frames) == sent


def test_settings_out_of_range_are_refused(wire: FakeWire) -> None:
    with pytest.raises(ValueError, match="frames_per_tick_max"):
        Announcer(owns=owns_all, frames_per_tick_max=1, frame_socket=wire)
    for kinds in ((), (FrameKind.NA,), (FrameKind.ARP_REPLY, FrameKind.ARP_REPLY)):
        with pytest.raises(ValueError, match="arp_kinds"):
            Announcer(owns=owns_all, arp_kinds=kinds, frame_socket=wire)
    with pytest.raises(ValueError, match="repeats"):
        Announcer(owns=owns_all, repeats_s=(1,), frame_socket=wire)
