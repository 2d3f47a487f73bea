"""Check of the machine: findings about missing or wrong things, each with a remedy. It changes nothing."""

from collections.abc import Callable, Iterator, Sequence

from lbguard.cli import host_files, host_kernel
from lbguard.cli.host import Finding, Host
from lbguard.core.model import StreamSpec
from lbguard.settings.model import Settings

Check = Callable[[Host, Settings, Sequence[StreamSpec]], Iterator[Finding]]

CHECKS: tuple[Check, ...] = (
    host_kernel.check_capabilities,
    host_kernel.check_instance,
    host_files.check_socket,
    host_files.check_certificates,
    host_files.check_verdict_certificates,
    host_files.check_recording,
    host_files.check_interposer,
    host_files.check_kubernetes,
    host_kernel.check_nftables,
    host_kernel.check_affinity,
    host_kernel.check_parking,
    host_files.check_memory,
    host_kernel.check_forwarding,
    host_kernel.check_rp_filter,
    host_kernel.check_fwmark_reflect,
    host_kernel.check_neighbor_table,
    host_kernel.check_local_addresses,
)


def check_host(settings: Settings, streams: Sequence[StreamSpec] = (), host: Host | None = None) -> tuple[Finding, ...]:
    """Run every check; errors come first."""
    host = host or Host()
    found = [finding for check in CHECKS for finding in check(host, settings, streams)]
    return tuple(sorted(found, key=lambda finding: finding.severity != "error"))


def blocks_start(finding: Finding) -> bool:
    """Return whether the service must not start. A fault in one stream's memory does not block the others."""
    return finding.severity == "error" and finding.id != "memory_not_writable"
