"""Buffer of parked packets, with bounds. Pure.

Packets wait in queues in the order of their arrival. Each family of a target (a lane) has two: one of TCP and SCTP, one
of other packets.

- TCP and SCTP are given back first and faster: the number of packets is bounded by windows, and senders react to loss.
  Other packets may be many for one socket, whose buffer must not overflow.
- Of a TCP segment only the newest copy is kept, at the place of the first one, so that a flow stays in order. Of the
  pure acknowledgements of a flow only the newest is kept.
- When the buffer is full, the oldest packet of the queue that uses the most makes room, unless the new packet's own
  queue uses more than an equal share; then its own oldest packet does. So no target takes the room of another.
- A packet that is older than `max_age_s` is dropped.
- A packet that comes back after it was given back, because its target's route was missing for an instant, waits for a
  moment and is given back again, a few times at most.
"""

from collections import Counter, OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NamedTuple

from lbguard.core.model import ParkingLane, ParkingMode
from lbguard.parking.frames import ParkedPacket

PACKET_OVERHEAD_BYTES: Final = 600
"""Memory that a packet needs beside its own bytes; it counts for the bound of bytes."""
RETRY_S: Final = 0.01
TRIES_MAX: Final = 3
_RETURN_S: Final = 1.0
"""A packet that comes back later than this was sent anew."""

QueueKey = tuple[int, bool, bool]
"""Mark, whether the family is IPv4, and whether the packets are responsive (TCP and SCTP)."""


class Dropped(StrEnum):
    """Reason why a packet was dropped, besides those by which a term ends (`core/parking.py`)."""

    NOT_A_TARGET = "not_a_target"
    NEWER_COPY = "newer_copy"
    SHARE_USED = "share_used"
    FULL = "full"
    TOO_OLD = "too_old"
    CAME_BACK = "came_back"
    TOO_BIG = "too_big"
    REFUSED = "refused"
    KERNEL_QUEUE = "kernel_queue"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Bounds of all packets together, and of the age of each."""

    packets: int
    memory_bytes: int
    max_age_s: float


class Usage(NamedTuple):
    """Kept packets of one family of a target: their number, their memory, and when the first one arrived."""

    mark: int
    ipv4: bool
    packets: int
    memory_bytes: int
    since: float
    mode: ParkingMode

    def plus(self, other: "Usage") -> "Usage":
        """Return both together."""
        return self._replace(
            packets=self.packets + other.packets,
            memory_bytes=self.memory_bytes + other.memory_bytes,
            since=min(self.since, other.since),
        )


@dataclass(slots=True)
class Waiting:
    """A packet that waits: since when, from when on it may be given back, and how often it was.

    `first_copy_at`: when the first copy of its TCP segment arrived.
    """

    parked: ParkedPacket
    since: float
    first_copy_at: float
    ready_at: float = 0.0
    tries: int = 0

    @property
    def size(self) -> int:
        """Return the memory that it counts for."""
        return len(self.parked.packet) + PACKET_OVERHEAD_BYTES


@dataclass(slots=True, eq=False)
class _Queue:
    mode: ParkingMode
    term: int
    packets: OrderedDict[Hashable, Waiting] = field(default_factory=OrderedDict)
    used_bytes: int = 0
    given: dict[bytes, int] = field(default_factory=dict)
    given_at: float = 0.0

    def last_tries(self, packet: bytes, now: float) -> int:
        """Return how often a packet that arrives was given back."""
        if self.given and now - self.given_at > _RETURN_S:
            self.given.clear()
        return self.given.get(packet, 0)


class ParkingBuffer:
    """The packets of all lanes. `dropped` counts by reason, `parked` all packets that were taken in."""

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self.packets = 0
        self.memory_bytes = 0
        self.parked = 0
        self.dropped: Counter[str] = Counter()
        self.crowded: Counter[tuple[int, bool]] = Counter()
        """By mark and kind (responsive): packets that made room for others of the same queue. The reader resets it."""
        self._queues: dict[QueueKey, _Queue] = {}
        self._filled: dict[_Queue, QueueKey] = {}
        self._ready: dict[bool, OrderedDict[QueueKey, None]] = {True: OrderedDict(), False: OrderedDict()}
        self._largest: _Queue | None = None
        self._number = 0

    def set_lane(self, lane: ParkingLane) -> None:
        """Treat the packets of a lane so from now on."""
        for responsive in (True, False):
            self._set_queue((lane.mark, lane.ipv4, responsive), lane)

    def _set_queue(self, key: QueueKey, lane: ParkingLane) -> None:
        known = self._queues.get(key)
        if known is not None and (lane.mode is ParkingMode.DROP or known.term != lane.term):
            self._clear(known, lane.reason)
        if lane.mode is ParkingMode.DROP:
            self._queues.pop(key, None)
            return
        if known is None:
            known = self._queues[key] = _Queue(lane.mode, lane.term)
        if known.mode is not lane.mode or known.term != lane.term:
            known.mode, known.term = lane.mode, lane.term
            known.given.clear()
        self._update_ready(key, known)

    def put(self, parked: ParkedPacket, now: float) -> None:
        """Keep a packet, if its lane is known. `now`: seconds of a monotonic clock."""
        key = _key(parked)
        queue = self._queues.get(key)
        if queue is None:
            self.dropped[Dropped.NOT_A_TARGET] += 1
            return
        waiting = Waiting(parked, now, now)
        if queue.mode is ParkingMode.GIVE_BACK:
            waiting.ready_at, waiting.tries = now + RETRY_S, queue.last_tries(parked.packet, now)
            if waiting.tries >= TRIES_MAX:
                self.dropped[Dropped.CAME_BACK] += 1
                return
        self.parked += 1
        name: Hashable = parked.segment
        if not name:
            self._number += 1
            name = self._number
        before = queue.packets.get(name)
        queue.packets[name] = waiting
        self._count(queue, 1, waiting.size)
        if before is not None:
            waiting.first_copy_at = before.first_copy_at
            self._count(queue, -1, -before.size)
            self.dropped[Dropped.NEWER_COPY] += 1
        elif len(queue.packets) == 1:
            self._filled[queue] = key
            self._update_ready(key, queue)
        while self.packets > self.bounds.packets or self.memory_bytes > self.bounds.memory_bytes:
            self._make_room(queue)

    def take(self, now: float, count: int, others: int) -> list[Waiting]:
        """Remove and return packets that may be given back, in the order of each queue.

        Args:
            now: seconds of a monotonic clock.
            count: at most so many packets, TCP and SCTP first.
            others: at most so many of them have another protocol.
        """
        taken = self._take(now, count, self._ready[True])
        return taken + self._take(now, min(others, count - len(taken)), self._ready[False])

    def _take(self, now: float, count: int, ready: OrderedDict[QueueKey, None]) -> list[Waiting]:
        taken: list[Waiting] = []
        for key in list(ready) if count > 0 else ():
            queue = self._queues[key]
            while queue.packets and len(taken) < count:
                name, waiting = next(iter(queue.packets.items()))
                too_old = now - waiting.since > self.bounds.max_age_s
                if waiting.ready_at > now and not too_old:
                    break
                self._remove(queue, name)
                if too_old:
                    self.dropped[Dropped.TOO_OLD] += 1
                else:
                    waiting.tries += 1
                    taken.append(waiting)
                    if len(queue.given) >= self.bounds.packets:
                        queue.given.clear()
                    queue.given[waiting.parked.packet] = waiting.tries
                    queue.given_at = now
            if len(taken) >= count:
                # The next pass begins with another queue.
                if key in ready:
                    ready.move_to_end(key)
                break
        return taken

    def put_back(self, waiting: Waiting) -> None:
        """Keep a packet that `take` returned and that could not be sent now, before all others of its queue."""
        key = _key(waiting.parked)
        queue = self._queues.get(key)
        if queue is None:
            self.dropped[Dropped.NOT_A_TARGET] += 1
            return
        waiting.tries -= 1
        self._number += 1
        name: Hashable = waiting.parked.segment or self._number
        if name in queue.packets:
            self.dropped[Dropped.NEWER_COPY] += 1
            return
        queue.packets[name] = waiting
        queue.packets.move_to_end(name, last=False)
        self._count(queue, 1, waiting.size)
        self._filled[queue] = key
        self._update_ready(key, queue)

    def next_at(self) -> float | None:
        """Return when a packet may be given back next; None when none waits for that."""
        keys = (key for ready in self._ready.values() for key in ready)
        heads = (next(iter(self._queues[key].packets.values())) for key in keys)
        return min((head.ready_at for head in heads), default=None)

    def usage(self) -> list[Usage]:
        """Return what is kept, by target and family."""
        found: dict[tuple[int, bool], Usage] = {}
        for queue, (mark, ipv4, _) in self._filled.items():
            oldest = next(iter(queue.packets.values())).first_copy_at
            known = found.get((mark, ipv4))
            more = Usage(mark, ipv4, len(queue.packets), queue.used_bytes, oldest, queue.mode)
            found[mark, ipv4] = more if known is None else known.plus(more)
        return list(found.values())

    def expire(self, now: float) -> None:
        """Drop the packets that are too old."""
        oldest = now - self.bounds.max_age_s
        for queue in list(self._filled):
            for name in [name for name, waiting in queue.packets.items() if waiting.since < oldest]:
                self._remove(queue, name)
                self.dropped[Dropped.TOO_OLD] += 1

    def clear(self, reason: str) -> None:
        """Drop all packets, for a named reason."""
        for queue in list(self._filled):
            self._clear(queue, reason)

    def _make_room(self, newcomer: _Queue) -> None:
        """Drop the oldest packet of the newcomer's queue if that uses more than its share, else of the largest."""
        share = 1 / max(1, len(self._filled))
        if self._use(newcomer) > share or len(self._filled) == 1:
            victim, reason = newcomer, Dropped.SHARE_USED
            mark, _, responsive = self._filled[newcomer]
            self.crowded[mark, responsive] += 1
        else:
            # One that was the largest is taken until it is down to its share: looking at all queues each time is slow.
            if self._largest not in self._filled or self._use(self._largest) <= share:
                self._largest = max(self._filled, key=self._use)
            victim, reason = self._largest, Dropped.FULL
        self._remove(victim, next(iter(victim.packets)))
        self.dropped[reason] += 1

    def _use(self, queue: _Queue) -> float:
        return max(len(queue.packets) / self.bounds.packets, queue.used_bytes / self.bounds.memory_bytes)

    def _remove(self, queue: _Queue, name: Hashable) -> None:
        waiting = queue.packets.pop(name)
        self._count(queue, -1, -waiting.size)
        if not queue.packets:
            key = self._filled.pop(queue)
            self._ready[key[2]].pop(key, None)

    def _clear(self, queue: _Queue, reason: str) -> None:
        self.dropped[reason] += len(queue.packets)
        for name in list(queue.packets):
            self._remove(queue, name)
        queue.given.clear()

    def _count(self, queue: _Queue, packets: int, size: int) -> None:
        self.packets += packets
        self.memory_bytes += size
        queue.used_bytes += size

    def _update_ready(self, key: QueueKey, queue: _Queue) -> None:
        if queue.packets and queue.mode is ParkingMode.GIVE_BACK:
            self._ready[key[2]].setdefault(key)
        else:
            self._ready[key[2]].pop(key, None)


def _key(parked: ParkedPacket) -> QueueKey:
    return parked.mark, parked.ipv4, parked.responsive
