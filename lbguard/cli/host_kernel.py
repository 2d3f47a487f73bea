"""Checks of the kernel: capabilities, sysctls, addresses, nftables and devices. They change nothing."""

import os
from collections.abc import Iterator, Sequence

from lbguard.cli.host import Finding, Host
from lbguard.core.addr import format_ip, overlapping, prefix_of, why_not_unicast
from lbguard.core.model import StreamSpec
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
_NEIGHBOR_TABLE_SHARE = 0.75


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
            what=f"the kernel refuses the rules of flow affinity ({why}): new connections will wait for held"
            " targets, and a change of the list will move connections, as without flow affinity",
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
