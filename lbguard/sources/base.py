"""Interface of every source of targets."""

from typing import Protocol

from lbguard.core.events import SourceLost, SourceSnapshot

SourceEvent = SourceSnapshot | SourceLost


class Source(Protocol):
    """Source of full lists and losses, which it passes to a callable in the event loop's thread."""

    async def run(self) -> None:
        """Follow the source until cancelled."""

    def reload(self) -> None:
        """Read now, and report the result even if it is unchanged."""
