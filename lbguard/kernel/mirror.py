"""Kernel mirror: subscribes to notifications, dumps, then follows changes; when in doubt, it dumps again.

One socket carries notifications and dumps, so both arrive in one order. The states of the mirror:

- building: dumps run one after another (a socket can have one at a time), notifications are applied to the new view.
  A dump that the kernel flags as interrupted is repeated. When the last one is complete, the mirror emits a
  KernelSnapshot.
- following: every notification becomes events. A periodic full reconcile builds a second view in the same way, and its
  snapshot replaces the first; until then the first stays in force.
- out of sync: the kernel dropped messages (ENOBUFS). From then on it drops every message until the socket has been read
  empty once (net/netlink/af_netlink.c, NETLINK_S_CONGESTED), and the waiting messages are older than the loss. So the
  mirror drains the socket first and then requests a dump; a view that mixed the two could keep deleted objects.
"""

import asyncio
import errno
import select
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from lbguard.core.events import Event, KernelChange, KernelOutOfSync
from lbguard.kernel.codec import constants as c
from lbguard.kernel.codec.constants import IgnoredReason
from lbguard.kernel.codec.decode import Control, decode, lone_neighbor
from lbguard.kernel.codec.encode import DumpKind, dump
from lbguard.kernel.codec.rtnetlink import IsTargetTable
from lbguard.kernel.sockets import KERNEL_PORT, KernelSocket, NetlinkSocket, quiet_neighbors
from lbguard.kernel.view import View

Sink = Callable[[list[Event], float], None]
"""Receiver of events in order, and of the monotonic time at which their reading began. It must not block."""

GROUPS: Final = (
    c.RTNLGRP_LINK,
    c.RTNLGRP_NEIGH,
    c.RTNLGRP_IPV4_IFADDR,
    c.RTNLGRP_IPV6_IFADDR,
    c.RTNLGRP_IPV4_ROUTE,
    c.RTNLGRP_IPV6_ROUTE,
    c.RTNLGRP_IPV4_RULE,
    c.RTNLGRP_IPV6_RULE,
)

_BUFFER_BYTES: Final = 128 * 1024


class MirrorError(Exception):
    """The mirror ended with a permanent failure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MirrorSettings:
    """Settings of the mirror.

    Dumps after a loss are at least `resync_min_interval_s` apart, doubling to `resync_max_interval_s` while losses
    continue. One turn of the event loop reads at most `budget_datagrams` and ends after `budget_s`.
    `reconcile_interval_s` 0 turns the periodic reconcile off.
    """

    reconcile_interval_s: float = 10.0
    resync_min_interval_s: float = 0.2
    resync_max_interval_s: float = 1.0
    receive_buffer_bytes: int = 8 << 20
    dump_attempts: int = 5
    dump_timeout_s: float = 5.0
    budget_datagrams: int = 512
    budget_s: float = 0.004


@dataclass(slots=True, kw_only=True)
class MirrorCounters:
    """Counters of the mirror, for the metrics. They only grow."""

    datagrams: int = 0
    decoded: Counter[str] = field(default_factory=Counter)
    ignored: Counter[str] = field(default_factory=Counter)
    overruns: int = 0
    resyncs: Counter[str] = field(default_factory=Counter)
    dumps_interrupted: int = 0
    reconciles_abandoned: Counter[str] = field(default_factory=Counter)
    snapshots: int = 0


class KernelMirror:
    """Mirror of the kernel's state: gives its sink a KernelSnapshot first, then every change.

    `start` opens the socket in the network namespace of the calling thread. Events reach the sink in batches, from the
    event loop. While out of sync (from a KernelOutOfSync to the next KernelSnapshot) no changes are passed on. A
    neighbour entry that goes to DELAY or PROBE gives no event (see `sockets.py`); a snapshot may contain those states.
    """

    def __init__(
        self,
        sink: Sink,
        is_target_table: IsTargetTable,
        settings: MirrorSettings | None = None,
        *,
        open_socket: Callable[[], KernelSocket] | None = None,
    ) -> None:
        self.settings = settings or MirrorSettings()
        self.counters = MirrorCounters()
        self._sink = sink
        self._is_target_table = is_target_table
        self._open_socket = open_socket or self._open_kernel_socket
        self._socket: KernelSocket | None = None
        self._buffer = bytearray(_BUFFER_BYTES)
        self._out: list[Event] = []
        self._view: View | None = None
        self._building: View | None = None
        self._plan: list[DumpKind] = []
        self._sequence = 0
        self._attempt = 0
        self._interrupted = False
        self._draining = False
        self._loss_told = False
        self._build_started_at = 0.0
        self._resync_interval_s = self.settings.resync_min_interval_s
        self._timer: asyncio.TimerHandle | None = None
        self._watchdog: asyncio.TimerHandle | None = None
        self._ended = asyncio.Event()
        self._failure: Exception | None = None

    @property
    def in_sync(self) -> bool:
        """Return whether every kernel message since the last snapshot has been passed on."""
        return self._view is not None

    @property
    def port(self) -> int | None:
        """The netlink port id of a running mirror on the real kernel."""
        return self._socket.port if isinstance(self._socket, NetlinkSocket) else None

    def caught_up(self) -> bool:
        """Return whether the socket is empty: every message of the kernel so far was passed on."""
        if self._socket is None:
            return True
        poll = select.poll()
        poll.register(self._socket.fileno(), select.POLLIN)
        return not poll.poll(0)

    async def start(self) -> None:
        """Subscribe and request the first dump; the snapshot follows through the sink.

        Raises:
            OSError: the socket cannot be opened.
        """
        assert self._socket is None, "the mirror runs already"
        self._socket = self._open_socket()
        self._ended.clear()
        self._failure = None
        asyncio.get_running_loop().add_reader(self._socket.fileno(), self._on_readable)
        self._guarded(self._build)

    async def wait(self) -> None:
        """Wait until the mirror ends.

        Raises:
            MirrorError: it failed; no further event is passed on.
        """
        await self._ended.wait()
        if self._failure is not None:
            raise MirrorError(f"the kernel mirror failed: {self._failure}") from self._failure

    async def stop(self) -> None:
        """End the mirror and close the socket; harmless when it has ended already."""
        self._close()

    def request_resync(self, reason: str) -> None:
        """Declare the mirror out of sync and dump again (rate limited). May be called from the sink."""
        asyncio.get_running_loop().call_soon(self._guarded, lambda: self._lose(reason))

    def request_reconcile(self) -> None:
        """Dump again soon without declaring anything out of sync. May be called from the sink."""
        asyncio.get_running_loop().call_soon(self._guarded, self._reconcile)

    def _open_kernel_socket(self) -> KernelSocket:
        return NetlinkSocket(
            receive_buffer_bytes=self.settings.receive_buffer_bytes, groups=GROUPS, program=quiet_neighbors()
        )

    # --- reading

    def _on_readable(self) -> None:
        self._guarded(self._drain)

    def _guarded(self, step: Callable[[], None]) -> None:
        """Run a step and deliver its events; an exception ends the mirror and is raised by `wait`."""
        if self._socket is None:
            return
        try:
            started_at = time.monotonic()
            step()
            self._deliver(started_at)
        except Exception as error:
            self._failure = error
            self._close()
            self._ended.set()
            self._sink([KernelOutOfSync(reason="mirror_failed")], time.monotonic())

    def _deliver(self, received_at: float) -> None:
        if self._out:
            batch, self._out = self._out, []
            self._sink(batch, received_at)

    def _drain(self) -> None:
        assert self._socket is not None
        receive_into, buffer = self._socket.receive_into, self._buffer
        deadline = time.monotonic() + self.settings.budget_s
        for _ in range(self.settings.budget_datagrams):
            try:
                length, port = receive_into(buffer)
            except BlockingIOError:
                if self._draining:
                    self._draining = False
                    self._schedule_build()
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self.counters.overruns += 1
                self._lose("overrun")
                self._draining = True
                self._cancel_timer()
                continue
            self.counters.datagrams += 1
            if port != KERNEL_PORT:
                self.counters.ignored[IgnoredReason.FOREIGN_SENDER] += 1
            elif self._draining:
                self.counters.ignored[IgnoredReason.WHILE_DRAINING] += 1
            elif length > _BUFFER_BYTES:
                self.counters.ignored[IgnoredReason.TRUNCATED] += 1
                self._lose("truncated")
            else:
                self._digest(length)
            if time.monotonic() > deadline:
                break

    def _digest(self, length: int) -> None:
        verified = lone_neighbor(self._buffer, length)
        if verified is not None:
            self.counters.decoded["NeighborSeen"] += 1
            self._notified(verified, replaces=False)
            return
        decoded = decode(self._buffer, length, self._is_target_table)
        counters = self.counters
        counters.ignored.update(decoded.ignored)
        if self._sequence in decoded.interrupted:
            self._interrupted = True
        for event, flags, sequence in decoded.changes:
            counters.decoded[event.__class__.__name__] += 1
            if flags & c.NLM_F_MULTI:
                if self._building is not None and sequence == self._sequence:
                    self._building.record(event)
                else:
                    counters.ignored[IgnoredReason.DUMP_ABANDONED] += 1
                continue
            self._notified(event, replaces=bool(flags & c.NLM_F_REPLACE))
        for control in decoded.controls:
            if self._building is not None and control.sequence == self._sequence:
                self._on_control(control)

    def _notified(self, event: KernelChange, *, replaces: bool) -> None:
        if self._building is not None:
            self._building.notify(event, replaces=replaces, out=[])
        if self._view is not None:
            self._view.notify(event, replaces=replaces, out=self._out)

    # --- dumping

    def _build(self) -> None:
        """Begin a new view."""
        self._cancel_timer()
        self._building = View()
        self._build_started_at = time.monotonic()
        self._plan = list(DumpKind)
        self._attempt = 1
        self._watchdog = asyncio.get_running_loop().call_later(
            self.settings.dump_timeout_s, self._guarded, lambda: self._abandon("dump_timeout")
        )
        self._request_dump()

    def _request_dump(self) -> None:
        assert self._socket is not None
        # Notifications carry the sequence number of the request that caused them, but never the flag of a dump.
        self._sequence = self._sequence % 0xFFFFFFFF + 1
        self._interrupted = False
        try:
            self._socket.send(dump(self._plan[0], self._sequence))
        except BlockingIOError:
            self._abandon("dump_refused")

    def _on_control(self, control: Control) -> None:
        assert self._building is not None
        if control.error:
            self._abandon("dump_refused")
        elif not control.done:
            return
        elif self._interrupted:
            self.counters.dumps_interrupted += 1
            if self._attempt >= self.settings.dump_attempts:
                self._abandon("dump_interrupted")
                return
            self._attempt += 1
            self._building.restart(self._plan[0])
            self._request_dump()
        elif len(self._plan) > 1:
            del self._plan[0]
            self._attempt = 1
            self._request_dump()
        else:
            self._finish()

    def _finish(self) -> None:
        assert self._building is not None
        self._cancel_watchdog()
        self._out.append(self._building.finish())
        self._view, self._building = self._building, None
        self._loss_told = False
        self.counters.snapshots += 1
        self._schedule_reconcile()

    def _abandon(self, reason: str) -> None:
        """Abandon a build: retry with backoff when out of sync, otherwise at the next reconcile."""
        self._cancel_watchdog()
        self._building = None
        if self._view is not None:
            self.counters.reconciles_abandoned[reason] += 1
            self._schedule_reconcile()
        else:
            self._lose(reason)

    def _lose(self, reason: str) -> None:
        """Declare the mirror out of sync, once until the next snapshot, and plan the next build."""
        self.counters.resyncs[reason] += 1
        self._cancel_watchdog()
        self._view = self._building = None
        if not self._loss_told:
            self._loss_told = True
            self._out.append(KernelOutOfSync(reason=reason))
        self._schedule_build()

    def _schedule_build(self) -> None:
        """Plan a build as early as the rate limit allows."""
        if self._draining:
            return
        settings = self.settings
        since_s = time.monotonic() - self._build_started_at
        if since_s > settings.resync_max_interval_s * 2:
            self._resync_interval_s = settings.resync_min_interval_s
        delay_s = max(0.0, self._resync_interval_s - since_s)
        if delay_s > 0:
            self._resync_interval_s = min(self._resync_interval_s * 2, settings.resync_max_interval_s)
        self._set_timer(delay_s, self._build)

    def _schedule_reconcile(self) -> None:
        if self.settings.reconcile_interval_s > 0:
            self._set_timer(self.settings.reconcile_interval_s, self._reconcile)

    def _reconcile(self) -> None:
        if self._view is not None and self._building is None:
            self._build()

    def _set_timer(self, delay_s: float, step: Callable[[], None]) -> None:
        self._cancel_timer()
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._guarded, step)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _cancel_watchdog(self) -> None:
        if self._watchdog is not None:
            self._watchdog.cancel()
            self._watchdog = None

    def _close(self) -> None:
        self._cancel_timer()
        self._cancel_watchdog()
        self._view = self._building = None
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None
        self._ended.set()
