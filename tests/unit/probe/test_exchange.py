import errno

import pytest

from lbguard.core.addr import parse_ip
from lbguard.core.model import ConnectionSubject
from lbguard.probe.connections import Connection, Pair
from lbguard.probe.datapath import ProbeCounters
from lbguard.probe.exchange import Exchange
from lbguard.probe.failure_detector import DetectorSettings, RoundsDetector
from lbguard.probe.icmp import SEND_BATCH
from lbguard.probe.watch import Watch
from tests.fakes.echo import EchoNetwork, Time


class World:
    """An exchange over a network in time that is told."""

    def __init__(self) -> None:
        self.time = Time()
        self.network = EchoNetwork(self.time)
        self.counters = ProbeCounters()
        self.exchange = Exchange(self.network.open_socket, self.counters, self.time)

    def watch(self, number: int = 1, ifname: str = "") -> Watch:
        pair = Pair(parse_ip("10.0.0.1"), parse_ip(f"10.1.{number // 256}.{number % 256}"))
        connection = Connection(id=str(number), subject=ConnectionSubject(id="c"), pairs=(pair,), ifname=ifname)
        watch = Watch(connection, 1, RoundsDetector(DetectorSettings(), [True]))
        self.exchange.join(watch)
        watch.begin_round(self.time.now, 2.0, 4)
        return watch

    def ping(self, *watches: Watch) -> None:
        for watch in watches:
            self.exchange.queue(watch)
        self.exchange.send(self.time.now)

    def wait(self, seconds: float) -> list[Watch]:
        self.time.now += seconds
        return self.exchange.receive()


def test_more_pings_than_a_batch_all_find_back() -> None:
    world = World()
    watches = [world.watch(number) for number in range(2 * SEND_BATCH + 3)]
    world.ping(*watches)
    world.wait(0.1)
    assert [len(watch.pairs[0].rtts) for watch in watches] == [1] * len(watches)
    assert {watch.pairs[0].last_sequence for watch in watches[:SEND_BATCH]} != {watches[-1].pairs[0].last_sequence}


def test_who_waits_for_replies_is_told_of_the_first() -> None:
    world = World()
    eager, patient = world.watch(1), world.watch(2)
    eager.eager = True
    world.ping(eager, patient)
    assert world.wait(0.1) == [eager]
    world.ping(eager, patient)
    assert world.wait(0.1) == []


def test_sequence_numbers_wrap() -> None:
    world = World()
    watch = world.watch()
    for _ in range(0x10000 + 5):
        world.ping(watch)
        world.wait(0.0006)
        watch.begin_round(world.time.now, 2.0, 4)
    assert world.counters.replies[True] == 0x10000 + 5
    assert world.counters.stray_replies == 0


def test_a_reply_to_who_left_is_stray() -> None:
    world = World()
    watch = world.watch()
    world.ping(watch)
    world.exchange.leave(watch)
    assert world.wait(0.1) == []
    assert (world.counters.stray_replies, world.counters.replies[True]) == (1, 0)


def test_a_second_reply_to_one_ping_is_stray() -> None:
    world = World()
    watch = world.watch()
    world.ping(watch)
    world.network.sockets[0].arrivals *= 2
    world.wait(0.1)
    assert (world.counters.stray_replies, world.counters.replies[True]) == (1, 1)


@pytest.mark.parametrize(
    ("code", "untested", "sent"), [(errno.ENOBUFS, True, 0), (errno.ENETUNREACH, False, 1), (errno.EINVAL, False, 1)]
)
def test_what_did_not_leave(code: int, untested: bool, sent: int) -> None:
    world = World()
    watch = world.watch()
    world.network.fail_next_send = code
    world.ping(watch)
    assert (watch.untested, watch.pairs[0].sent, watch.silent()) == (untested, sent, not untested)
    assert world.counters.pings[True] == 0
    assert world.counters.send_errors == {errno.errorcode[code]: 1}


def test_nothing_leaves_without_the_link() -> None:
    world = World()
    watch = world.watch(ifname="nsm-1")
    world.ping(watch)
    assert world.network.asked == {}
    assert world.counters.send_errors == {"ENODEV": 1}
    world.network.links["nsm-1"] = 4
    world.exchange.follow_link(watch)
    world.ping(watch)
    assert sum(world.network.asked.values()) == 1


def test_lost_replies_are_noticed_once_and_remembered() -> None:
    world = World()
    world.network.drops_next = {True: 5}
    began = world.time.now
    world.time.now += 1
    assert world.exchange.lost_replies(began)
    assert world.exchange.lost_replies(began)
    assert not world.exchange.lost_replies(world.time.now + 0.1)
    assert world.counters.overflows == 5


def test_sockets_are_closed() -> None:
    world = World()
    world.exchange.close()
    assert all(sock.closed for sock in world.network.sockets)


def test_what_is_refused_leaves_no_socket_behind() -> None:
    network = EchoNetwork(Time())
    opened = network.open_socket

    def refuse(*, ipv4: bool) -> object:
        if not ipv4:
            raise PermissionError(errno.EPERM, "not allowed")
        return opened(ipv4=ipv4)

    with pytest.raises(PermissionError):
        Exchange(refuse, ProbeCounters(), network.time)  # type: ignore[arg-type]
    assert [sock.closed for sock in network.sockets] == [True]
