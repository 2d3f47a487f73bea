"""A service that commands can ask: a state and a history, served on a real socket."""

import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from lbguard.api.feeds import DecisionLog
from lbguard.api.server import ApiServer
from lbguard.core.model import Decision, TargetKey
from lbguard.core.status import GuardStatus


class ServedGuard:
    """What the API reads of a service."""

    def __init__(self, state: GuardStatus) -> None:
        self.log = DecisionLog()
        self.state = state

    async def status(self) -> GuardStatus:
        return self.state

    def decisions(self, target: TargetKey | None, limit: int) -> Sequence[tuple[Decision, float]]:
        return self.log.last(target, limit)

    @contextlib.asynccontextmanager
    async def serving(self, directory: Path) -> AsyncIterator[str]:
        """Serve it in a directory; yields the socket's path."""
        server = ApiServer(directory / "lbguard.sock", self, self.log)
        await server.start()
        try:
            yield str(directory / "lbguard.sock")
        finally:
            await server.stop(0)
