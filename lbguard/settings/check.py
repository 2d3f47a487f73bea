"""Warnings about combinations of settings that are valid but rarely intended, each with a name and a remedy."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lbguard.core.model import StreamSpec
from lbguard.settings.model import Settings
from lbguard.settings.notation import format_duration

_TARGETS_SHOWN = 5
_RELEASE_MARGIN_S = 5.0
"""Time between the end of a request and the release of its address, for the Close that follows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigWarning:
    """A warning about a combination of settings. `name` is one of a bounded set."""

    name: str
    what: str
    remedy: str


def check_settings(settings: Settings) -> tuple[ConfigWarning, ...]:
    """Return the warnings about valid settings, in a fixed order."""
    return (
        *_mode_and_distributor(settings),
        *_kubernetes(settings),
        *_affinity(settings),
        *_grace(settings),
        *_mesh(settings),
        *_neighbors(settings),
        *_freeze_and_damping(settings),
        *_kernel(settings),
        *_verdicts(settings),
        *check_probe_settings(settings),
    )


def _mode_and_distributor(settings: Settings) -> Iterator[ConfigWarning]:
    kind = settings.distributor.kind
    if settings.mode != "enforce" and kind not in {"auto", "observe"}:
        yield ConfigWarning(
            name="observe-mode-writes-nothing",
            what=f"mode is {settings.mode}, so distributor.kind {kind} is read and never written",
            remedy="set mode to enforce to let lbguard act",
        )
    if settings.mode == "enforce" and kind == "observe":
        yield ConfigWarning(
            name="enforce-without-distributor",
            what="mode is enforce but distributor.kind is observe: routes are repaired, no target is ever withdrawn",
            remedy="set distributor.kind to auto, or mode to observe if lbguard should change nothing",
        )
    if settings.mode == "companion":
        yield ConfigWarning(
            name="companion-decides-nothing",
            what=(
                "mode is companion: neighbours are repaired and addresses announced, but holds and withdrawals are only"
                " counted and logged; the load balancer manages table, routes, rules and links"
            ),
            remedy="none if this is intended; set source to interposer and mode to enforce for grace as well",
        )
    if settings.source == "file" and settings.targets_file is None and not settings.probe.enabled:
        yield ConfigWarning(
            name="no-targets",
            what="targets_file is not set, so no targets are configured",
            remedy="set targets_file to a YAML file of streams and targets",
        )
    if settings.source != "file" and settings.targets_file is not None:
        yield ConfigWarning(
            name="targets-file-not-read",
            what=f"source is {settings.source}, so targets_file is not read",
            remedy="set source to file, or leave targets_file unset",
        )
    if settings.parking.enabled and settings.mode != "enforce":
        yield ConfigWarning(
            name="parking-without-enforce",
            what=f"parking.enabled is true, but in mode {settings.mode} lbguard keeps no packets",
            remedy="set mode to enforce, or leave parking.enabled false",
        )
    if settings.withdraw_on_exit and settings.mode != "enforce":
        yield ConfigWarning(
            name="nothing-to-withdraw",
            what=f"withdraw_on_exit is true, but in mode {settings.mode} lbguard has nothing to withdraw",
            remedy="leave withdraw_on_exit false",
        )
    if settings.withdraw_on_exit and settings.mode == "enforce":
        yield ConfigWarning(
            name="exit-breaks-connections",
            what="withdraw_on_exit is true: every restart or upgrade of lbguard withdraws every target",
            remedy="leave withdraw_on_exit false unless the load balancer stops together with lbguard",
        )


def _kubernetes(settings: Settings) -> Iterator[ConfigWarning]:
    named = settings.kubernetes.services or settings.kubernetes.gateway
    if named and settings.source != "kubernetes":
        yield ConfigWarning(
            name="kubernetes-not-followed",
            what=f"source is {settings.source}, so kubernetes.services and kubernetes.gateway are not followed",
            remedy="set source to kubernetes, or leave them unset",
        )
    embedded = settings.mode == "enforce" and settings.distributor.kind == "nftables"
    if settings.source == "kubernetes" and embedded and not settings.kubernetes.vips:
        yield ConfigWarning(
            name="kubernetes-without-vips",
            what="distributor.kind is nftables, but kubernetes.vips is empty: no packet reaches a target",
            remedy="set kubernetes.vips, such as web=20.0.0.1/32",
        )


def _affinity(settings: Settings) -> Iterator[ConfigWarning]:
    affinity, drain = settings.affinity, settings.drain
    # The default alone is no wish of the user's.
    wanted = "mode" in affinity.model_fields_set and affinity.mode != "off"
    if wanted and settings.mode != "enforce":
        yield ConfigWarning(
            name="affinity-without-effect",
            what=(
                f"affinity.mode is {affinity.mode}, but in mode {settings.mode} new connections go where the load"
                " balancer's table says, and no flow is remembered"
            ),
            remedy="set mode to enforce (source interposer for an unmodified load balancer), or affinity.mode to off",
        )
    if settings.source == "kubernetes" and settings.mode == "enforce" and not settings.steers_flows:
        yield ConfigWarning(
            name="kubernetes-without-affinity",
            what="flow affinity is off, so endpoints that are not ready or terminate still get new connections",
            remedy="set affinity.mode to incident or all",
        )
    if drain.window > 0 and not settings.steers_flows:
        yield ConfigWarning(
            name="drain-without-affinity",
            what=(
                f"drain.window is {format_duration(drain.window)}, but flow affinity is off: a target that leaves the"
                " list is removed at once, and its connections are reset"
            ),
            remedy="set affinity.mode to incident or all, in mode enforce; or drain.window to 0s",
        )


def check_targets(settings: Settings, streams: Sequence[StreamSpec]) -> tuple[ConfigWarning, ...]:
    """Return the warnings about targets that the settings do not serve as their list says."""
    draining = [f"{stream.name}/{each.identifier}" for stream in streams for each in stream.targets if each.draining]
    if not draining or settings.steers_flows:
        return ()
    shown = ", ".join(draining[:_TARGETS_SHOWN])
    more = f" and {len(draining) - _TARGETS_SHOWN} more" if len(draining) > _TARGETS_SHOWN else ""
    return (
        ConfigWarning(
            name="draining-without-affinity",
            what=f"flow affinity is off, so targets that are listed as draining get new connections: {shown}{more}",
            remedy="set affinity.mode to incident or all, in mode enforce; or remove the targets from the list",
        ),
    )


def _grace(settings: Settings) -> Iterator[ConfigWarning]:
    grace = settings.grace
    if grace.window == 0:
        yield ConfigWarning(
            name="no-grace",
            what="grace.window is 0: a target is withdrawn as soon as its link is gone",
            remedy="set grace.window to the time a link usually needs to heal, such as 3s",
        )
    if grace.adaptive and grace.window == grace.max:
        yield ConfigWarning(
            name="adaptive-has-no-room",
            what=f"grace.adaptive is on, but grace.window and grace.max are both {format_duration(grace.max)}",
            remedy="raise grace.max, the upper limit of the adaptive window",
        )
    if settings.availability.grace > grace.window > 0:
        yield ConfigWarning(
            name="unavailable-after-withdrawal",
            what=(
                f"availability.grace ({format_duration(settings.availability.grace)}) is longer than grace.window"
                f" ({format_duration(grace.window)}): routers still send traffic here when the targets are withdrawn"
            ),
            remedy="set availability.grace below grace.window",
        )


def _mesh(settings: Settings) -> Iterator[ConfigWarning]:
    grace, mesh, nsm = settings.grace, settings.mesh, settings.nsm
    if nsm.enabled and nsm.heal_time > grace.max:
        yield ConfigWarning(
            name="heal-time-beyond-grace-max",
            what=(
                f"nsm.heal_time ({format_duration(nsm.heal_time)}) is longer than grace.max"
                f" ({format_duration(grace.max)}), which limits it"
            ),
            remedy="raise grace.max, or lower nsm.heal_time",
        )
    path_s = mesh.heal_path_s
    path = f"the mesh's heal path (mesh.request_timeout and mesh.max_backoff, {format_duration(path_s)})"
    if path_s > grace.max:
        yield ConfigWarning(
            name="heal-path-beyond-grace-max",
            what=f"{path} is longer than grace.max ({format_duration(grace.max)}): no hold lasts that long",
            remedy="raise grace.max (and freeze.limit), or lower the mesh's timeouts",
        )
    elif nsm.enabled and path_s > max(nsm.heal_time, grace.window):
        yield ConfigWarning(
            name="heal-path-beyond-heal-time",
            what=f"{path} is longer than nsm.heal_time ({format_duration(nsm.heal_time)}): holds end before the repair",
            remedy=f"set nsm.heal_time to {format_duration(path_s)} or more",
        )
    elif path_s > grace.window and not (nsm.enabled or settings.verdicts.listen or grace.adaptive):
        yield ConfigWarning(
            name="heal-path-beyond-grace-window",
            what=(
                f"{path} is longer than grace.window ({format_duration(grace.window)}), and no source reports a repair"
                " that would extend a hold"
            ),
            remedy="set nsm.enabled or verdicts.listen, so that repairs are reported; or raise grace.window",
        )
    if mesh.request_timeout is not None and mesh.ip_release_delay is not None:
        least_s = mesh.request_timeout + _RELEASE_MARGIN_S
        if mesh.ip_release_delay < least_s:
            yield ConfigWarning(
                name="address-released-before-heal",
                what=(
                    f"mesh.ip_release_delay ({format_duration(mesh.ip_release_delay)}) is less than"
                    f" {format_duration(_RELEASE_MARGIN_S)} longer than mesh.request_timeout"
                    f" ({format_duration(mesh.request_timeout)}): a link that heals late gets another address"
                ),
                remedy=f"set the proxies' release delay to {format_duration(least_s)} or more",
            )


def _neighbors(settings: Settings) -> Iterator[ConfigWarning]:
    neighbors, grace = settings.neighbors, settings.grace
    window = grace.window if grace.neighbor_window is None else grace.neighbor_window
    if neighbors.probe_interval > 0 and window < 2 * neighbors.probe_interval:
        yield ConfigWarning(
            name="grace-below-two-probe-rounds",
            what=(
                f"a failed neighbour is withdrawn after {format_duration(window)}, less than two rounds of"
                f" neighbors.probe_interval ({format_duration(neighbors.probe_interval)})"
            ),
            remedy="raise grace.neighbor_window (or grace.window), or lower neighbors.probe_interval",
        )
    if neighbors.probe_interval == 0:
        yield ConfigWarning(
            name="no-neighbor-probes",
            what="neighbors.probe_interval is 0: a target's new MAC is detected only when the kernel verifies it",
            remedy="set neighbors.probe_interval, such as 1s",
        )
    round_s = neighbors.retrans * neighbors.ucast_probes
    if neighbors.tune and 0 < neighbors.probe_interval < round_s:
        yield ConfigWarning(
            name="probes-overlap",
            what=(
                f"{neighbors.ucast_probes} probes every {format_duration(neighbors.retrans)} last"
                f" {format_duration(round_s)}, longer than neighbors.probe_interval"
                f" ({format_duration(neighbors.probe_interval)})"
            ),
            remedy="lower neighbors.retrans or neighbors.ucast_probes, or raise neighbors.probe_interval",
        )


def _freeze_and_damping(settings: Settings) -> Iterator[ConfigWarning]:
    freeze, damping, grace = settings.freeze, settings.damping, settings.grace
    if grace.max > freeze.limit:
        yield ConfigWarning(
            name="grace-max-beyond-freeze-limit",
            what=(
                f"grace.max ({format_duration(grace.max)}) is longer than freeze.limit"
                f" ({format_duration(freeze.limit)}): a freeze may end before the hold it protects"
            ),
            remedy="raise freeze.limit to grace.max or more",
        )
    if freeze.threshold == 1:
        yield ConfigWarning(
            name="freeze-off",
            what="freeze.threshold is 1: losing every link at once withdraws every target",
            remedy="set freeze.threshold below 1, such as 0.5",
        )
    if damping.max < damping.step:
        yield ConfigWarning(
            name="damping-max-below-step",
            what=(
                f"damping.max ({format_duration(damping.max)}) is shorter than one damping.step"
                f" ({format_duration(damping.step)})"
            ),
            remedy="raise damping.max, or set damping.step to 0s to turn damping off",
        )


def _kernel(settings: Settings) -> Iterator[ConfigWarning]:
    if settings.kernel.reconcile_interval == 0:
        yield ConfigWarning(
            name="no-reconcile",
            what="kernel.reconcile_interval is 0: a lost kernel message is never detected",
            remedy="set kernel.reconcile_interval, such as 10s",
        )


def _verdicts(settings: Settings) -> Iterator[ConfigWarning]:
    verdicts = settings.verdicts
    if verdicts.listen and not verdicts.names_tcp_peers:
        yield ConfigWarning(
            name="verdicts-from-nobody",
            what=f"verdicts.listen is {verdicts.listen}, but no rule of verdicts.policy is for a peer on TCP",
            remedy="name the proxies in verdicts.policy, such as spiffe://example.org/ns/*/proxy=172.16.0.0/16",
        )
    if verdicts.names_tcp_peers and not verdicts.listen:
        yield ConfigWarning(
            name="verdict-policy-without-listener",
            what="verdicts.policy names peers on TCP, but verdicts.listen is empty",
            remedy="set verdicts.listen and its certificates, or remove the rules",
        )
    if verdicts.max_subjects_total < verdicts.max_subjects:
        yield ConfigWarning(
            name="verdict-subjects-total-below-one-reporter",
            what=(
                f"verdicts.max_subjects_total ({verdicts.max_subjects_total}) is smaller than the limit of one"
                f" reporter, verdicts.max_subjects ({verdicts.max_subjects}): one reporter can use up the room of all"
            ),
            remedy="raise verdicts.max_subjects_total, or lower verdicts.max_subjects",
        )


def check_probe_settings(settings: Settings) -> tuple[ConfigWarning, ...]:
    """Return the warnings about the probe's settings; none while it is not enabled."""
    return tuple(_probe(settings))


def _probe(settings: Settings) -> Iterator[ConfigWarning]:
    probe = settings.probe
    if not probe.enabled:
        return
    if not probe.report_to:
        yield ConfigWarning(
            name="probe-reports-to-nobody",
            what="probe.report_to is empty: results are counted and logged, but no load balancer receives them",
            remedy="set probe.report_to to the load balancers' addresses, or to link:PORT",
        )
    plain = [address for address in probe.report_to if not address.startswith("unix:")]
    if plain and probe.tls_cert is None and not probe.spiffe_socket:
        yield ConfigWarning(
            name="probe-reports-in-plaintext",
            what=f"reports to {plain[0]} are sent without TLS, and the verdict service accepts TCP only with TLS",
            remedy="set probe.tls_cert, probe.tls_key and probe.tls_ca, or probe.spiffe_socket",
        )
    if probe.lease is not None and probe.lease < 2 * probe.interval:
        yield ConfigWarning(
            name="probe-lease-below-two-rounds",
            what=(
                f"probe.lease ({format_duration(probe.lease)}) is shorter than two rounds of probe.interval"
                f" ({format_duration(probe.interval)}): a verdict may run out before the next one"
            ),
            remedy="raise probe.lease, or leave it unset",
        )
    if probe.connections != "file" and probe.connections_file is not None:
        yield ConfigWarning(
            name="probe-file-not-read",
            what=f"probe.connections is {probe.connections}, so probe.connections_file is not read",
            remedy="set probe.connections to file, or leave probe.connections_file unset",
        )
