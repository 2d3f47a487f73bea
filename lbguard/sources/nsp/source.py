"""Source `nsp`: streams and targets of one conduit from Meridio's registry (NSP).

Three watches (streams, VIPs, targets) give one list, once each has answered. The loss of the registry changes nothing:
it is reported once, the last list stays, and removals in the first list after it are delayed (`compose.py`).
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterable, Callable, Coroutine
from dataclasses import dataclass, replace
from typing import TypeVar

import grpc

from lbguard.api.gen.meridio.nsp.v1 import nsp_pb2 as pb
from lbguard.api.gen.meridio.nsp.v1 import nsp_pb2_grpc as pb_grpc
from lbguard.core.events import SourceLost, SourceSnapshot
from lbguard.core.model import DEFAULT_OFFSET
from lbguard.rpc.channels import ChannelSpec, Session, open_channel
from lbguard.sources.connected import RELOAD, ConnectedSource, Ending, first_end
from lbguard.sources.nsp.compose import Composer, NspLists, SeenOffsets
from lbguard.sources.nsp.lists import Place, Read, read_streams, read_targets, read_vips
from lbguard.telemetry.log import fields

_log = logging.getLogger("lbguard.sources.nsp")

_POSTPONED_S = 0.1
_KEEPALIVE_MAX_S = 600.0
_TOO_MANY_PINGS = "too_many_pings"
_WATCHES = ("streams", "vips", "targets")
_LARGE_BYTES = 64 * 1024  # about 700 targets, parsed in 6 ms: larger lists are parsed in a thread

Value = TypeVar("Value")
Response = TypeVar("Response", pb.StreamResponse, pb.VipResponse, pb.TargetResponse)


@dataclass(frozen=True, slots=True, kw_only=True)
class NspConfig:
    """Registry to watch, and its timing. Times in seconds.

    `settle_s` and `settle_share`: see `RemovalHoldDown`. `recheck_s`: how often offsets in force are read again.
    """

    place: Place
    channel: ChannelSpec
    max_backoff_s: float = 1.0
    settle_s: float = 60.0
    settle_share: float = 0.5
    offset_start: int = DEFAULT_OFFSET
    recheck_s: float = 10.0


class NspSource(ConnectedSource):
    """Watcher of a registry that reports every list and the registry's loss.

    Args:
        config: what to watch.
        emit: receives what is reported, in the thread of the event loop.
        seen_offsets: reads offsets back; None: they are calculated.
        follow_offsets: adopt an offset in force that differs from the reported one. The core then ends the stream and
            begins it again, so this is only for a distributor of another program.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        config: NspConfig,
        emit: Callable[[SourceSnapshot | SourceLost], None],
        *,
        seen_offsets: SeenOffsets | None = None,
        follow_offsets: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(
            "registry",
            str(config.channel.endpoint),
            emit,
            max_backoff_s=config.max_backoff_s,
            clock=clock,
            log=_log,
        )
        self._config = config
        self._wake = asyncio.Event()
        self._keepalive_s = config.channel.keepalive_s
        self._answered: set[str] = set()
        self._postponed = False
        self._lists = NspLists(config.settle_s, config.settle_share)
        self._composer = Composer(config.offset_start, seen_offsets, follow=follow_offsets)

    # One session

    async def _session(self) -> Ending:
        """Watch until one part ends; return the kind and the text of the end."""
        self._answered.clear()
        self._lists.begin_session()
        async with open_channel(replace(self._config.channel, keepalive_s=self._keepalive_s)) as session:
            return await first_end(self._parts(session))

    def _parts(self, session: Session) -> tuple[Coroutine[None, None, Ending], ...]:
        place = self._config.place
        conduit = pb.Conduit(name=place.conduit, trench=pb.Trench(name=place.trench))
        configuration = pb_grpc.ConfigurationManagerStub(session.channel)
        registry = pb_grpc.TargetRegistryStub(session.channel)
        wanted = pb.Target(status=pb.Target.ENABLED, type=pb.Target.DEFAULT, stream=pb.Stream(conduit=conduit))
        return (
            self._watch(
                session,
                "streams",
                configuration.WatchStream(pb.Stream(conduit=conduit)),
                read_streams,
                self._lists.apply_streams,
            ),
            self._watch(
                session,
                "vips",
                configuration.WatchVip(pb.Vip(trench=conduit.trench)),
                read_vips,
                self._lists.apply_vips,
            ),
            self._watch(session, "targets", registry.Watch(wanted), read_targets, self._lists.apply_targets),
            self._compose_when_due(),
            self._await_reload(),
        )

    async def _watch(
        self,
        session: Session,
        name: str,
        call: AsyncIterable[Response],
        read: Callable[[Response, Place], Read[Value]],
        take: Callable[[Value, float], None],
    ) -> Ending:
        last: Response | None = None
        try:
            async for response in call:
                self.counters.lists[name] += 1
                # Every refresh of any target makes the registry send the whole list again.
                if response == last:
                    continue
                last = response
                if response.ByteSize() > _LARGE_BYTES:
                    found = await asyncio.to_thread(read, response, self._config.place)
                else:
                    found = read(response, self._config.place)
                take(found.value, self._clock())
                self._note_skipped(name, found.skipped)
                self._answered.add(name)
                self._wake.set()
        except grpc.aio.AioRpcError as error:
            return error.code().name, f"watch of {name}: {session.reason_of(error)}"
        return "ENDED", f"watch of {name}: ended by the registry"

    async def _compose_when_due(self) -> Ending:
        while True:
            waits = [self._config.recheck_s] if self._composer.reads_back else []
            if self._postponed:
                waits.append(_POSTPONED_S)
            settles_at = self._lists.settles_at
            if settles_at is not None:
                waits.append(max(0.0, settles_at - self._clock()))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), min(waits, default=None))
            self._wake.clear()
            self._lists.expire(self._clock())
            if len(self._answered) == len(_WATCHES):
                self._compose()

    # Telling

    def _compose(self) -> None:
        self._begin_service()
        lists = self._lists
        self.counters.waiting = lists.waits
        if lists.streams is None or lists.vips is None or lists.targets is None:
            self._lose("EMPTY", "the registry lists no stream yet")
            return
        composed = self._composer.compose(lists.streams, lists.vips, lists.targets)
        self._postponed = composed is None
        if composed is None:
            return
        self._note_skipped("list", composed.skipped)
        if composed.moved:
            _log.warning("marks changed under us", extra=fields(streams=", ".join(composed.moved)))
            staying = tuple(spec for spec in composed.streams if spec.name not in composed.moved)
            self._report(SourceSnapshot(streams=staying))
        self._report(SourceSnapshot(streams=composed.streams))

    def _end_session(self, code: str, reason: str) -> None:
        if code != RELOAD and _TOO_MANY_PINGS in reason.lower().replace(" ", "_"):
            # gRPC servers in Go refuse pings of an idle client more often than every 5 minutes by default.
            self._keepalive_s = min(self._keepalive_s * 2, _KEEPALIVE_MAX_S)
        super()._end_session(code, reason)
