"""The service with a window: on a line of input it prints what its mirror and its engine hold, as one line of JSON.

`python -m tests.bench.observed` takes its settings from the environment, as `lbguard run` does.
"""

import asyncio
import json
import sys

from lbguard.core.addr import format_ip
from lbguard.core.events import KernelSnapshot
from lbguard.core.model import RouteKind
from lbguard.kernel.process import InstanceLock
from lbguard.service.daemon import Daemon
from lbguard.settings.model import load
from lbguard.telemetry.log import setup_logging


def view_of(daemon: Daemon) -> dict[str, object]:
    """Return counters, links, neighbours of targets, and routes, as plain values."""
    counters = daemon.mirror.counters
    kernel = next(event for event in daemon.engine.as_events() if isinstance(event, KernelSnapshot))
    return {
        "datagrams": counters.datagrams,
        "events": sum(counters.decoded.values()) + sum(counters.ignored.values()),
        "overruns": counters.overruns,
        "resyncs": sum(counters.resyncs.values()),
        "inbox_depth": daemon.runner.inbox_depth,
        "inbox_dropped": daemon.runner.inbox_dropped,
        "in_sync": daemon.engine.in_sync and daemon.mirror.in_sync,
        "links": sorted([link.ifindex, link.name, link.up, link.mac.hex(":")] for link in kernel.links),
        "addresses": sorted(
            [address.ifindex, format_ip(address.ip), address.prefix_length] for address in kernel.addresses
        ),
        "neighbors": sorted(
            [neighbor.ifindex, format_ip(neighbor.ip), neighbor.state.name, neighbor.mac.hex(":")]
            for neighbor in kernel.neighbors
            if neighbor.state
        ),
        "routes": sorted(
            [route.table, 4 if route.ipv4 else 6, format_ip(route.gateway), route.oif]
            for route in kernel.routes
            if route.kind is RouteKind.UNICAST
        ),
    }


async def serve(daemon: Daemon) -> None:
    """Run the service and answer lines of input."""

    def answer() -> None:
        if sys.stdin.readline():
            print(json.dumps(view_of(daemon)), flush=True)
        else:
            asyncio.get_running_loop().remove_reader(sys.stdin.fileno())

    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), answer)
    await daemon.run()


def main() -> None:
    """Run until told to stop."""
    settings = load().settings
    logging_ = setup_logging(settings.log.format, settings.log.level)
    try:
        with InstanceLock():
            asyncio.run(serve(Daemon(settings)))
    finally:
        logging_.close()


if __name__ == "__main__":
    main()
