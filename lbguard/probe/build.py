"""Builds the parts of the probe from the settings, one function each."""

import os
from dataclasses import dataclass

from lbguard.core.model import Verdict
from lbguard.errors import CommandError
from lbguard.kernel.mirror import MirrorSettings
from lbguard.probe.bridge import BridgeNeighbors, BridgePorts, BridgeSource
from lbguard.probe.connections import ConnectionsFileSource, ConnectionSource, Emit
from lbguard.probe.failure_detector import Detector, DetectorSettings
from lbguard.probe.kernel_view import KernelView
from lbguard.probe.metrics import ProbeMetrics
from lbguard.probe.monitor import Emit as EmitVerdict
from lbguard.probe.monitor import Monitor
from lbguard.probe.nsm import NsmScope, NsmSource, NsmView
from lbguard.probe.report_stream import ReporterSettings
from lbguard.probe.reporter import NAME_MAX, Reporter
from lbguard.rpc.channels import Dialer, PlainDialer, TlsDialer
from lbguard.rpc.security import CertificateFiles, CredentialsError, MaterialSource, WorkloadApi
from lbguard.settings.model import Settings
from lbguard.settings.notation import parse_dial_address, parse_report_address
from lbguard.settings.probe import NsmSettings, ProbeSettings

_NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


class ProbeError(CommandError):
    """The probe cannot work; the text names the setting or the right that is missing, and what to do."""


def judge_settings(probe: ProbeSettings) -> DetectorSettings:
    """Return how is pinged and judged."""
    return DetectorSettings(
        interval_s=probe.interval,
        timeout_s=probe.timeout,
        pings=probe.count,
        down_rounds=probe.bad_rounds,
        window_rounds=probe.of_rounds,
        up_rounds=probe.good_rounds,
        detector=Detector(probe.detector),
        phi_threshold=probe.phi_threshold,
        lease_s=probe.lease,
    )


def make_monitor(settings: DetectorSettings, emit: EmitVerdict) -> Monitor:
    """Make the monitor.

    Raises:
        ProbeError: this process may not ping.
    """
    try:
        return Monitor(settings, emit)
    except PermissionError:
        gid = os.getegid()
        raise ProbeError(
            "this process may not ping: give it CAP_NET_RAW, or let its group in with the sysctl"
            f" net.ipv4.ping_group_range (such as '{gid} {gid}')"
        ) from None
    except OSError as error:
        raise ProbeError(f"no socket for pings: {error.strerror}") from None


def make_kernel_view(settings: Settings) -> KernelView:
    """Make the view of links, addresses and neighbours."""
    return KernelView(
        MirrorSettings(
            reconcile_interval_s=settings.kernel.reconcile_interval,
            receive_buffer_bytes=settings.kernel.receive_buffer,
        )
    )


def make_source(probe: ProbeSettings, view: KernelView, emit: Emit) -> ConnectionSource:
    """Make the source of connections.

    Raises:
        ProbeError: a setting is missing.
    """
    match probe.connections:
        case "file":
            if probe.connections_file is None:
                raise ProbeError(
                    "set probe.connections_file (LBGUARD_PROBE__CONNECTIONS_FILE) to the list of connections"
                )
            return ConnectionsFileSource(probe.connections_file, emit)
        case "bridge":
            bridge = probe.bridge
            neighbors = BridgeNeighbors(bridge.name, bridge.lb_ports, bridge.keep, probe.max_connections)
            return BridgeSource(neighbors, view, BridgePorts() if neighbors.needs_ports else None, emit)
        case "nsm":
            return _nsm_source(probe.nsm, probe.max_connections, view, emit)


def _nsm_source(nsm: NsmSettings, max_connections: int, view: KernelView, emit: Emit) -> NsmSource:
    scope = NsmScope(
        network_services=nsm.network_services,
        path_segments=nsm.path_segments,
        role=nsm.role,
        subject=nsm.subject,
        heal_s=nsm.heal_time,
        max_connections=max_connections,
    )
    dialer: Dialer = PlainDialer()
    if nsm.tls_cert is not None and nsm.tls_key is not None and nsm.tls_ca is not None:
        dialer = TlsDialer(CertificateFiles(nsm.tls_cert, nsm.tls_key, nsm.tls_ca), nsm.tls_server_name)
    nsm_view = NsmView(scope, is_local=view.has, link_of=view.link_of, lengths_of=view.lengths_of)
    return NsmSource(parse_dial_address(nsm.address), dialer, scope, nsm_view, emit, backoff_max_s=nsm.backoff_max)


@dataclass(frozen=True, slots=True)
class Reporting:
    """The reporter, and what gives it certificates, to be closed in the end."""

    reporter: Reporter
    workload_api: WorkloadApi | None

    def submit(self, verdict: Verdict) -> None:
        """See Reporter."""
        self.reporter.submit(verdict)

    def close(self) -> None:
        """Stop following certificates."""
        if self.workload_api is not None:
            self.workload_api.close()


def make_reporting(probe: ProbeSettings, host_name: str, metrics: ProbeMetrics) -> Reporting:
    """Make the reporter.

    Args:
        probe: settings.
        host_name: the reporter's name where the settings give none.
        metrics: counts.

    Raises:
        ProbeError: the SPIFFE Workload API cannot be used.
    """
    source: MaterialSource | None = None
    workload_api: WorkloadApi | None = None
    if probe.spiffe_socket:
        source = workload_api = WorkloadApi(probe.spiffe_socket)
        try:
            workload_api.follow(lambda: None)
        except CredentialsError as error:
            raise ProbeError(str(error).replace("verdicts.spiffe_socket", "probe.spiffe_socket")) from None
    elif probe.tls_cert is not None and probe.tls_key is not None and probe.tls_ca is not None:
        source = CertificateFiles(probe.tls_cert, probe.tls_key, probe.tls_ca)
    dialer: Dialer = PlainDialer() if source is None else TlsDialer(source, probe.tls_server_name)
    settings = ReporterSettings(
        name=probe.name or reporter_name(host_name),
        backoff_max_s=probe.report_backoff_max,
        renew_s=judge_settings(probe).lease / 3,
        subjects_max=2 * probe.max_connections,
    )
    addresses = [parse_report_address(address) for address in probe.report_to]
    return Reporting(Reporter(addresses, dialer, settings, metrics), workload_api)


def reporter_name(host_name: str) -> str:
    """Return a host name as the verdict service takes it; empty when nothing of it can be used."""
    kept = "".join(character for character in host_name if character in _NAME_CHARACTERS)
    return kept.lstrip("._-")[:NAME_MAX]
