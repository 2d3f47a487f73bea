"""A network that answers pings, in time that is told: the sockets of a monitor, and what drives one."""

import errno
import heapq
import itertools
import random
from collections.abc import Callable, Sequence

from lbguard.core.addr import Ip
from lbguard.probe.connections import Pair
from lbguard.probe.icmp import SEND_BATCH, Reply
from lbguard.probe.monitor import Monitor


class Time:
    """A clock that moves when it is told to."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class FakeSlot:
    """A pair ready for sending: its message is its token."""

    def __init__(self, token: int, ifindex: int) -> None:
        self.message = token.to_bytes(4)
        self.ifindex = ifindex

    def set_ifindex(self, ifindex: int) -> None:
        self.ifindex = ifindex


class EchoNetwork:
    """Answers every ping after `rtt_s`, but for what is lost, cut, or refused.

    Attributes:
        loss: probability that a ping or its reply is lost.
        cut: destinations that do not answer.
        links: index by name of link.
        arrive_by: the link that replies come in by; 0: the one that the ping left by.
        asked: how many pings each destination got.
        fail_next_send: errno that the next message meets, once.
        drops_next: packets reported as dropped by the kernel at the next look, once, by family.
    """

    def __init__(self, time: Time, *, seed: int = 1, rtt_s: float = 0.0005, loss: float = 0.0) -> None:
        self.time = time
        self.rtt_s = rtt_s
        self.loss = loss
        self.cut: set[Ip] = set()
        self.links: dict[str, int] = {}
        self.arrive_by = 0
        self.asked: dict[Ip, int] = {}
        self.sent_at: list[tuple[float, Ip]] = []
        self.fail_next_send = 0
        self.drops_next: dict[bool, int] = {}
        self.families = {True, False}
        self.random = random.Random(seed)
        self.sockets: list[FakeSocket] = []

    def open_socket(self, *, ipv4: bool) -> "FakeSocket":
        if ipv4 not in self.families:
            raise OSError(errno.EAFNOSUPPORT, "address family not supported")
        self.sockets.append(FakeSocket(self, ipv4))
        return self.sockets[-1]

    def next_arrival(self) -> float | None:
        return min((sock.arrivals[0][0] for sock in self.sockets if sock.arrivals), default=None)


class FakeSocket:
    """The socket of one family."""

    def __init__(self, network: EchoNetwork, ipv4: bool) -> None:
        self._network = network
        self._ipv4 = ipv4
        self._pairs: dict[int, tuple[Pair, FakeSlot]] = {}
        self._dropped = 0
        self._order = itertools.count()
        self.arrivals: list[tuple[float, int, int, int]] = []
        self.closed = False

    def slot(self, pair: Pair, token: int, ifindex: int) -> FakeSlot:
        slot = FakeSlot(token, ifindex)
        self._pairs[token] = (pair, slot)
        return slot

    def send(self, messages: Sequence[bytes], sequence: int) -> list[tuple[int, int]]:
        assert not self.closed
        assert len(messages) <= SEND_BATCH
        assert len(set(messages)) == len(messages), "two pings of one pair would share a sequence number"
        network = self._network
        failed = []
        for place, message in enumerate(messages):
            if network.fail_next_send:
                failed.append((place, network.fail_next_send))
                network.fail_next_send = 0
                continue
            token = int.from_bytes(message)
            destination = self._pairs[token][0].destination
            network.asked[destination] = network.asked.get(destination, 0) + 1
            network.sent_at.append((network.time.now, destination))
            if destination not in network.cut and network.random.random() >= network.loss:
                at = network.time.now + network.rtt_s
                heapq.heappush(self.arrivals, (at, next(self._order), token, sequence))
        return failed

    def receive(self) -> list[Reply]:
        now = self._network.time.now
        replies = []
        while self.arrivals and self.arrivals[0][0] <= now:
            at, _, token, sequence = heapq.heappop(self.arrivals)
            arrived_by = self._network.arrive_by or self._pairs[token][1].ifindex
            replies.append(Reply(token, sequence, now - at, arrived_by))
        return replies

    def drops(self) -> int:
        self._dropped += self._network.drops_next.pop(self._ipv4, 0)
        return self._dropped

    def ifindex(self, ifname: str) -> int:
        return self._network.links.get(ifname, 0)

    def fileno(self) -> int:
        return -1

    def close(self) -> None:
        self.closed = True


def drive(
    monitor: Monitor, network: EchoNetwork, until: float, *, tick_s: float = 0.005, stop: Callable[[], bool] = bool
) -> None:
    """Let time pass as the event loop would: step when something is due or a reply waits, at most once a tick."""
    time = network.time
    stepped = time.now
    while not stop():
        moments = [at for at in (monitor.next_due(), network.next_arrival()) if at is not None]
        at = max([min(moments), stepped + tick_s]) if moments else until
        if at >= until:
            break
        time.now = max(time.now, at)
        monitor.step()
        stepped = time.now
    time.now = max(time.now, until) if not stop() else time.now
