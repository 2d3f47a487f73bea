"""The one notification that comes by the thousand, remembered: a neighbour entry that was verified once more.

Each verify probe ends in such a message, and for one entry its beginning is the same byte by byte every time: header,
state, address, link-layer address. What follows (ages, counts) is of no interest. So each is decoded once, and after
that a look into a table gives the event. A message of another length is none of these.
"""

from functools import lru_cache
from struct import Struct
from typing import Final

from lbguard.core.events import NeighborSeen
from lbguard.core.model import NeighborState
from lbguard.kernel.codec import constants as c
from lbguard.kernel.codec.decode import decode
from lbguard.kernel.codec.rtnetlink import Buffer

_REMEMBERED: Final = 16_384
_LENGTH: Final = Struct("=I")
# Of the message header: length, type, flags; of struct ndmsg: family, state.
_FIXED: Final = Struct("=IHH8xB7xH")
# Message header, struct ndmsg, address, Ethernet address (padded): the order in which the kernel writes them.
_BEGINNINGS: Final = {c.AF_INET: 16 + 12 + 8 + 12, c.AF_INET6: 16 + 12 + 20 + 12}
# Number of probes and ages follow. Anything more says who made the entry, which `decode` has to see.
_REST: Final = Struct("=HH4xHH16x")
_REST_HEADERS: Final = (8, c.NDA_PROBES, 20, c.NDA_CACHEINFO)


def lone_neighbor(data: Buffer, length: int) -> NeighborSeen | None:
    """Return the event of a datagram that is a single such notification, as `decode` gives it; None for any other.

    Args:
        data: a buffer that starts with the datagram.
        length: how many bytes of it the datagram fills; bytes after that are never used.
    """
    if length < _FIXED.size:
        return None
    told, kind, flags, family, state = _FIXED.unpack_from(data)
    if kind != c.RTM_NEWNEIGH or state != NeighborState.REACHABLE or flags or told != length:
        return None
    size = _BEGINNINGS.get(family)
    if size is None or length != size + _REST.size or _REST.unpack_from(data, size) != _REST_HEADERS:
        return None
    return _event(bytes(data[:size]))


@lru_cache(maxsize=_REMEMBERED)
def _event(beginning: bytes) -> NeighborSeen | None:
    """Decode a message as if it ended here. Complete without the rest, it would be the same with it."""
    decoded = decode(_LENGTH.pack(len(beginning)) + beginning[_LENGTH.size :], len(beginning), lambda _: False)
    event = decoded.changes[0].event if decoded.changes else None
    return event if isinstance(event, NeighborSeen) and event.mac else None
