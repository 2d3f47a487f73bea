"""Interfaces to the service that the source `interposer` uses."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from lbguard.core.addr import Ip
from lbguard.core.model import TargetKey


class Core(Protocol):
    """Interface to the core. No method blocks."""

    @property
    def ready(self) -> bool:
        """Return whether the core makes decisions: it has a view of the kernel and a list."""

    @property
    def caught_up(self) -> bool:
        """Return whether the core's view of the kernel is complete and no event waits."""

    def path_lost(self, target: TargetKey, within_s: float) -> bool:
        """Return whether a link of the target's paths is missing, down or unusable, or was within a time.

        Also true while the view of the kernel is incomplete: the path is then unknown, and nothing changes.
        """

    def sound_for_s(self, target: TargetKey) -> float:
        """Return for how long the target has been in the distributor with a good path; 0 when it is not."""


class Gateways(Protocol):
    """The load balancer's routes."""

    known: bool

    def gateways(self, table: int) -> tuple[Ip, ...]:
        """Return the gateways of the default routes in a table, at most one per family."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundTable:
    """A table found in the distributor: room for targets, and the mark by index, negative where inactive."""

    max_targets: int
    marks: Sequence[int]
