"""Parking in the service: keeps the parking link and its routes, reads what arrives, and gives it back.

All of it runs in the event loop, in small portions, so that no decision waits for a flood: a turn of the loop reads at
most `_FRAMES_PER_TURN` frames and gives at most `_PACKETS_PER_PASS` back. The frames of a target whose lane overflows
are dropped by the kernel for a moment.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from lbguard.core.effects import ParkPackets
from lbguard.core.model import PARKING_LINK, ParkingLane, ParkingMode
from lbguard.core.parking import ADDRESS_CHANGED, REMOVED, WITHDRAWN
from lbguard.core.status import ParkedPackets, ParkingStatus
from lbguard.kernel.batches import NetlinkChannel, describe_error
from lbguard.kernel.requests import KernelRequests
from lbguard.parking.backoff import Unreachable
from lbguard.parking.buffer import Bounds, Dropped, ParkingBuffer
from lbguard.parking.device import MTU, QUEUE_FRAMES, ParkingLink, remedy_for
from lbguard.parking.frames import read_frame
from lbguard.parking.routes import ParkingRoute, ParkingRoutes
from lbguard.parking.sender import Outcome, ParkedPacketSender
from lbguard.service.backoff_notices import BackoffNotices
from lbguard.settings.model import Settings
from lbguard.telemetry.link_counters import parse_net_dev, read_net_dev
from lbguard.telemetry.log import fields
from lbguard.telemetry.metrics.guard import Metrics

_log = logging.getLogger("lbguard.service.parking")

_FRAMES_PER_TURN: Final = 64
_PACKETS_PER_PASS: Final = 64
_OTHERS_PER_PASS: Final = 16
"""Packets other than TCP and SCTP: the socket of an ordinary receiver has room for about 250."""
_PAUSE_S: Final = 0.001
"""Time between two passes."""
_IPV6_OFF: Final = Path(f"/proc/sys/net/ipv6/conf/{PARKING_LINK}/disable_ipv6")
_ROUND_S: Final = 1.0
_CROWD_WINDOW_S: Final = 0.1
_CROWD: Final = 200
"""Packets that make room for others of their queue in a window; then the kernel drops what follows until its end."""
_TX_DROPPED: Final = 11
"""Column of /proc/net/dev: frames that found the queue full or were ignored."""

DROP_REASONS: Final = (*(str(reason) for reason in Dropped), WITHDRAWN, REMOVED, ADDRESS_CHANGED, "link_lost")


def bounds_of(settings: Settings) -> Bounds:
    """Return the bounds that the settings say."""
    parking = settings.parking
    return Bounds(packets=parking.packets, memory_bytes=parking.bytes, max_age_s=parking.max_age)


class PacketParking:
    """Keeper of the parking link. Where it cannot be made, the service works without parking, and tries again."""

    def __init__(self, settings: Settings, metrics: Metrics, channel: NetlinkChannel, requests: KernelRequests) -> None:
        parking = settings.parking
        self._buffer = ParkingBuffer(bounds_of(settings))
        self._notices = BackoffNotices(parking.packets if parking.revert_backoff else 0, self._send_error)
        self._metrics = metrics.parking
        self._channel = channel
        self._requests = requests
        self._again_s = settings.kernel.reconcile_interval
        self._lanes: dict[tuple[int, bool], ParkingLane] = {}
        self._returning: dict[tuple[int, bool], ParkingLane] = {}
        self._changed = asyncio.Event()
        self._link: ParkingLink | None = None
        self._sender: ParkedPacketSender | None = None
        self._lost = asyncio.Event()
        self._pass: asyncio.TimerHandle | None = None
        self._admit: asyncio.TimerHandle | None = None
        self._window_ends = 0.0
        self._given_back = 0
        self._problem = ""
        self._in_force = False
        self._metrics.packets_max.set(parking.packets)

    def configure(self, settings: Settings) -> None:
        """Use other bounds from now on: packets beyond them are dropped as others come, or when they are too old."""
        self._buffer.bounds = bounds_of(settings)
        self._metrics.packets_max.set(settings.parking.packets)
        self._plan_pass()

    def perform(self, effect: ParkPackets) -> None:
        """Apply one effect at once; `run` programs the routes.

        Packets that were diverted are given back when that route is gone: until then they would come back.
        """
        for lane in effect.lanes:
            key = (lane.mark, lane.ipv4)
            before = self._lanes.get(key)
            diverted = before is not None and (before.divert or key in self._returning)
            self._returning.pop(key, None)
            if lane.mode is ParkingMode.GIVE_BACK and diverted and self._link is not None:
                self._returning[key] = lane
            else:
                self._buffer.set_lane(lane)
            if lane.mode is not ParkingMode.GIVE_BACK:
                self._notices.discard(lane.mark, ipv4=lane.ipv4)
            if lane.mode is ParkingMode.DROP:
                self._lanes.pop(key, None)
            else:
                self._lanes[key] = lane
        self._changed.set()
        self._plan_pass()

    async def run(self) -> None:
        """Keep parking in force until cancelled."""
        while True:
            with contextlib.ExitStack() as stack:
                try:
                    link, sender = await self._open(stack)
                except OSError as error:
                    self._complain("packets are not parked", describe_error(error), remedy_for(error))
                else:
                    await self._serve(link, sender)
            await asyncio.sleep(_ROUND_S)

    def count(self) -> None:
        """Record the counts for the metrics."""
        dropped = dict.fromkeys(DROP_REASONS, 0) | self._buffer.dropped
        if self._link is not None:
            counters = parse_net_dev(read_net_dev()).get(PARKING_LINK)
            if counters is not None:
                dropped[Dropped.KERNEL_QUEUE] = counters[_TX_DROPPED]
        self._metrics.record(
            packets=self._buffer.packets,
            bytes_used=self._buffer.memory_bytes,
            parked=self._buffer.parked,
            given_back=self._given_back,
            unreachables=self._notices.sent,
            dropped=dropped,
        )

    def status(self) -> ParkingStatus:
        """Return what is kept, and whether packets are kept at all."""
        bounds = self._buffer.bounds
        return ParkingStatus(
            in_force=self._in_force,
            problem=self._problem,
            packets=self._buffer.packets,
            memory_bytes=self._buffer.memory_bytes,
            packets_max=bounds.packets,
            bytes_max=bounds.memory_bytes,
            max_age_s=bounds.max_age_s,
            parked=tuple(
                ParkedPackets(
                    mark=used.mark,
                    ipv4=used.ipv4,
                    packets=used.packets,
                    memory_bytes=used.memory_bytes,
                    since=used.since,
                    given_back=used.mode is ParkingMode.GIVE_BACK,
                )
                for used in self._buffer.usage()
            ),
        )

    def _set_in_force(self, in_force: bool) -> None:
        self._in_force = in_force
        self._metrics.in_force.set(in_force)

    # The link

    async def _open(self, stack: contextlib.ExitStack) -> tuple[ParkingLink, ParkedPacketSender]:
        sender = ParkedPacketSender()
        stack.callback(sender.close)
        link = ParkingLink()
        stack.callback(link.close)
        # A namespace without IPv6 may still carry IPv4 through its neighbour entries.
        with contextlib.suppress(OSError):
            await asyncio.to_thread(_IPV6_OFF.write_text, "0")
        await self._requests.set_up_without_addresses(link.ifindex, mtu=MTU, queue_frames=QUEUE_FRAMES)
        return link, sender

    async def _serve(self, link: ParkingLink, sender: ParkedPacketSender) -> None:
        """Keep the routes and drop old packets, until the link is lost."""
        loop = asyncio.get_running_loop()
        self._lost.clear()
        self._link, self._sender = link, sender
        loop.add_reader(link.fileno(), self._read)
        try:
            await self._keep_routes(ParkingRoutes(self._channel, link.ifindex))
        finally:
            loop.remove_reader(link.fileno())
            self._link = self._sender = None
            self._set_in_force(False)
            self._buffer.clear("link_lost")
            self._return(list(self._returning.items()))

    async def _keep_routes(self, routes: ParkingRoutes) -> None:
        loop = asyncio.get_running_loop()
        again_at = loop.time() + self._again_s
        while not self._lost.is_set():
            again = self._again_s > 0 and loop.time() >= again_at
            if again:
                again_at = loop.time() + self._again_s
            self._changed.clear()
            returning = list(self._returning.items())
            refused = await routes.program(self._wanted(), again=again)
            self._return(returning)
            if refused:
                self._complain("routes to the parking link refused", refused, "see the reason")
            else:
                self._set_in_force(True)
                if self._problem:
                    _log.info("packets are parked again")
                self._problem = ""
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_ROUND_S):
                    await self._changed.wait()
            self._buffer.expire(time.monotonic())

    def _return(self, lanes: Sequence[tuple[tuple[int, bool], ParkingLane]]) -> None:
        """Give the packets of lanes back whose diverting routes are gone, unless they changed again meanwhile."""
        for key, lane in lanes:
            if self._returning.get(key) is lane:
                del self._returning[key]
                self._buffer.set_lane(lane)
        self._plan_pass()

    def _wanted(self) -> list[ParkingRoute]:
        wanted = [ParkingRoute(mark, ipv4) for mark, ipv4 in self._lanes]
        return wanted + [
            ParkingRoute(lane.mark, lane.ipv4, divert=True) for lane in self._lanes.values() if lane.divert
        ]

    def _complain(self, what: str, reason: str, remedy: str) -> None:
        self._set_in_force(False)
        if reason != self._problem:
            self._problem = reason
            _log.warning(what, extra=fields(reason=reason, remedy=remedy))

    # Packets

    def _read(self) -> None:
        link, now = self._link, time.monotonic()
        if link is None:
            return
        try:
            for _ in range(_FRAMES_PER_TURN):
                frame = link.read()
                if frame is None:
                    break
                parked = read_frame(frame)
                if parked is not None:
                    self._buffer.put(parked, now)
        except OSError:
            asyncio.get_running_loop().remove_reader(link.fileno())
            self._lost.set()
            self._changed.set()
            return
        self._ignore_crowd(now)
        self._plan_pass()

    def _ignore_crowd(self, now: float) -> None:
        """Have the kernel drop the frames of targets whose queue overflows, until the window ends.

        TCP and SCTP have a queue, and so a bound, of their own: a flood of other packets takes none of theirs.
        """
        crowded = self._buffer.crowded
        if now >= self._window_ends:
            crowded.clear()
            self._window_ends = now + _CROWD_WINDOW_S
        crowds = [crowd for crowd, count in crowded.items() if count >= _CROWD]
        if crowds and self._link is not None:
            self._link.ignore(crowds)
            if self._admit is None:
                self._admit = asyncio.get_running_loop().call_later(self._window_ends - now, self._admit_all)

    def _admit_all(self) -> None:
        self._admit = None
        if self._link is not None:
            self._link.ignore(())

    def _plan_pass(self) -> None:
        """Plan the next pass; it is at least `_PAUSE_S` after the one before."""
        if self._pass is not None or self._sender is None:
            return
        at = self._buffer.next_at()
        if at is not None:
            delay_s = max(_PAUSE_S, at - time.monotonic())
            self._pass = asyncio.get_running_loop().call_later(delay_s, self._give_back)

    def _give_back(self) -> None:
        self._pass = None
        if self._sender is None:
            return
        now = time.monotonic()
        taken = self._buffer.take(now, _PACKETS_PER_PASS, _OTHERS_PER_PASS)
        for n, waiting in enumerate(taken):
            match self._sender.send(waiting.parked):
                case Outcome.SENT:
                    self._given_back += 1
                    self._metrics.age.observe(now - waiting.since)
                    self._notices.given_back(waiting.parked, waiting.first_copy_at, now)
                case Outcome.LATER:
                    for rest in reversed(taken[n:]):
                        self._buffer.put_back(rest)
                    break
                case Outcome.TOO_BIG:
                    self._buffer.dropped[Dropped.TOO_BIG] += 1
                case Outcome.REFUSED:
                    self._buffer.dropped[Dropped.REFUSED] += 1
        self._plan_pass()
        self._notices.plan()

    def _send_error(self, error: Unreachable) -> Outcome:
        return Outcome.REFUSED if self._sender is None else self._sender.send_error(error)
