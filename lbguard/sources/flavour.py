"""The load balancers that run nfqlb: Meridio and Meridio-2. Pure.

In Meridio, a stream's memory has the name `tshm-` and the stream's name, and identifiers begin at 1. In Meridio-2 the
memory has the name of the DistributionGroup, which is the stream, and identifiers begin at 0.
"""

from enum import StrEnum

from lbguard.core.model import NAME_PATTERN

SHM_PREFIX = "tshm-"
"""Prefix of the names of memories in Meridio."""


class Flavour(StrEnum):
    """A load balancer: how it names memories, counts targets and takes them out."""

    MERIDIO = "meridio"
    MERIDIO_2 = "meridio-2"

    @property
    def first_identifier(self) -> int:
        """The identifier of the target at index 0."""
        return 1 if self is Flavour.MERIDIO else 0

    @property
    def verifies_paths(self) -> bool:
        """Return whether it deactivates a target when its path is lost, and activates it again later."""
        return self is Flavour.MERIDIO

    def memory(self, stream: str) -> str:
        """Return the name of a stream's memory."""
        return SHM_PREFIX + stream if self is Flavour.MERIDIO else stream


def flavour_of(memory: str, wanted: Flavour | None) -> Flavour:
    """Return the load balancer that a memory belongs to: the wanted one, or the one that its name shows."""
    if wanted is not None:
        return wanted
    return Flavour.MERIDIO if memory.startswith(SHM_PREFIX) else Flavour.MERIDIO_2


def stream_of(memory: str, flavour: Flavour) -> str | None:
    """Return the name of the stream that a memory belongs to; None when it cannot be one of this load balancer."""
    name = memory if flavour is Flavour.MERIDIO_2 else memory.removeprefix(SHM_PREFIX)
    has_prefix = flavour is Flavour.MERIDIO_2 or name != memory
    return name if has_prefix and NAME_PATTERN.fullmatch(name) is not None else None
