"""The settings of the running service over the API: what a file would change."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Protocol

import grpc

from lbguard.api.calls import REQUEST_WITHIN_S
from lbguard.api.gen.v1 import lbguard_pb2 as pb
from lbguard.api.gen.v1 import lbguard_pb2_grpc as pb_grpc
from lbguard.api.verdicts.convert import InvalidField
from lbguard.settings.difference import Difference
from lbguard.settings.sources import MAX_BYTES, SettingsError

_TOO_LARGE = f"the file is larger than {MAX_BYTES // 2**20} MiB"


class SettingsView(Protocol):
    """View of the settings that are in force."""

    async def compare(self, content: bytes, path: Path) -> Sequence[Difference]:
        """Return what a file would change.

        Raises:
            SettingsError: it would be refused.
        """


class SettingsService(pb_grpc.SettingsServiceServicer):
    """Compares files with the settings in force."""

    def __init__(self, view: SettingsView) -> None:
        self._view = view

    async def CompareSettings(  # noqa: D102, N802 (the protocol names and describes it)
        self,
        request_iterator: AsyncIterator[pb.CompareSettingsRequest],
        context: grpc.aio.ServicerContext[pb.CompareSettingsRequest, pb.CompareSettingsResponse],
    ) -> pb.CompareSettingsResponse:
        reading = asyncio.ensure_future(_read_all(request_iterator))
        reading.add_done_callback(lambda done: done.cancelled() or done.exception())  # it may not be awaited any more
        # After the time the read goes on: gRPC ends it together with the call, and does not survive its cancellation.
        done, _ = await asyncio.wait({reading}, timeout=REQUEST_WITHIN_S)
        if not done:
            await context.abort(
                grpc.StatusCode.DEADLINE_EXCEEDED, f"the file did not arrive within {REQUEST_WITHIN_S:g} s"
            )
        content, name, problem = await reading
        if problem:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, problem)
        try:
            found = await self._view.compare(content, Path(name or "settings"))
        except SettingsError as error:
            return pb.CompareSettingsResponse(problems=error.lines)
        return pb.CompareSettingsResponse(
            differences=[
                pb.SettingDifference(name=each.name, running=each.running, wanted=each.wanted, live=each.live)
                for each in found
            ]
        )


async def _read_all(requests: AsyncIterator[pb.CompareSettingsRequest]) -> tuple[bytes, str, str]:
    """Return content and name of a file, and why it is refused.

    All is read, also of a file that is refused: a client that still writes may not see the reason otherwise.
    """
    content, name, problem = bytearray(), "", ""
    async for request in requests:
        if isinstance(request, InvalidField):
            problem = problem or str(request)
            continue
        name = name or request.name
        content += request.content
        if len(content) > MAX_BYTES:
            problem = problem or _TOO_LARGE
            content.clear()
    return bytes(content), name, problem
