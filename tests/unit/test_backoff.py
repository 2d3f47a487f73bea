"""How long our gRPC clients wait before they dial again: longer each time, and never longer than the setting says.

The mesh's own clients wait up to 5 s, which is part of why its repairs take an unknown time; ours must not add to it.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from contextvars import Context
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVarTuple

import pytest
from prometheus_client import CollectorRegistry
from pydantic import BaseModel

from lbguard.nsm import ConnectionScope, ManagerStream
from lbguard.probe.datapath import ProbeCounters
from lbguard.probe.metrics import ProbeMetrics
from lbguard.probe.report_stream import ReporterSettings, ReportStream
from lbguard.rpc.channels import ChannelError, ChannelSpec, Session
from lbguard.settings.notation import Endpoint, parse_dial_address
from lbguard.settings.probe import NsmSettings, ProbeSettings
from lbguard.settings.surroundings import NsmEventSettings, NspSettings
from lbguard.sources.nsp.lists import Place
from lbguard.sources.nsp.source import NspConfig, NspSource

ATTEMPTS = 12
Arguments = TypeVarTuple("Arguments")


class HastyLoop(asyncio.SelectorEventLoop):
    """A loop on which no time passes: every timer is due at once, and `waits` tells how far off each was set."""

    def __init__(self) -> None:
        self.waits: list[float] = []
        super().__init__()

    def time(self) -> float:
        return 0.0

    def call_at(
        self, when: float, callback: Callable[[*Arguments], object], *args: *Arguments, context: Context | None = None
    ) -> asyncio.TimerHandle:
        self.waits.append(when)
        return super().call_at(0.0, callback, *args, context=context)


class NobodyThere:
    """A dialer that never succeeds, and says so when it has been asked often enough."""

    def __init__(self, enough: asyncio.Event) -> None:
        self.asked = 0
        self._enough = enough

    @contextlib.asynccontextmanager
    async def dial(self, endpoint: Endpoint) -> AsyncIterator[Session]:
        self.asked += 1
        if self.asked > ATTEMPTS:
            self._enough.set()
        raise ChannelError("nobody is there")
        yield

    def stamp(self) -> object:
        return None


def waits_of(client: Callable[[asyncio.Event], Coroutine[Any, Any, None]]) -> list[float]:
    """Run a client until it gives `enough`, and return the waits between its attempts."""
    loop = HastyLoop()

    async def run() -> None:
        enough = asyncio.Event()
        task = asyncio.create_task(client(enough))
        await enough.wait()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(run())
    waits = [wait for wait in loop.waits if wait > 0]
    assert len(waits) >= ATTEMPTS
    return waits[:ATTEMPTS]


def reports(enough: asyncio.Event, max_s: float) -> Coroutine[Any, Any, None]:
    metrics = ProbeMetrics(CollectorRegistry(), ProbeCounters())
    endpoint = parse_dial_address("tcp://127.0.0.1:7443")
    return ReportStream("lb", (endpoint,), NobodyThere(enough), ReporterSettings(backoff_max_s=max_s), metrics).run()


def manager(enough: asyncio.Event, max_s: float) -> Coroutine[Any, Any, None]:
    return ManagerStream(
        parse_dial_address("unix:///nobody"),
        NobodyThere(enough),
        ConnectionScope(),
        on_event=lambda event: None,
        lose=lambda reason: None,
        backoff_max_s=max_s,
    ).run()


@pytest.mark.parametrize("max_s", [1.0, 0.3])
@pytest.mark.parametrize("client", [reports, manager])
def test_waits_grow_up_to_the_setting(
    client: Callable[[asyncio.Event, float], Coroutine[Any, Any, None]], max_s: float
) -> None:
    waits = waits_of(lambda enough: client(enough, max_s))
    assert waits[0] < max_s / 2
    assert all(before < after or after == max_s for before, after in pairwise(waits)), waits
    assert max(waits) == waits[-1] == max_s


@pytest.mark.parametrize("max_s", [1.0, 0.3])
def test_waits_for_the_registry_grow_up_to_the_setting(tmp_path: Path, max_s: float) -> None:
    """Its waits are spread at random between one half and the whole, so that not all pods dial at one moment."""
    channel = ChannelSpec(endpoint=parse_dial_address(f"unix://{tmp_path}/nobody"), keepalive_s=0)
    config = NspConfig(place=Place("trench-a", "conduit-a"), channel=channel, max_backoff_s=max_s)

    async def watch(enough: asyncio.Event) -> None:
        attempts = 0

        def clock() -> float:
            # Asked once at the beginning and once at the end of a session.
            nonlocal attempts
            attempts += 1
            if attempts > 2 * ATTEMPTS:
                enough.set()
            return 0.0

        await NspSource(config, lambda event: None, clock=clock).run()

    waits = waits_of(watch)
    assert waits[0] < max_s / 2
    assert all(max_s / 2 <= wait <= max_s for wait in waits[-4:]), waits
    assert max(waits) <= max_s


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        (ProbeSettings, "report_backoff_max"),
        (NsmSettings, "backoff_max"),
        (NsmEventSettings, "backoff_max"),
        (NspSettings, "max_backoff"),
    ],
)
def test_the_longest_wait_is_a_second_unless_set(settings: type[BaseModel], name: str) -> None:
    assert settings.model_fields[name].default == 1.0
