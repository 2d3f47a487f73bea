"""A source that follows the model of the API server, and what it reported."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from lbguard.core.events import SourceLost, SourceSnapshot
from lbguard.core.model import StreamSpec
from lbguard.sources.kubernetes.address import ApiAddress, Resource, Times
from lbguard.sources.kubernetes.compose import Memory, StreamsConfig
from lbguard.sources.kubernetes.endpoint_slices import SERVICE_LABEL, EndpointSliceReader
from lbguard.sources.kubernetes.source import KubernetesConfig, KubernetesSource
from tests.fakes.kubernetes_api import FakeKubernetesApi

BOUND_S = 90.0


@dataclass
class MemoryKept:
    """A memory that outlives the source, as a file does."""

    content: Memory = field(default_factory=dict)
    saves: int = 0
    full: bool = False

    def load(self) -> Memory:
        return self.content

    def save(self, memory: Memory) -> bool:
        if self.full:
            return False
        self.content = memory
        self.saves += 1
        return True


@dataclass
class Followed:
    """What the source reported."""

    source: KubernetesSource
    events: list[SourceSnapshot | SourceLost]

    @property
    def lost(self) -> str:
        """The reason of the loss that was reported last; empty when the last event is a list."""
        last = self.events[-1] if self.events else None
        return last.reason if isinstance(last, SourceLost) else ""

    @property
    def streams(self) -> tuple[StreamSpec, ...]:
        """The streams of the last list."""
        lists = [event for event in self.events if isinstance(event, SourceSnapshot)]
        return lists[-1].streams if lists else ()

    def targets(self, stream: str = "web") -> dict[int, bool]:
        """The identifiers of the last list, each with whether it drains."""
        found = {each.name: each for each in self.streams}
        return {target.identifier: target.draining for target in found[stream].targets} if stream in found else {}

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until a condition holds."""
        async with asyncio.timeout(BOUND_S):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.01)


def services_config(api: FakeKubernetesApi, account: Path, *services: str, settle_s: float = 60.0) -> KubernetesConfig:
    """Return the configuration of a source that follows Services."""
    labels = f"{SERVICE_LABEL} in ({','.join(services)})"
    return KubernetesConfig(
        address=ApiAddress(url=api.url, account=account),
        resource=Resource(
            group="discovery.k8s.io", version="v1", plural="endpointslices", namespace="default", labels=labels
        ),
        read=EndpointSliceReader(services),
        streams=StreamsConfig(streams=services, settle_s=settle_s),
        max_backoff_s=0.1,
    )


def with_times(config: KubernetesConfig, **times: float) -> KubernetesConfig:
    """Return the configuration with other bounds of requests."""
    return replace(config, times=replace(Times(), **times))


@asynccontextmanager
async def running(source: Followed) -> AsyncIterator[None]:
    """Run a source."""
    task = asyncio.create_task(source.source.run())
    try:
        yield
        assert not task.done(), "the source ended"
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@asynccontextmanager
async def followed(config: KubernetesConfig, memory: MemoryKept | None = None) -> AsyncIterator[Followed]:
    """Run a source with this configuration."""
    events: list[SourceSnapshot | SourceLost] = []
    made = KubernetesSource(config, events.append, memory if memory is not None else MemoryKept())
    source = Followed(made, events)
    async with running(source):
        yield source
