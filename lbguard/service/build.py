"""Builds the parts of the service (distributor, source, announcer, mirror) from the settings."""

from collections.abc import Callable, Iterable
from typing import Protocol

from lbguard.announce.sender import Announcer
from lbguard.core.addr import Ip
from lbguard.core.events import SourceLost, SourceSnapshot
from lbguard.core.model import LinkKey, Route
from lbguard.distributor.base import Distributor
from lbguard.distributor.maglev import TableKind
from lbguard.distributor.nfqlb.shm import NfqlbShmDistributor
from lbguard.distributor.nftables.distributor import NftDistributor
from lbguard.distributor.nftables.queueing import FILTER, MANGLE
from lbguard.distributor.select import AutoDistributor, ObserveDistributor
from lbguard.kernel.links import NeighborTimers
from lbguard.kernel.mirror import KernelMirror, MirrorSettings, Sink
from lbguard.settings.model import Settings
from lbguard.sources.file import FileSource

_LOCAL_TABLES = frozenset({0, 253, 254, 255})


SourceEvent = SourceSnapshot | SourceLost


class Source(Protocol):
    """Source of full lists and losses, which it passes to a callable in the event loop's thread."""

    async def run(self) -> None:
        """Follow the source until cancelled."""

    def reload(self) -> None:
        """Read now, and report the result even if it is unchanged."""


def make_distributor(settings: Settings) -> Distributor:
    """Build the configured distributor.

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
            # The load balancer's packets use the memory alone: without it, the real program handles the calls.
            chosen = memory()
        case "auto" | "observe":
            chosen = AutoDistributor(wanted.shm_dir, memory(), embedded)
    return ObserveDistributor(chosen) if observing else chosen


def assumed_queue(settings: Settings) -> int:
    """Return the priority at which packets are queued, as long as no rule in the kernel shows it."""
    return FILTER if settings.flavour == "meridio-2" else MANGLE


def make_source(
    settings: Settings,
    emit: Callable[[SourceEvent], None],
    routes: Callable[[], Iterable[Route] | None],
    drain_window_s: Callable[[], float],
) -> Source | None:
    """Build the source of targets; None when none is set.

    Args:
        settings: those in force at the start.
        emit: receives what the source reports.
        routes: returns the routes in force in the targets' tables.
        drain_window_s: returns how long a target that leaves the list may drain, as it is set now.

    Raises:
        StartError: certificates cannot be read, or a package is missing.
    """
    if settings.source == "nsp":
        # Loads gRPC, so only where it is used.
        from lbguard.service.build_nsp import make_nsp_source, nsp_certificates

        return make_nsp_source(settings, emit, nsp_certificates(settings.nsp), routes)
    if settings.source == "kubernetes":
        from lbguard.service.build_kubernetes import make_kubernetes_source

        return make_kubernetes_source(settings, emit, drain_window_s)
    return FileSource(settings.targets_file, emit) if settings.targets_file is not None else None


def make_announcer(settings: Settings, owns: Callable[[LinkKey, Ip], bool]) -> Announcer | None:
    """Build the announcer; None in observe mode, which sends no packets.

    Raises:
        OSError: the packet socket cannot be opened (CAP_NET_RAW is missing).
    """
    if settings.mode == "observe":
        return None
    return Announcer(owns=owns, repeats_s=settings.announce.repeats, addresses_max=settings.announce.max_pending)


def make_mirror(settings: Settings, sink: Sink) -> KernelMirror:
    """Build the kernel mirror. Every table except the kernel's own may be a target's."""
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
