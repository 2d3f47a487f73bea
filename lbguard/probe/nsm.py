"""Connections from a network service manager: its MonitorConnections stream, followed for as long as we run.

The list is told again at every event, at once and whole. When the stream ends nothing changes but that the source
counts as lost; the next stream begins with all connections and thereby ends those that were closed meanwhile.
"""

import asyncio
import contextlib
import logging

import grpc

from lbguard.api.gen.nsm.connection import connection_pb2_grpc as pb_grpc
from lbguard.log import fields
from lbguard.probe.addresses import Endpoint
from lbguard.probe.channels import Backoff, ChannelError, Dialer, reason_of
from lbguard.probe.nsm_view import NsmScope, NsmView
from lbguard.probe.source import ConnectionsLost, Emit

_log = logging.getLogger("lbguard.probe.nsm")

ROTATION_LOOK_S = 1.0
"""How often the TLS files are looked at."""


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
        self._endpoint = endpoint
        self._dialer = dialer
        self._scope = scope
        self._view = view
        self._emit = emit
        self._backoff = Backoff(backoff_max_s)
        self._lost = ""
        self._listed = False

    def reload(self) -> None:
        """Tell the list again, as links and addresses are now; before the first list there is nothing to tell."""
        if self._listed:
            self._emit(self._view.connections())

    async def run(self) -> None:
        """Follow the manager until cancelled."""
        while True:
            try:
                reason = await self._follow()
            except ChannelError as error:
                reason = str(error)
            if reason and reason != self._lost:
                self._lost = reason
                self._emit(ConnectionsLost(reason=f"{self._endpoint}: {reason}"))
            await asyncio.sleep(self._backoff.next_s())

    async def _follow(self) -> str:
        """Follow one stream to its end and return why it ended; empty when it is to be begun again at once."""
        stamp = self._dialer.stamp()
        async with self._dialer.dial(self._endpoint) as session:
            stub: pb_grpc.MonitorConnectionAsyncStub = pb_grpc.MonitorConnectionStub(session.channel)
            call = stub.MonitorConnections(self._scope.selector())
            rotation = asyncio.create_task(_cancel_when_rotated(self._dialer, stamp, call))
            try:
                async for event in call:
                    self._backoff.reset()
                    self._lost = ""
                    self._view.apply(event)
                    self._listed = True
                    self._emit(self._view.connections())
            except grpc.aio.AioRpcError as error:
                return session.problem or reason_of(error)
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
                _log.info("new certificates: dialling again", extra=fields(address=str(self._endpoint)))
                return ""
            finally:
                rotation.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await rotation
        return "the manager ended the stream"


async def _cancel_when_rotated(dialer: Dialer, stamp: object, call: grpc.aio.Call) -> None:
    while dialer.stamp() == stamp:  # noqa: ASYNC110 (files tell nothing by themselves)
        await asyncio.sleep(ROTATION_LOOK_S)
    call.cancel()
