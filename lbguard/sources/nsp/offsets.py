"""Identifier offsets of streams, which Meridio's registry does not have: the load balancer chooses them. Pure.

The rule of Meridio's load balancer: a stream gets the lowest offset, from IDENTIFIER_OFFSET_START (5000) up, at which a
range of `max_targets` numbers overlaps no range of another stream. It keeps that offset and its size while it is
listed. Within one list, new streams get their offsets in the order of the list, before the ranges of removed streams
are freed. So offsets depend on the history, not on the list alone, and the state of kernel and distributor is better
evidence than a calculation.

(Meridio's range is offset .. offset + max_targets - 1, while its marks are offset + 1 .. offset + max_targets.
Neighbouring ranges have the same shift, so they do not overlap.)
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from lbguard.core.addr import Ip
from lbguard.core.model import DEFAULT_OFFSET, MAX_MARK, RESERVED_TABLES


class Range(NamedTuple):
    """The offset of a stream and its number of targets."""

    offset: int
    size: int

    def meets(self, other: "Range") -> bool:
        """Return whether two ranges share a number."""
        return self.offset < other.offset + other.size and other.offset < self.offset + self.size


@dataclass(frozen=True, slots=True, kw_only=True)
class Assigned:
    """Ranges of the listed streams by name. `without`: streams without a range, since the marks are used up."""

    ranges: Mapping[str, Range]
    without: tuple[str, ...] = ()


class OffsetAllocator:
    """Allocator of ranges.

    Args:
        start: the lowest offset.
    """

    def __init__(self, start: int = DEFAULT_OFFSET) -> None:
        self._start = start
        self._ranges: dict[str, Range] = {}

    def get(self, stream: str) -> Range | None:
        """Return the range of a stream, if it has one."""
        return self._ranges.get(stream)

    def assign(self, streams: Mapping[str, int], seen: Mapping[str, int] | None = None) -> Assigned:
        """Give every listed stream a range and free those of the others.

        Args:
            streams: room for targets by name, in the order of the list.
            seen: offsets in force, as read back. They are used for streams that have no range yet.
        """
        new = [name for name in streams if name not in self._ranges]
        for name in new:
            if seen is not None and name in seen:
                self._ranges[name] = Range(seen[name], streams[name])
        without = []
        for name in new:
            if name not in self._ranges:
                lowest = self._lowest(streams[name])
                if lowest is None:
                    without.append(name)
                else:
                    self._ranges[name] = lowest
        self._ranges = {name: taken for name, taken in self._ranges.items() if name in streams}
        return Assigned(ranges=dict(self._ranges), without=tuple(without))

    def forget(self, stream: str) -> None:
        """Free the range of a stream, so that it gets another one."""
        self._ranges.pop(stream, None)

    def _lowest(self, size: int) -> Range | None:
        offset = self._start
        # In ascending order one pass is enough: a skipped range ends before the next candidate.
        for taken in sorted(self._ranges.values()):
            if Range(offset, size).meets(taken):
                offset = taken.offset + taken.size
        if offset + size > MAX_MARK:
            return None
        return Range(offset, size)


def is_possible(offset: int, size: int) -> bool:
    """Return whether an offset that was read back is valid: its marks exist and none is a reserved route table."""
    first, last = offset + 1, offset + size
    return offset >= 0 and last <= MAX_MARK and not (first < RESERVED_TABLES.stop and last >= RESERVED_TABLES.start)


def offset_of_table(marks: Sequence[int]) -> int | None:
    """Return the offset that a distributor's table implies; None when it implies none.

    Args:
        marks: the fwmark by index, negative where inactive; index 0 is identifier 1.
    """
    offsets = {mark - (index + 1) for index, mark in enumerate(marks) if mark >= 0}
    return offsets.pop() if len(offsets) == 1 else None


def offset_of_routes(
    targets: Mapping[int, Iterable[Ip]], tables: Mapping[Ip, Collection[int]], taken: Collection[int] = ()
) -> int | None:
    """Return the offset that the targets' routes imply; None when they imply none, or several equally.

    Args:
        targets: addresses by identifier.
        tables: route tables by gateway, without the kernel's own.
        taken: known offsets of other streams. One target may be in several streams, with a table in each.
    """
    votes: Counter[int] = Counter()
    for identifier, ips in targets.items():
        votes.update({table - identifier for ip in ips for table in tables.get(ip, ())})
    for offset in taken:
        del votes[offset]
    ranked = votes.most_common(2)
    if not ranked or (len(ranked) == 2 and ranked[0][1] == ranked[1][1]):
        return None
    return ranked[0][0]
