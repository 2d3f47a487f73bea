"""Follows a set of connections and emits a verdict on each, from the running asyncio loop."""

import time
from collections.abc import Callable, Sequence

from lbguard.core.model import Verdict
from lbguard.probe.connection import Connection
from lbguard.probe.judge import JudgeSettings

Emit = Callable[[Verdict], None]
Clock = Callable[[], float]


class Monitor:
    """Pings every pair of the connections it is given and emits verdicts.

    All methods belong to the thread of the event loop. The sockets are opened by the constructor's caller's network
    namespace. `emit` is called in line and must neither block nor raise; it may call `set_connections`.
    """

    def __init__(self, settings: JudgeSettings, emit: Emit, clock: Clock = time.monotonic) -> None:
        self._settings = settings
        self._emit = emit
        self._clock = clock
        self._connections: dict[str, Connection] = {}

    def set_connections(self, connections: Sequence[Connection]) -> None:
        """Follow exactly these connections, matched by id with those of before.

        A connection that is no longer listed gets one ENDED verdict, in line, and never another one. One that changed
        is followed with its new addresses at once, in a new generation.

        Raises:
            ValueError: two connections have one id.
        """
        following = {connection.id: connection for connection in connections}
        if len(following) != len(connections):
            raise ValueError("two connections have one id")
        self._connections = following

    async def run(self) -> None:
        """Probe until cancelled; then close the sockets. Nothing is said of what was followed: leases run out."""
        raise NotImplementedError
