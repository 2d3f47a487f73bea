"""View of the service that the source `interposer` needs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from lbguard.core.addr import Ip
from lbguard.core.model import TargetKey


class Core(Protocol):
    """Interface to the core. Nothing here waits."""

    @property
    def ready(self) -> bool:
        """Return whether the core decides: it has seen the kernel, and has a list."""

    @property
    def caught_up(self) -> bool:
        """Return whether the core's view of the kernel is complete and no event waits."""

    def path_lost(self, target: TargetKey, within_s: float) -> bool:
        """Return whether a link of the target's paths is missing, down or unusable, or was within a time.

        True too while the view of the kernel is incomplete: the path is then unknown, and nothing changes.
        """

    def sound_for_s(self, target: TargetKey) -> float:
        """Return for how long the target has been in the distributor with a good path; 0 when it is not."""


class Gateways(Protocol):
    """The load balancer's routes."""

    known: bool

    def gateways(self, table: int) -> tuple[Ip, ...]:
        """Return the gateways of the default routes in a table, at most one a family."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundTable:
    """A table of the distributor as it is: room for targets, and the mark by index, negative where inactive."""

    max_targets: int
    marks: Sequence[int]
