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
from lbguard.settings.changes import Difference
from lbguard.settings.sources import MAX_BYTES, SettingsError

PIECE_BYTES = 4096
"""Content of one message. The server's limit of a message is for verdicts, and smaller than a file may be."""
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
        content, name = bytearray(), ""
        try:
            async with asyncio.timeout(REQUEST_WITHIN_S):
                async for request in request_iterator:
                    if isinstance(request, InvalidField):
                        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(request))
                    content += request.content
                    name = name or request.name
                    if len(content) > MAX_BYTES:
                        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, _TOO_LARGE)
        except TimeoutError:
            await context.abort(
                grpc.StatusCode.DEADLINE_EXCEEDED, f"the file did not arrive within {REQUEST_WITHIN_S:g} s"
            )
        try:
            found = await self._view.compare(bytes(content), Path(name or "settings"))
        except SettingsError as error:
            return pb.CompareSettingsResponse(problems=error.lines)
        return pb.CompareSettingsResponse(
            differences=[
                pb.SettingDifference(name=each.name, running=each.running, wanted=each.wanted, live=each.live)
                for each in found
            ]
        )
