"""Builds the sources beside a load balancer (interposer, kernel) from the settings; loaded only where they are used."""

import time
from collections.abc import Callable, Mapping

from lbguard.core.engine_state import EngineState
from lbguard.core.events import SourceSnapshot
from lbguard.core.model import ADMITTED, Condition, StreamSpec, TargetKey, TargetState
from lbguard.distributor.base import DistributorError
from lbguard.distributor.maglev import TableKind
from lbguard.distributor.nfqlb.memory import StreamMemory
from lbguard.service.foreign_routes import TargetRoutes
from lbguard.settings.model import Settings
from lbguard.sources.flavour import SHM_PREFIX, Flavour, flavour_of, stream_of
from lbguard.sources.interposer.registrations import FoundTable
from lbguard.sources.interposer.source import InterposerConfig, InterposerSource
from lbguard.sources.kernel import KernelSource

_LINK_CONDITIONS = frozenset(
    {Condition.NO_LINK, Condition.LINK_DOWN, Condition.NO_ADDRESS, Condition.ADDRESS_TENTATIVE}
)
"""Conditions that remove the load balancer's own route, so that its check fails. A missing route of lbguard is not
among them: it is missing briefly whenever the load balancer adds a target."""


class InterposerCore:
    """The source's view of the engine."""

    def __init__(
        self, engine: EngineState, inbox_depth: Callable[[], int], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Set the engine, the function that counts its waiting events, and its clock."""
        self._engine = engine
        self._inbox_depth = inbox_depth
        self._clock = clock

    @property
    def ready(self) -> bool:
        """Return whether the engine makes decisions."""
        return self._engine.running

    @property
    def caught_up(self) -> bool:
        """Return whether the view is complete and the inbox is empty."""
        return self._engine.in_sync and not self._inbox_depth()

    def path_lost(self, target: TargetKey, within_s: float) -> bool:
        """See `Core`."""
        if not self._engine.in_sync:
            return True
        known = self._engine.target(target)
        if known is None:
            return False
        if any(path.condition in _LINK_CONDITIONS for path in known.paths.values()):
            return True
        recovered = known.state is TargetState.ACTIVE and known.lost_at > 0 and known.lost_to in _LINK_CONDITIONS
        return recovered and self._clock() - known.since <= within_s

    def sound_for_s(self, target: TargetKey) -> float:
        """See `Core`."""
        known = self._engine.target(target)
        if known is None or known.state is not TargetState.ACTIVE or not self._engine.in_sync:
            return 0.0
        return self._clock() - known.since

    def drains(self, target: TargetKey) -> bool:
        """See `Core`."""
        known = self._engine.target(target)
        return known is not None and known.unlisted and known.state in ADMITTED

    def learns(self, stream: str) -> bool:
        """See `Core`."""
        known = self._engine.stream(stream)
        return known is not None and known.learns


def wanted_flavour(settings: Settings) -> Flavour | None:
    """Return the load balancer that makes the calls; None: their names show it."""
    named = settings.interposer.flavour
    return None if named == "auto" else Flavour(named)


def find_tables(settings: Settings) -> Mapping[str, FoundTable]:
    """Read nfqlb's memories, by stream; one that cannot be read, or is not the load balancer's, is left out."""
    found: dict[str, FoundTable] = {}
    try:
        paths = list(settings.distributor.shm_dir.iterdir())
    except OSError:
        return found
    # Of two memories of one stream, that with the prefix comes last and counts.
    for path in sorted(paths, key=lambda path: path.name.startswith(SHM_PREFIX)):
        flavour = flavour_of(path.name, wanted_flavour(settings))
        name = stream_of(path.name, flavour)
        if name is None:
            continue
        try:
            memory = StreamMemory(path, StreamSpec(name=name, max_targets=1), TableKind.MAGLEV, read_only=True)
        except DistributorError:
            continue
        try:
            found[name] = FoundTable(max_targets=memory.layout.targets, marks=memory.active(), flavour=flavour)
        except DistributorError:
            continue
        finally:
            memory.close()
    return found


def make_interposer_source(
    settings: Settings,
    emit: Callable[[SourceSnapshot], None],
    engine: EngineState,
    inbox_depth: Callable[[], int],
    routes: TargetRoutes,
) -> InterposerSource:
    """Build the source. In observe mode every call goes to the real program."""
    group = settings.interposer
    return InterposerSource(
        InterposerConfig(
            directory=group.directory,
            flavour=wanted_flavour(settings),
            answer_timeout_s=group.answer_timeout,
            recent_loss_s=group.recent_loss,
            confirm_timeout_s=group.confirm_timeout,
            passive=settings.mode != "enforce" or settings.distributor.kind == "observe",
        ),
        emit,
        core=InterposerCore(engine, inbox_depth),
        routes=routes,
        tables=lambda: find_tables(settings),
    )


def make_kernel_source(
    settings: Settings, emit: Callable[[SourceSnapshot], None], engine: EngineState, routes: TargetRoutes
) -> KernelSource | None:
    """Build the source `kernel`; None when the settings name another one."""
    if settings.source != "kernel":
        return None
    view = InterposerCore(engine, lambda: 0)

    def path_lost(mark: int, within_s: float) -> bool:
        target = engine.target_by_mark(mark)
        return target is not None and view.path_lost(target, within_s)

    group = settings.kernel_source
    flavour = Flavour(group.flavour)
    return KernelSource(group.ranges, group.keep, emit, flavour=flavour, routes=routes, path_lost=path_lost)
