"""Check of the machine: findings about missing or wrong things, each with a remedy. It changes nothing.

Every check is a function over a `Host`, a reader of files below a root, so that tests can use a directory tree
instead of a machine.
"""

import ctypes
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lbguard.core.addr import Prefix, format_ip, overlapping, prefix_of, why_not_unicast
from lbguard.core.model import StreamSpec
from lbguard.kernel.requests import local_prefixes
from lbguard.settings.bounded_file import FileError, read_regular_file
from lbguard.settings.model import Settings
from lbguard.telemetry.link_counters import decode_link_name

INSTANCE_NAME = "@lbguard.instance"
"""The abstract unix socket that a running instance holds, as /proc/net/unix shows it."""

TUN_DEVICE = "/dev/net/tun"
NFTABLES_LIBRARY = "libnftables.so.1"

# include/uapi/linux/capability.h
_CAPABILITIES = {"NET_ADMIN": 12, "NET_RAW": 13}
_USES = {
    "NET_ADMIN": "routes, rules, neighbours, link state and nftables cannot be changed",
    "NET_RAW": "gratuitous ARP and neighbour advertisements cannot be sent",
}
_STRICT = "1"  # rp_filter: 0 off, 1 strict, 2 loose; the larger of `all` and the link's own counts
_LINKS_SHOWN = 5
_CERTIFICATES = ("tls_cert", "tls_key", "tls_ca", "tls_client_ca")
_CERTIFICATE_BYTES_MAX = 2**20
_NEIGHBOR_TABLE_SHARE = 0.75


Severity = Literal["error", "warning"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Finding about the machine. `id` is one of a bounded set; with severity error lbguard cannot work."""

    id: str
    severity: Severity
    what: str
    remedy: str


def _can_load(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


class Host:
    """Reader of a machine, or of a directory tree in its place.

    Args:
        root: root directory of its file system.
        can_load: returns whether a shared library can be loaded.
        local: returns the prefixes whose packets the kernel delivers locally.
        refuses_affinity: returns why the kernel refuses the rules of flow affinity, empty if it takes them.
    """

    def __init__(
        self,
        root: Path = Path("/"),
        can_load: Callable[[str], bool] = _can_load,
        local: Callable[[], Iterable[Prefix]] = local_prefixes,
        refuses_affinity: Callable[[], str] = str,
    ) -> None:
        self.root = root
        self.can_load = can_load
        self.refuses_affinity = refuses_affinity
        self._local = local

    def path(self, path: Path | str) -> Path:
        """Return a path below the root; a relative path is below the working directory."""
        return self.root / str(Path(path).absolute()).lstrip("/")

    def read(self, path: str) -> str | None:
        """Return a file's text without surrounding blanks, or None when it cannot be read."""
        try:
            return self.path(path).read_text(errors="replace").strip()
        except OSError:
            return None

    def local(self) -> Iterable[Prefix]:
        """Return the prefixes whose packets the kernel delivers locally; none when they cannot be read."""
        try:
            return self._local()
        except OSError:
            return ()

    def sysctl(self, name: str) -> str | None:
        """Return a sysctl (`net/ipv4/ip_forward`) of the network namespace of this thread."""
        return self.read(f"/proc/sys/{name}")

    def links(self) -> list[str]:
        """Return the names of the links that have IPv4 settings."""
        try:
            return sorted(entry.name for entry in self.path("/proc/sys/net/ipv4/conf").iterdir())
        except OSError:
            return []


Check = Callable[[Host, Settings, Sequence[StreamSpec]], Iterator[Finding]]


def check_host(settings: Settings, streams: Sequence[StreamSpec] = (), host: Host | None = None) -> tuple[Finding, ...]:
    """Run every check; errors come first."""
    host = host or Host()
    found = [finding for check in CHECKS for finding in check(host, settings, streams)]
    return tuple(sorted(found, key=lambda finding: finding.severity != "error"))


def check_capabilities(host: Host, settings: Settings, streams: Sequence[StreamSpec]) -> Iterator[Finding]:
    """Check the effective capabilities of this thread."""
    if settings.mode == "observe":
        return
    lines = (host.read("/proc/thread-self/status") or "").splitlines()
    effective = next((int(line.split()[1], 16) for line in lines if line.startswith("CapEff:")), None)
    if effective is None:
        return
    for name, bit in _CAPABILITIES.items():
        if not effective >> bit & 1:
            yield Finding(
                id=f"no_cap_{name.lower()}",
                severity="error",
                what=f"capability {name} is missing: {_USES[name]}",
                remedy=f"run as root, or add {name} to the container's securityContext.capabilities",
            )


def check_forwarding(host: Host, settings: Settings, streams: Sequence[StreamSpec]) -> Iterator[Finding]:
    """Check whether the kernel forwards."""
    for family, name in (("ipv4", "net/ipv4/ip_forward"), ("ipv6", "net/ipv6/conf/all/forwarding")):
        if host.sysctl(name) == "0":
            yield Finding(
                id=f"{family}_forwarding_off",
                severity="warning",
                what=f"forwarding of {family.replace('ip', 'IP')} is off: packets to the targets are dropped here",
                remedy=f"sysctl -w {name.replace('/', '.')}=1",
            )


def check_rp_filter(host: Host, settings: Settings, streams: Sequence[StreamSpec]) -> Iterator[Finding]:
    """Check for strict reverse path filtering, which drops packets that arrive on another link than the route back."""
    everywhere = host.sysctl("net/ipv4/conf/all/rp_filter")
    strict = []
    for link in host.links():
        own = host.sysctl(f"net/ipv4/conf/{link}/rp_filter")
        if link not in {"all", "lo"} and own is not None and max(own, everywhere or "0") == _STRICT:
            strict.append("links to come (default)" if link == "default" else decode_link_name(os.fsencode(link)))
    if strict:
        shown = ", ".join(strict[:_LINKS_SHOWN])
        more = f" and {len(strict) - _LINKS_SHOWN} more" if len(strict) > _LINKS_SHOWN else ""
        yield Finding(
            id="strict_rp_filter",
            severity="warning",
            what=f"strict reverse path filtering on {shown}{more}: asymmetric traffic through the targets is dropped",
            remedy="sysctl -w net.ipv4.conf.all.rp_filter=2 (loose everywhere: the larger of all and the link counts)",
        )


def check_fwmark_reflect(host: Host, settings: Settings, streams: Sequence[StreamSpec]) -> Iterator[Finding]:
    """Check whether ICMP errors get the mark of their packet; without it they may have no route back."""
    for family in ("ipv4", "ipv6"):
        if host.sysctl(f"net/{family}/fwmark_reflect") == "0":
            yield Finding(
                id=f"{family}_fwmark_reflect_off",
                severity="warning",
                what=(
                    f"net.{family}.fwmark_reflect is 0: where no route leads back to the client, the kernel sends no"
                    " ICMP error about a packet that is too big, and path MTU discovery fails"
                ),
                remedy=f"sysctl -w net.{family}.fwmark_reflect=1",
            )


def check_neighbor_table(host: Host, settings: Settings, streams: Sequence[StreamSpec]) -> Iterator[Finding]:
    """Check whether the kernel keeps enough neighbour entries: one for each target, and some for other hosts.

    The limit is the host's, for all namespaces together, and cannot be read in another namespace.
    """
    ips = {ip for stream in streams for target in stream.targets for ip in target.ips}
    for family, length in (("ipv4", 4), ("ipv6", 16)):
        limit = host.sysctl(f"net/{family}/neigh/default/gc_thresh3")
        needed = sum(len(ip) == length for ip in ips)
        if limit is not None and limit.isdigit() and needed > int(limit) * _NEIGHBOR_TABLE_SHARE:
            yield Finding(
                id=f"{family}_neighbor_table_small",
                severity="warning",
                what=f"net.{family}.neigh.default.gc_thresh3 is {limit}, for {needed} target addresses and others",
                remedy=f"sysctl -w net.{family}.neigh.default.gc_thresh3={max(4096, 4 * needed)}",
            )


def check_local_addresses(host: Host, settings: Settings, streams: Sequence[StreamSpec]) -> Iterator[Finding]:
    """Check for VIPs and targets that are addresses of this machine, whose packets no mark can route elsewhere."""
    vips = {vip: stream.name for stream in streams for vip in stream.vips}
    targets = {prefix_of(ip, 8 * len(ip)): stream.name for stream in streams for t in stream.targets for ip in t.ips}
    if not vips and not targets:
        return
    local = [prefix for prefix in host.local() if not why_not_unicast(prefix.network)]
    for vip, found in overlapping(vips, local).items():
        yield Finding(
            id="vip_is_local",
            severity="warning",
            what=f"VIP {vip} of stream {vips[vip]}: this machine delivers packets to {found} locally, so no"
            " target gets them and clients are refused",
            remedy=f"remove the address (ip address show to {found}; ip route show table local {found})",
        )
    for target in overlapping(targets, local):
        yield Finding(
            id="target_is_local",
            severity="warning",
            what=f"target {format_ip(target.network)} of stream {targets[target]} is an address of this machine,"
            " or the broadcast address of one of its links: no route can lead there",
            remedy="correct the target's address, or remove it from this machine",
        )


def check_nftables(host: Host, settings: Settings, streams: Sequence[StreamSpec]) -> Iterator[Finding]:
    """Check for the library of the embedded distributor and of the packet counters."""
    if host.can_load(NFTABLES_LIBRARY):
        return
    needed = settings.distributor.kind == "nftables" and settings.mode == "enforce"
    lost = "the embedded distributor" if settings.distributor.kind in {"nftables", "auto"} else "packet counters"
    flows = " and flow affinity" if settings.steers_flows else ""
    yield Finding(
        id="no_nftables",
        severity="error" if needed else "warning",
        what=f"{NFTABLES_LIBRARY} cannot be loaded: {lost}{flows} will not work",
        remedy="apt-get install libnftables1",
    )


def check_affinity(host: Host, settings: Settings, streams: Sequence[StreamSpec]) -> Iterator[Finding]:
    """Check whether the kernel takes the rules of flow affinity, by a transaction that has no effect."""
    if not settings.steers_flows or not host.can_load(NFTABLES_LIBRARY):
        return
    why = host.refuses_affinity()
    if why:
        yield Finding(
            id="affinity_refused",
            severity="warning",
            what=f"the kernel refuses the rules of flow affinity ({why}): new connections will wait for held targets",
            remedy="load the kernel modules nf_tables, nft_fib_inet and nft_hash, or set affinity.mode to off",
        )


def check_parking(host: Host, settings: Settings, streams: Sequence[StreamSpec]) -> Iterator[Finding]:
    """Check whether the device for parking can be opened; that alone makes no link."""
    if not settings.parks_packets:
        return
    try:
        os.close(os.open(host.path(TUN_DEVICE), os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        yield Finding(
            id="no_tun_device",
            severity="warning",
            what=f"{TUN_DEVICE} cannot be opened ({error.strerror}): packets of held targets are dropped, not parked",
            remedy="load the kernel module tun; in a container, mount the device; or set parking.enabled to false",
        )


def check_memory(host: Host, settings: Settings, streams: Sequence[StreamSpec]) -> Iterator[Finding]:
    """Check the memory files of nfqlb: one per stream, or all existing ones if the streams are not known yet."""
    kind, directory = settings.distributor.kind, settings.distributor.shm_dir
    if kind not in {"nfqlb-shm", "auto"}:
        return
    paths = {directory / stream.shm_name: f" (stream {stream.name})" for stream in streams}
    if settings.source != "file":
        named = "*" if settings.source == "interposer" and settings.interposer.flavour == "meridio-2" else "tshm-*"
        paths |= {directory / place.name: "" for place in sorted(host.path(directory).glob(named))}
        if not paths:
            paths[directory / named] = ""
    for path, whose in paths.items():
        place = host.path(path)
        try:
            status = place.stat()
        except OSError:
            if kind == "nfqlb-shm" or settings.source == "interposer":
                yield Finding(
                    id="memory_missing",
                    severity="warning",
                    what=f"{path}{whose} does not exist: nfqlb has not made it, or it is not shared",
                    remedy=f"mount the same memory-backed volume at {path.parent} in both containers",
                )
            continue
        if not stat.S_ISREG(status.st_mode) or not os.access(place, os.R_OK | os.W_OK):
            yield Finding(
                id="memory_not_writable",
                severity="error" if settings.mode == "enforce" else "warning",
                what=(
                    f"{path}{whose} cannot be written: it belongs to uid {status.st_uid}, mode"
                    f" {stat.S_IMODE(status.st_mode):04o}, and lbguard runs as uid {os.geteuid()}"
                ),
                remedy=f"run lbguard as uid {status.st_uid}, or add the capability DAC_OVERRIDE",
            )


def check_instance(host: Host, settings: Settings, streams: Sequence[StreamSpec]) -> Iterator[Finding]:
    """Check for another instance in this network namespace."""
    lines = (host.read("/proc/thread-self/net/unix") or "").splitlines()
    if any(line.rpartition(" ")[2] == INSTANCE_NAME for line in lines):
        yield Finding(
            id="another_instance",
            severity="error",
            what="another lbguard runs in this network namespace",
            remedy="stop it first; see `lbguard status`",
        )


def check_socket(host: Host, settings: Settings, streams: Sequence[StreamSpec]) -> Iterator[Finding]:
    """Check whether the sockets that lbguard serves can be made; their directories are made with them."""
    for name, path in (("socket", settings.socket), ("availability.socket", settings.availability.socket)):
        if path is None:
            continue
        # The service runs without the frontend's socket, and tries to make it again.
        severity: Severity = "error" if name == "socket" else "warning"
        why = _why_unwritable(host, path.parent)
        if why:
            yield Finding(
                id="socket_directory",
                severity=severity,
                what=f"{name} {path} cannot be made: {why}",
                remedy=f"make {path.parent} writable for this user, or set {name} to another path",
            )
        elif _is_taken(host.path(path)):
            yield Finding(
                id="socket_directory",
                severity=severity,
                what=f"{name} = {path}: the path exists and is not a socket",
                remedy=f"remove {path}, or set {name} to another path",
            )


def check_verdict_certificates(host: Host, settings: Settings, streams: Sequence[StreamSpec]) -> Iterator[Finding]:
    """Check the certificates of the listener for verdicts."""
    verdicts = settings.verdicts
    files = (verdicts.tls_cert, verdicts.tls_key, verdicts.tls_client_ca)
    chain, key, roots = (None if path is None else host.path(path) for path in files)
    if not verdicts.listen or chain is None or key is None or roots is None:
        return
    # This import loads gRPC, which a service without the listener loads later, and `check-config` does not need.
    from lbguard.rpc.security import CertificateFiles, CredentialsError

    try:
        CertificateFiles(chain, key, roots).current()
    except CredentialsError as error:
        yield Finding(
            id="verdict_certificates",
            severity="error",
            what=f"verdicts.listen {verdicts.listen} cannot be served: {error}",
            remedy="mount certificate, key and authorities as PEM files that belong together, or leave it empty",
        )


def check_certificates(host: Host, settings: Settings, streams: Sequence[StreamSpec]) -> Iterator[Finding]:
    """Check whether certificates and keys can be read."""
    groups = {"verdicts": settings.verdicts, "nsp": settings.nsp, "nsm": settings.nsm, "probe": settings.probe}
    groups["probe.nsm"] = settings.probe.nsm
    if settings.verdicts.listen:
        del groups["verdicts"]  # checked as a whole by check_verdict_certificates
    for group, values in groups.items():
        for name in _CERTIFICATES:
            path = getattr(values, name, None)
            if path is None:
                continue
            try:
                read_regular_file(host.path(path), _CERTIFICATE_BYTES_MAX)
            except FileError as error:
                yield Finding(
                    id="certificate_unreadable",
                    severity="warning",
                    what=f"{group}.{name} {path} {error}",
                    remedy="mount the certificate there, readable for this user, or correct the path",
                )


def check_recording(host: Host, settings: Settings, streams: Sequence[StreamSpec]) -> Iterator[Finding]:
    """Check whether recordings can be written."""
    directory = settings.recording.directory
    why = settings.recording.enabled and _why_unwritable(host, directory)
    if why:
        yield Finding(
            id="recording_directory",
            severity="warning",
            what=f"nothing can be recorded in recording.directory {directory}: {why}",
            remedy=f"mount a volume at {directory} that this user may write, or set recording.directory to one",
        )


def check_interposer(host: Host, settings: Settings, streams: Sequence[StreamSpec]) -> Iterator[Finding]:
    """Check whether calls of nfqlb can be received."""
    directory = settings.interposer.directory
    why = settings.source == "interposer" and _why_unwritable(host, directory)
    if why:
        yield Finding(
            id="interposer_directory",
            severity="warning",
            what=f"no calls can be received in interposer.directory {directory}: {why}",
            remedy=f"mount one volume at {directory} of both containers, writable for this user",
        )


def _is_taken(place: Path) -> bool:
    try:
        return not stat.S_ISSOCK(place.lstat().st_mode)
    except OSError:
        return False


def _why_unwritable(host: Host, directory: Path) -> str:
    """Return why no file can be made in a directory, or empty text if it can. Missing parents count as makeable."""
    nearest = directory
    while not host.path(nearest).exists() and nearest != nearest.parent:
        nearest = nearest.parent
    place = host.path(nearest)
    if place.is_dir() and os.access(place, os.W_OK | os.X_OK):
        return ""
    return f"uid {os.geteuid()} may not write to a directory {nearest}"


CHECKS: tuple[Check, ...] = (
    check_capabilities,
    check_instance,
    check_socket,
    check_certificates,
    check_verdict_certificates,
    check_recording,
    check_interposer,
    check_nftables,
    check_affinity,
    check_parking,
    check_memory,
    check_forwarding,
    check_rp_filter,
    check_fwmark_reflect,
    check_neighbor_table,
    check_local_addresses,
)


def blocks_start(finding: Finding) -> bool:
    """Return whether the service must not start. A fault in one stream's memory does not block the others."""
    return finding.severity == "error" and finding.id != "memory_not_writable"
