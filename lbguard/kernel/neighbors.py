"""Neighbour entries: flushes, resolves and verifies them, in batches; each operation is idempotent."""

import errno
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from lbguard.core.addr import Ip
from lbguard.core.effects import FlushNeighbors, ProbeNeighbors, ResolveNeighbors
from lbguard.kernel.channel import NetlinkChannel
from lbguard.kernel.codec.encode import delete_neighbor, probe_neighbor, resolve_neighbor

_ABSENT: Final = frozenset({errno.ENOENT, errno.ENODEV})
# There is no entry, or it has no link-layer address to verify.
_NOT_RESOLVED: Final = frozenset({errno.ENOENT, errno.EINVAL})

Entry = tuple[int, Ip]


@dataclass(frozen=True, slots=True, kw_only=True)
class NeighborFailure:
    """The kernel refused an operation on a neighbour entry."""

    ifindex: int
    ip: Ip
    reason: str


class Neighbors:
    """Carries out neighbour effects. Their results arrive as neighbour events of the kernel; refusals are returned."""

    def __init__(self, channel: NetlinkChannel) -> None:
        self._channel = channel

    async def flush(self, effect: FlushNeighbors) -> list[NeighborFailure]:
        """Delete exactly these entries; absent entries (or links) are not failures."""
        return await self._each(effect.entries, delete_neighbor, _ABSENT)

    async def resolve(self, effect: ResolveNeighbors) -> list[NeighborFailure]:
        """Start resolving these addresses; a valid entry stays unchanged (a stale one is verified soon)."""
        return await self._each(effect.entries, resolve_neighbor, frozenset())

    async def probe(self, effect: ProbeNeighbors) -> list[NeighborFailure]:
        """Verify these entries now; resolve those that do not exist or have no address."""
        failures = []
        unresolved = []
        acks = await self._channel.submit([probe_neighbor(ifindex, ip) for ifindex, ip in effect.entries])
        for (ifindex, ip), ack in zip(effect.entries, acks, strict=True):
            if ack.error in _NOT_RESOLVED:
                unresolved.append((ifindex, ip))
            elif ack.error:
                failures.append(NeighborFailure(ifindex=ifindex, ip=ip, reason=ack.reason))
        return failures + await self._each(tuple(unresolved), resolve_neighbor, frozenset())

    async def _each(
        self, entries: tuple[Entry, ...], encode: Callable[[int, Ip], bytes], accepted: frozenset[int]
    ) -> list[NeighborFailure]:
        acks = await self._channel.submit([encode(ifindex, ip) for ifindex, ip in entries])
        return [
            NeighborFailure(ifindex=ifindex, ip=ip, reason=ack.reason)
            for (ifindex, ip), ack in zip(entries, acks, strict=True)
            if ack.error and ack.error not in accepted
        ]
