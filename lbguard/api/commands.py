"""Interface between the service for operators and the core. It imports no gRPC, which takes long to load."""

from dataclasses import dataclass
from typing import Protocol

from lbguard.core.effects import OverrideAnswered
from lbguard.core.events import OverrideRequested
from lbguard.core.model import TargetKey, TargetState

FIELD_KEY, ALLOWED_KEY = "lbguard-field", "lbguard-allowed"
"""Metadata of the refusal of a request: its wrong field, and what is allowed there, in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The core's answer to a request. `not_remembered`: why a restart would forget it; empty: it would not."""

    answer: OverrideAnswered
    not_remembered: str = ""


class Control(Protocol):
    """Way of a request to the core."""

    async def request(self, event: OverrideRequested) -> Outcome:
        """Let the core decide, and make the result survive a restart."""

    def state(self, key: TargetKey) -> TargetState | None:
        """Return the present state of a target; None: it is gone."""
