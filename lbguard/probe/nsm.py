"""Connections from a network service manager: its MonitorConnections stream, followed for as long as we run.

The list is reported again at every event, at once and whole. When the stream ends nothing changes but that the source
counts as lost; the next stream begins with all connections and thereby ends those that were closed meanwhile.
"""

from lbguard.api.gen.nsm.connection import connection_pb2 as pb
from lbguard.nsm.manager import ManagerStream
from lbguard.probe.nsm_view import NsmScope, NsmView
from lbguard.probe.source import ConnectionsLost, Emit
from lbguard.rpc.channels import Dialer
from lbguard.settings.dial_address import Endpoint


class NsmSource:
    """Follows one manager.

    Args:
        endpoint: where it is.
        dialer: makes channels to it.
        scope: which connections count; must be the view's.
        view: holds them.
        emit: takes the list at every event, and a loss once.
        backoff_max_s: the longest wait before dialling again.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        dialer: Dialer,
        scope: NsmScope,
        view: NsmView,
        emit: Emit,
        *,
        backoff_max_s: float = 1.0,
    ) -> None:
        self._view = view
        self._emit = emit
        self._listed = False
        self._stream = ManagerStream(
            endpoint, dialer, scope, hear=self._hear, lose=self._lose, backoff_max_s=backoff_max_s
        )

    def reload(self) -> None:
        """Report the list again, as links and addresses are now; before the first list there is nothing to report."""
        if self._listed:
            self._emit(self._view.connections())

    async def run(self) -> None:
        """Follow the manager until cancelled."""
        await self._stream.run()

    def _hear(self, event: pb.ConnectionEvent) -> None:
        self._view.apply(event)
        self._listed = True
        self._emit(self._view.connections())

    def _lose(self, reason: str) -> None:
        self._emit(ConnectionsLost(reason=reason))
