"""Exchange of pings with the far ends: their schedule, their sending, and what the replies say."""

import asyncio
import errno
import heapq
import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Generic, Protocol, TypeVar

from lbguard.core.addr import is_ipv4
from lbguard.probe.datapath import ProbeCounters
from lbguard.probe.failure_detector import LATE_MIN_S
from lbguard.probe.icmp import SEND_BATCH, EchoSocket
from lbguard.probe.packet import SEQUENCE_MAX, TOKEN_MAX
from lbguard.probe.watch import PairWatch, Watch

T = TypeVar("T")

JITTER: Final = 0.1
"""Each ping is moved by a random part of up to this share of the time between two pings, so that nothing locks step."""

TICK_MIN_S: Final = 0.001
TICK_MAX_S: Final = 0.01


def tick_s(spacing_s: float) -> float:
    """Return the resolution of times: a fraction of the time between two pings, within bounds."""
    return min(TICK_MAX_S, max(TICK_MIN_S, spacing_s / 20))


def ping_offset_s(number: int, spacing_s: float, chance: float) -> float:
    """Return when a ping of a round leaves, from the start of the round.

    Args:
        number: which ping, from 0.
        spacing_s: the timeout of the round over its pings.
        chance: a random number in [0, 1).
    """
    return (number + JITTER * chance) * spacing_s


def next_start(started: float, interval_s: float, now: float) -> float:
    """Return the beginning of the round after the one begun at `started`, in step with it.

    It may be slightly in the past, because rounds are judged after their end; rounds further in the past are skipped.
    """
    behind_s = now - (started + interval_s)
    return started + interval_s * (1 + max(0, round(behind_s / interval_s)))


def spread_starts(count: int, interval_s: float, now: float) -> Iterator[float]:
    """Yield when the first rounds of connections that came together begin: evenly over an interval, the first now."""
    for number in range(count):
        yield now + interval_s * number / count


class Wheel(Generic[T]):
    """Items by moment, rounded up to ticks, so that thousands of items need one timer and no sorting.

    Adding costs O(1) but for the first item of a tick.
    """

    def __init__(self, tick: float) -> None:
        self._tick = tick
        self._slots: dict[int, list[T]] = {}
        self._order: list[int] = []

    def add(self, at: float, item: T) -> None:
        """Add an item that is due at a moment."""
        number = math.ceil(at / self._tick)
        slot = self._slots.get(number)
        if slot is None:
            self._slots[number] = [item]
            heapq.heappush(self._order, number)
        else:
            slot.append(item)

    def next(self) -> float | None:
        """Return the earliest moment at which something is due, if there is any."""
        return self._order[0] * self._tick if self._order else None

    def pop_due(self, now: float) -> list[tuple[float, list[T]]]:
        """Remove and return the items due at or before `now`, with their times, earliest first."""
        due = []
        while self._order and self._order[0] * self._tick <= now:
            number = heapq.heappop(self._order)
            due.append((number * self._tick, self._slots.pop(number)))
        return due


class PollTimer:
    """One timer that calls a step function when something is due or readable, but not more often than a tick.

    At thousands of replies a second, waking for each would cost more than all the rest. The kernel stamped them on
    arrival, so they lose nothing by waiting for the next tick.

    Args:
        step: called from the event loop; an exception ends `run` with it.
        next_due: when `step` has something to do, in seconds of `clock`.
        clock: seconds, monotonic.
        tick_s: least time between two steps.
    """

    def __init__(
        self, step: Callable[[], None], next_due: Callable[[], float | None], clock: Callable[[], float], tick_s: float
    ) -> None:
        self._step = step
        self._next_due = next_due
        self._clock = clock
        self._tick_s = tick_s
        self._stepped_at = clock()
        self._readers: Sequence[int] = ()
        self._unwatched: set[int] = set()
        self._waiting = False
        self._timer: asyncio.TimerHandle | None = None
        self._ended: asyncio.Future[None] | None = None

    async def run(self, descriptors: Sequence[int]) -> None:
        """Call `step` until cancelled, or until it raises."""
        loop = asyncio.get_running_loop()
        self._ended = loop.create_future()
        self._readers = [descriptor for descriptor in descriptors if descriptor >= 0]
        self._unwatched = set(self._readers)
        try:
            self._beat()
            await self._ended
        finally:
            self._ended = None
            if self._timer:
                self._timer.cancel()
            for descriptor in self._readers:
                loop.remove_reader(descriptor)

    def arm(self) -> None:
        """Set the timer for the next due work; call it when that changed. It does nothing while not running."""
        if self._ended is None:
            return
        if self._timer:
            self._timer.cancel()
            self._timer = None
        soonest = self._stepped_at + self._tick_s
        due = soonest if self._waiting else self._next_due()
        if due is not None:
            at = max(due, soonest)
            self._timer = asyncio.get_running_loop().call_later(max(0.0, at - self._clock()), self._beat)

    def _readable(self, descriptor: int) -> None:
        # Level-triggered: it would be reported again and again until the next step reads it.
        asyncio.get_running_loop().remove_reader(descriptor)
        self._unwatched.add(descriptor)
        self._waiting = True
        self.arm()

    def _beat(self) -> None:
        ended = self._ended
        if ended is None or ended.done():
            return
        try:
            self._step()
        except BaseException as error:
            ended.set_exception(error)
            return
        self._stepped_at = self._clock()
        self._waiting = False
        due = self._next_due()
        if due is None or due > self._stepped_at + self._tick_s:
            # Otherwise the next step comes before anything could wake it, and watching would only cost.
            loop = asyncio.get_running_loop()
            for descriptor in self._unwatched:
                loop.add_reader(descriptor, self._readable, descriptor)
            self._unwatched.clear()
        self.arm()


_READ_EVERY: Final = 8 * SEND_BATCH
"""Replies are read after so many pings of one step, before they can overflow a small receive buffer."""

_UNSENT: Final = -1
_OUT_OF_RESOURCES: Final = frozenset({errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM, errno.EINTR})
"""Errors that speak of this machine and not of the path."""


class OpenSocket(Protocol):
    """Opens the echo socket of a family."""

    def __call__(self, *, ipv4: bool) -> EchoSocket:
        """Open it, or raise OSError."""


class Exchange:
    """Sockets of both families, and the pairs that use them.

    All pings of one batch share a sequence number; the pair's token and that number identify a reply.

    Raises:
        OSError: no socket can be opened.
    """

    def __init__(self, open_socket: OpenSocket, counters: ProbeCounters, clock: Callable[[], float]) -> None:
        self._counters = counters
        self._clock = clock
        self._sockets = _open_sockets(open_socket)
        self._drops = {ipv4: sock.drops() for ipv4, sock in self._sockets.items()}
        self._dropped_at = -math.inf
        self._pairs: dict[int, PairWatch] = {}
        self._outgoing: dict[bool, list[PairWatch]] = {True: [], False: []}
        self._answered: list[Watch] = []
        self._sequence = 0
        self._tokens = itertools.count(random.getrandbits(31))

    def join(self, watch: Watch) -> None:
        """Make the pairs of a connection ready to be pinged."""
        watch.ifindex = self._ifindex(watch.connection.ifname)
        pairs = []
        for place, pair in enumerate(watch.connection.pairs):
            ipv4 = is_ipv4(pair.source)
            token = next(self._tokens) & TOKEN_MAX
            sock = self._sockets.get(ipv4)
            slot = sock.slot(pair, token, watch.ifindex) if sock else None
            pairs.append(PairWatch(watch, place, ipv4, token, slot))
            self._point(pairs[-1])
            self._pairs[token] = pairs[-1]
        watch.set_pairs(pairs)

    def leave(self, watch: Watch) -> None:
        """Remove the pairs of a connection: later replies to them are ignored."""
        for pair in watch.pairs:
            self._pairs.pop(pair.token, None)

    def queue(self, watch: Watch) -> None:
        """Have every pair of a connection pinged by the next `send`."""
        for pair in watch.pairs:
            self._outgoing[pair.ipv4].append(pair)

    def _ifindex(self, ifname: str) -> int:
        return next(iter(self._sockets.values())).ifindex(ifname) if ifname else 0

    def follow_link(self, watch: Watch) -> None:
        """Look up the link's index again: a re-created link with the same name has another one."""
        ifindex = self._ifindex(watch.connection.ifname)
        if ifindex != watch.ifindex:
            watch.ifindex = ifindex
            for pair in watch.pairs:
                self._point(pair)

    def _point(self, pair: PairWatch) -> None:
        """Send a pair's pings through the link of its connection; without the link there is nothing to send."""
        watch = pair.watch
        if pair.slot is None or (watch.connection.ifname and not watch.ifindex):
            pair.message = None
            return
        pair.slot.set_ifindex(watch.ifindex)
        pair.message = pair.slot.message

    def send(self, now: float) -> None:
        """Send what is queued; `now` is when the step that queued it began."""
        for ipv4, pairs in self._outgoing.items():
            if pairs:
                self._outgoing[ipv4] = []
                self._send(ipv4, pairs, now)

    def _send(self, ipv4: bool, due: list[PairWatch], now: float) -> None:
        sock = self._sockets.get(ipv4)
        if sock is None:
            for pair in due:
                self._count_unsent(pair, errno.EAFNOSUPPORT)
            return
        ready, messages = [], []
        for pair in due:
            if pair.message is None:
                self._count_unsent(pair, errno.ENODEV)
            else:
                ready.append(pair)
                messages.append(pair.message)
        for start in range(0, len(ready), SEND_BATCH):
            batch = ready[start : start + SEND_BATCH]
            self._sequence = sequence = (self._sequence + 1) & SEQUENCE_MAX
            sent_at = self._clock()
            failed = sock.send(messages[start : start + SEND_BATCH], sequence)
            for pair in batch:
                pair.sent += 1
                pair.pending[sequence] = sent_at
                pair.last_sequence = sequence
            self._counters.pings[ipv4] += len(batch) - len(failed)
            for place, code in failed:
                batch[place].sent -= 1
                del batch[place].pending[sequence]
                self._count_unsent(batch[place], code)
            if sent_at - now > LATE_MIN_S:
                for pair in batch:
                    pair.watch.untested |= sent_at - now > pair.watch.late_limit_s
            if start and start % _READ_EVERY == 0:
                self._receive(ipv4, sock)

    def _count_unsent(self, pair: PairWatch, code: int) -> None:
        """Record that a ping was not sent: it counts like a missing reply, unless local resources were exhausted."""
        self._counters.send_errors[errno.errorcode.get(code, str(code))] += 1
        if code in _OUT_OF_RESOURCES:
            pair.watch.untested = True
            return
        pair.sent += 1
        pair.last_sequence = _UNSENT
        pair.pending[_UNSENT] = 0.0

    def receive(self) -> list[Watch]:
        """Record the replies that wait; return the eager connections with a pair that answered for the first time."""
        for ipv4, sock in self._sockets.items():
            self._receive(ipv4, sock)
        answered, self._answered = self._answered, []
        return answered

    def _receive(self, ipv4: bool, sock: EchoSocket) -> None:
        replies = sock.receive()
        counters, pairs = self._counters, self._pairs
        read_at = self._clock()
        in_time = stray = astray = 0
        observe = counters.rtt[ipv4].add
        for token, sequence, age_s, ifindex in replies:
            pair = pairs.get(token)
            if pair is None:
                stray += 1
                continue
            watch = pair.watch
            if watch.ifindex and ifindex and ifindex != watch.ifindex:
                astray += 1
                continue
            arrived = read_at - age_s
            sent_at = pair.pending.pop(sequence, None)
            if sent_at is not None and arrived <= watch.deadline:
                rtt_s = arrived - sent_at if arrived > sent_at else 0.0
                observe(rtt_s)
                in_time += 1
                if watch.eager and not pair.rtts:
                    self._answered.append(watch)
                pair.rtts.append(rtt_s)
            elif sent_at is None and pair.previous.pop(sequence, None) is None:
                stray += 1
                continue
            pair.last_reply = arrived
            if watch.judge.wants_replies:
                watch.judge.replied(pair.place, arrived)
        counters.replies[ipv4] += in_time
        counters.late_replies[ipv4] += len(replies) - in_time - stray - astray
        counters.stray_replies += stray
        counters.astray_replies += astray

    def lost_replies(self, since: float) -> bool:
        """Return whether the kernel dropped replies after a moment, as far as the monitor can tell."""
        for ipv4, sock in self._sockets.items():
            drops = sock.drops()
            if drops != self._drops[ipv4]:
                self._counters.overflows += (drops - self._drops[ipv4]) & 0xFFFFFFFF
                self._drops[ipv4] = drops
                self._dropped_at = self._clock()
        return self._dropped_at >= since

    def descriptors(self) -> list[int]:
        """Return what polls readable when a reply waits."""
        return [sock.fileno() for sock in self._sockets.values()]

    def close(self) -> None:
        """Close the sockets."""
        for sock in self._sockets.values():
            sock.close()


def _open_sockets(open_socket: OpenSocket) -> dict[bool, EchoSocket]:
    """Open a socket of each family that the kernel has, keyed by whether it is IPv4."""
    sockets: dict[bool, EchoSocket] = {}
    for ipv4 in (True, False):
        try:
            sockets[ipv4] = open_socket(ipv4=ipv4)
        except OSError as error:
            if error.errno not in (errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT) or (not ipv4 and not sockets):
                for sock in sockets.values():
                    sock.close()
                raise
    return sockets
