"""Interface of every source of targets."""

from typing import Protocol

from lbguard.core.events import SourceLost, SourceSnapshot

SourceEvent = SourceSnapshot | SourceLost


class Source(Protocol):
    """Tells of full lists and of losses through a callable given at construction, in the event loop's thread."""

    async def run(self) -> None:
        """Follow the source until cancelled."""

    def reload(self) -> None:
        """Look now, and tell what is found, changed or not."""
