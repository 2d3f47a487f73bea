"""Builds the parts of the service from the settings; shows the core and the tables to the sources that need them."""

import time
from collections.abc import Callable, Iterable, Mapping

from lbguard.announce.sender import Announcer
from lbguard.core.addr import Ip
from lbguard.core.engine_state import EngineState
from lbguard.core.events import SourceSnapshot
from lbguard.core.model import Condition, LinkKey, Route, StreamSpec, TargetKey, TargetState
from lbguard.distributor.base import Distributor, DistributorError
from lbguard.distributor.maglev import TableKind
from lbguard.distributor.nfqlb.cli import NfqlbCliDistributor
from lbguard.distributor.nfqlb.memory import StreamMemory
from lbguard.distributor.nfqlb.shm import NfqlbShmDistributor
from lbguard.distributor.nftables.distributor import NftDistributor
from lbguard.distributor.observe import ObserveDistributor
from lbguard.distributor.select import AutoDistributor
from lbguard.kernel.links import NeighborTimers
from lbguard.kernel.mirror import KernelMirror, MirrorSettings, Sink
from lbguard.service.target_routes import TargetRoutes
from lbguard.settings.model import Settings
from lbguard.sources.base import Source, SourceEvent
from lbguard.sources.file import FileSource
from lbguard.sources.interposer.protocol import SHM_PREFIX
from lbguard.sources.interposer.source import InterposerConfig, InterposerSource
from lbguard.sources.interposer.view import FoundTable
from lbguard.sources.kernel import KernelSource

_LOCAL_TABLES = frozenset({0, 253, 254, 255})


def make_distributor(settings: Settings) -> Distributor:
    """Build the distributor that the settings ask for.

    Raises:
        DistributorError: a combination that cannot work.
    """
    wanted = settings.distributor
    table = TableKind(wanted.table)
    observing = settings.mode != "enforce" or wanted.kind == "observe"

    def embedded() -> Distributor:
        return NftDistributor(table, wanted.hash_seed, wanted.slots_per_target)

    def memory() -> Distributor:
        return NfqlbShmDistributor(table, wanted.shm_dir, read_only=observing)

    match wanted.kind:
        case "nftables":
            chosen: Distributor = embedded()
        case "nfqlb-shm":
            chosen = memory()
        case "auto" if settings.source == "interposer" or settings.mode == "companion":
            # The load balancer's packets go by the memory alone: without it, its calls are the real program's.
            chosen = memory()
        case "nfqlb-cli":
            chosen = NfqlbCliDistributor(table, wanted.nfqlb_binary, wanted.shm_dir)
        case "auto" | "observe":
            chosen = AutoDistributor(wanted.shm_dir, memory(), embedded)
    return ObserveDistributor(chosen) if observing else chosen


def make_source(
    settings: Settings, emit: Callable[[SourceEvent], None], routes: Callable[[], Iterable[Route] | None]
) -> Source | None:
    """Build the source of targets; None when none is set. `routes` are those in force in the targets' tables.

    Raises:
        StartError: certificates cannot be read.
    """
    if settings.source == "nsp":
        # Loads gRPC, so only where it is used.
        from lbguard.service.build_nsp import make_nsp_source, nsp_certificates

        return make_nsp_source(settings, emit, nsp_certificates(settings.nsp), routes)
    return FileSource(settings.targets_file, emit) if settings.targets_file is not None else None


def make_announcer(settings: Settings, owns: Callable[[LinkKey, Ip], bool]) -> Announcer | None:
    """Build the announcer; None in observe mode, where no packet is sent.

    Raises:
        OSError: the packet socket cannot be opened (CAP_NET_RAW is missing).
    """
    if settings.mode == "observe":
        return None
    return Announcer(owns=owns, repeats_s=settings.announce.repeats, addresses_max=settings.announce.max_pending)


def make_mirror(settings: Settings, sink: Sink) -> KernelMirror:
    """Build the kernel mirror. Every table but the kernel's own may be a target's."""
    return KernelMirror(
        sink,
        lambda table: table not in _LOCAL_TABLES,
        MirrorSettings(
            reconcile_interval_s=settings.kernel.reconcile_interval,
            receive_buffer_bytes=settings.kernel.receive_buffer,
        ),
    )


def neighbor_timers(settings: Settings) -> NeighborTimers:
    """Return the timers that links to targets get."""
    neighbors = settings.neighbors
    return NeighborTimers(
        retrans_ms=round(neighbors.retrans * 1000),
        delay_probe_ms=round(neighbors.delay_probe * 1000),
        base_reachable_ms=round(neighbors.base_reachable * 1000),
        ucast_probes=neighbors.ucast_probes,
        mcast_probes=neighbors.mcast_probes,
        mcast_reprobes=neighbors.mcast_reprobes,
    )


_LINK_CONDITIONS = frozenset(
    {Condition.NO_LINK, Condition.LINK_DOWN, Condition.NO_ADDRESS, Condition.ADDRESS_TENTATIVE}
)
"""What takes the load balancer's own route away, so that its check fails. A missing route of ours is no such thing: it
is missing for a moment whenever the load balancer adds a target."""


class InterposerCore:
    """View of the engine that the source needs."""

    def __init__(
        self, engine: EngineState, inbox_depth: Callable[[], int], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Set the engine, how many events wait for it, and its clock."""
        self._engine = engine
        self._inbox_depth = inbox_depth
        self._clock = clock

    @property
    def ready(self) -> bool:
        """Return whether the engine decides."""
        return self._engine.running

    @property
    def caught_up(self) -> bool:
        """Return whether the view is complete and nothing waits in the inbox."""
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


def find_tables(settings: Settings) -> Mapping[str, FoundTable]:
    """Read nfqlb's memories, by stream; one that cannot be read is left out."""
    found: dict[str, FoundTable] = {}
    for path in settings.distributor.shm_dir.glob(f"{SHM_PREFIX}*"):
        name = path.name.removeprefix(SHM_PREFIX)
        try:
            memory = StreamMemory(path, StreamSpec(name=name, max_targets=1), TableKind.MAGLEV, read_only=True)
        except DistributorError:
            continue
        try:
            found[name] = FoundTable(max_targets=memory.layout.targets, marks=memory.active())
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
    """Build the source. Where nothing is to be touched, every call goes to the real program."""
    group = settings.interposer
    return InterposerSource(
        InterposerConfig(
            directory=group.directory,
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
    return KernelSource(group.ranges, group.keep, emit, routes=routes, path_lost=path_lost)
