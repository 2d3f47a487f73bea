"""Check for VIPs that are local addresses of the load balancer itself.

A VIP on one of its links (as LVS has it on `lo`) is in the kernel's table `local`, which comes before any mark: its own
stack answers with a reset, and no target gets a packet. No other check shows it, since routes and tables are correct.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import replace

from lbguard.core.addr import Prefix, overlapping, why_not_unicast
from lbguard.core.model import StreamSpec
from lbguard.core.status import GuardStatus
from lbguard.kernel.local_routes import local_prefixes
from lbguard.telemetry.log import fields

_log = logging.getLogger("lbguard.service.local_vips")

_LOOK_S = 2.0


class LocalVips:
    """Check for local VIPs; reports them in the log and in the status.

    Args:
        streams: returns the streams that are served.
        read: returns the prefixes that the kernel delivers locally; it may block for seconds.
    """

    def __init__(
        self, streams: Callable[[], Iterable[StreamSpec]], read: Callable[[], Iterable[Prefix]] = local_prefixes
    ) -> None:
        self._streams = streams
        self._read = read
        self._found: dict[Prefix, Prefix] = {}

    def add_to(self, status: GuardStatus) -> GuardStatus:
        """Return a status with the local VIPs of each stream."""
        if not self._found:
            return status
        vips = {spec.name: spec.vips for spec in self._streams()}
        streams = (
            replace(stream, local_vips=tuple(str(vip) for vip in vips.get(stream.name, ()) if vip in self._found))
            for stream in status.streams
        )
        return replace(status, streams=tuple(streams))

    async def run(self) -> None:
        """Check periodically until cancelled."""
        while True:
            if any(stream.vips for stream in self._streams()):
                try:
                    self.compare(await asyncio.to_thread(self._read))
                except OSError as error:
                    _log.debug("local addresses not read", extra=fields(reason=str(error)))
            await asyncio.sleep(_LOOK_S)

    def compare(self, local: Iterable[Prefix]) -> None:
        """Compare the VIPs with the locally delivered prefixes, and log new findings."""
        vips = [vip for stream in self._streams() for vip in stream.vips]
        found = overlapping(vips, (prefix for prefix in local if not why_not_unicast(prefix.network)))
        for vip in found.keys() - self._found.keys():
            _log.warning(
                "VIP is local: its packets reach no target",
                extra=fields(
                    vip=str(vip),
                    local=str(found[vip]),
                    remedy="remove the address from this machine; a VIP stands on no link of a load balancer",
                ),
            )
        for vip in self._found.keys() - found.keys():
            _log.info("VIP is local no more", extra=fields(vip=str(vip)))
        self._found = found
