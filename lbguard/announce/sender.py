"""Announcer: sends gratuitous ARP and unsolicited neighbour advertisements, at once and then at paced offsets.

The first send of an announcement happens inside the call, because until then the segment sends to a link-layer address
that is gone. One timer sends the repeats, because frames may be lost and a bridge may not forward yet when its port has
just appeared. Right before every send the announcer checks again that the link still has the address: announcing an
address that has moved would break traffic.
"""

import asyncio
import ctypes
import errno
import itertools
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from lbguard.announce.arp import MAC_LEN, gratuitous_reply, gratuitous_request, request
from lbguard.announce.ndp import solicitation, unsolicited_advertisement
from lbguard.announce.plan import Announcement, Entry, Plan
from lbguard.core.addr import Ip, is_ipv4
from lbguard.core.effects import Announce, SolicitNeighbors
from lbguard.core.model import LinkKey
from lbguard.kernel.sockets import RETURN, assemble, attach_filter

REPEATS_S = (0.0, 0.1, 1.1, 2.2)
"""Default offsets of the sends of an address, in seconds from the first."""

_FRAMES_PER_ADDRESS = 2
_QUESTIONS_PER_TICK = 64
"""Solicitations sent in one iteration of the event loop. After the start, or when the link of many targets is back, the
requests that let the kernel use the answers share the loop with them."""
_LINK_HEADER = struct.Struct("=HHiHBB8s")  # struct sockaddr_ll: family, protocol, ifindex, hatype, pkttype, halen, addr
_ETHERTYPE = slice(12, 14)


class FrameKind(StrEnum):
    """The kinds of frames; the values are metric labels."""

    ARP_REQUEST = "arp_request"
    ARP_REPLY = "arp_reply"
    NA = "na"
    ARP_QUESTION = "arp_question"
    NS = "ns"


_ARP_KINDS_ALLOWED = (
    [FrameKind.ARP_REQUEST],
    [FrameKind.ARP_REPLY],
    [FrameKind.ARP_REPLY, FrameKind.ARP_REQUEST],
)


class Suppressed(StrEnum):
    """Reason why an address was not announced, or not announced again; the values are metric labels.

    SUPERSEDED counts waiting repeats that a newer announcement of the same link and address replaced.
    """

    NOT_OWNED = "not_owned"
    NOT_ETHERNET = "not_ethernet"
    QUEUE_FULL = "queue_full"
    SUPERSEDED = "superseded"
    CLOSED = "closed"


@dataclass(slots=True)
class AnnounceCounters:
    """Counters of the announcer since it was made. `errors` counts failed sends by errno name (`ENETDOWN`)."""

    sent: Counter[FrameKind] = field(default_factory=Counter)
    suppressed: Counter[Suppressed] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)


class FrameSocket(Protocol):
    """Socket that sends frames."""

    def send(self, ifindex: int, frame: bytes) -> int:
        """Send a whole Ethernet frame out of a link; return 0 or the errno. It never blocks and never raises."""

    def close(self) -> None:
        """Release the socket."""


class PacketSocket:
    """A packet socket (packet(7)) that only sends, in the network namespace of the thread that makes it.

    An unread packet socket would fill its receive buffer with a copy of all traffic. Protocol 0 subscribes to no
    packets, and a filter that accepts nothing stays in force should the socket ever be bound.

    Raises:
        OSError: the kernel refuses (CAP_NET_RAW is missing).
    """

    def __init__(self) -> None:
        # Python's own sendto takes a link by name only and looks it up at each call. A link that replaced another under
        # the same name would then get the frames of the old one, so the C function is called with the ifindex.
        libc = ctypes.CDLL(None, use_errno=True)
        self._sendto = libc.sendto
        self._sendto.argtypes = [
            ctypes.c_int,
            ctypes.c_char_p,
            ctypes.c_size_t,
            ctypes.c_int,
            ctypes.c_char_p,
            ctypes.c_uint,
        ]
        self._sendto.restype = ctypes.c_ssize_t
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        try:
            attach_filter(self._socket, assemble((RETURN, 0, 0, 0)))
        except OSError:
            self._socket.close()
            raise

    def send(self, ifindex: int, frame: bytes) -> int:
        """Send a whole Ethernet frame out of a link; return 0 or the errno. It never blocks and never raises."""
        protocol = int.from_bytes(frame[_ETHERTYPE])
        address = _LINK_HEADER.pack(socket.AF_PACKET, socket.htons(protocol), ifindex, 0, 0, 0, b"")
        sent = self._sendto(self._socket.fileno(), frame, len(frame), socket.MSG_DONTWAIT, address, _LINK_HEADER.size)
        return 0 if sent >= 0 else ctypes.get_errno()

    def fileno(self) -> int:
        """Return the file descriptor; -1 once closed."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


class Announcer:
    """Announces addresses of links, at once and then at paced offsets, from the running asyncio loop.

    The packet socket is opened here, once, in the network namespace of the calling thread. All methods belong to the
    thread of the event loop.

    Args:
        owns: returns whether that incarnation of the link exists and holds the address, usable, right now. Called
            before each send; false cancels the remaining sends of that address.
        repeats_s: offsets of the sends of an address from its first, in seconds; starts with 0 and increases.
        arp_kinds: the forms of gratuitous ARP to send for an IPv4 address, in this order.
        router: the R flag of neighbour advertisements: whether the links forward IPv6.
        frames_per_tick_max: how many frames may be sent in one iteration of the event loop (besides solicitations);
        the rest follow in the next.
        addresses_max: how many addresses of all links may wait for a send; more are refused with a named reason.
        clock: monotonic time in seconds.
        on_first_send: called once for each announcement right after the kernel accepted its first frame, with
            `asked_at` and `sent_at` set, to measure the latency. It must not call the announcer.
        frame_socket: where frames go; a `PacketSocket` when not given. Closed with the announcer.

    Raises:
        OSError: the packet socket cannot be opened (CAP_NET_RAW is missing).
        ValueError: a setting is out of its range.
    """

    def __init__(
        self,
        *,
        owns: Callable[[LinkKey, Ip], bool],
        repeats_s: Sequence[float] = REPEATS_S,
        arp_kinds: Collection[FrameKind] = (FrameKind.ARP_REQUEST, FrameKind.ARP_REPLY),
        router: bool = True,
        frames_per_tick_max: int = 256,
        addresses_max: int = 4096,
        clock: Callable[[], float] = time.monotonic,
        on_first_send: Callable[[Announcement], None] | None = None,
        frame_socket: FrameSocket | None = None,
    ) -> None:
        if frames_per_tick_max < _FRAMES_PER_ADDRESS:
            raise ValueError(f"frames_per_tick_max must be at least {_FRAMES_PER_ADDRESS}: {frames_per_tick_max}")
        if sorted(arp_kinds) not in _ARP_KINDS_ALLOWED:
            raise ValueError(f"arp_kinds must name one or both of arp_request and arp_reply: {tuple(arp_kinds)}")
        self.counters = AnnounceCounters()
        self._owns = owns
        self._arp_kinds = tuple(arp_kinds)
        self._na_kinds = (FrameKind.NA,)
        self._router = router
        self._plan = Plan(repeats_s=repeats_s, max_waiting=addresses_max)
        self._frames_per_tick_max = frames_per_tick_max
        self._budget = frames_per_tick_max
        self._questions: dict[tuple[LinkKey, Ip], tuple[bytes, Ip]] = {}
        self._questions_left = _QUESTIONS_PER_TICK
        self._clock = clock
        self._on_first_send = on_first_send
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = 0.0
        self._next_tick: asyncio.Handle | None = None
        self._closed = False
        self._socket: FrameSocket = PacketSocket() if frame_socket is None else frame_socket

    @property
    def pending(self) -> int:
        """Return the number of addresses that wait for a send."""
        return len(self._plan)

    def announce(self, effect: Announce) -> None:
        """Announce addresses of a link: the first send happens before this method returns, the repeats follow.

        An address that already waits is replaced: the newest link-layer address counts and its sends start again.
        Beyond `frames_per_tick_max`, first sends also follow in the next iterations of the loop. A refusal by the
        kernel or by a bound raises nothing: it is counted by name, and a failed send is retried at the next offset.

        Raises:
            RuntimeError: no event loop is running in this thread.
        """
        loop = asyncio.get_running_loop()
        if self._closed:
            self.counters.suppressed[Suppressed.CLOSED] += len(effect.addresses)
            return
        if len(effect.mac) != MAC_LEN:
            # A tunnel has no Ethernet addresses, so no neighbour has a stale one.
            self.counters.suppressed[Suppressed.NOT_ETHERNET] += len(effect.addresses)
            return
        announcement = Announcement(link=effect.link, mac=effect.mac, asked_at=self._clock())
        for ip in effect.addresses:
            if not self._plan.has_room(effect.link, ip):
                self.counters.suppressed[Suppressed.QUEUE_FULL] += 1
                continue
            if self._plan.add(Entry(announcement=announcement, ip=ip)):
                self.counters.suppressed[Suppressed.SUPERSEDED] += 1
        self._send_due(loop)

    def solicit(self, effect: SolicitNeighbors) -> None:
        """Send one solicitation for each target, from our own address; the kernel learns from the answers.

        Beyond `_QUESTIONS_PER_TICK`, they follow in the next iterations of the loop; an address that still waits is not
        queued twice. The source address must be owned when a solicitation is sent, as for an announcement; refusals of
        the kernel are counted, not raised.

        Raises:
            RuntimeError: no event loop is running in this thread.
        """
        if self._closed or len(effect.mac) != MAC_LEN:
            return
        loop = asyncio.get_running_loop()
        for source, target in effect.pairs:
            self._questions[effect.link, target] = effect.mac, source
        self._ask(loop)

    def configure(self, *, repeats_s: Sequence[float], addresses_max: int) -> None:
        """Use other offsets and another bound from now on, also for the addresses that wait.

        Raises:
            ValueError: a value is out of its range.
        """
        self._plan.configure(repeats_s=repeats_s, max_waiting=addresses_max)
        if not self._closed and self._plan.next_due() is not None:
            self._arm_timer(asyncio.get_running_loop(), self._clock())

    def close(self) -> None:
        """Cancel all waiting addresses (counted as `closed`) and close the socket. Closing again has no effect."""
        if self._closed:
            return
        self._closed = True
        for handle in (self._timer, self._next_tick):
            if handle is not None:
                handle.cancel()
        self._timer = self._next_tick = None
        waiting = self._plan.clear()
        if waiting:
            self.counters.suppressed[Suppressed.CLOSED] += waiting
        self._questions.clear()
        self._socket.close()

    def _build_frames(self, mac: bytes, ip: Ip) -> tuple[bytes, ...]:
        """Build the frames of an address, one for each of its kinds and in their order."""
        if not is_ipv4(ip):
            return (unsolicited_advertisement(mac, ip, router=self._router),)
        return tuple(
            gratuitous_request(mac, ip) if kind is FrameKind.ARP_REQUEST else gratuitous_reply(mac, ip)
            for kind in self._arp_kinds
        )

    def _send_due(self, loop: asyncio.AbstractEventLoop) -> None:
        """Send the due frames, within the budget of this iteration of the loop, and arm the next call."""
        now = self._clock()
        while self._budget >= _FRAMES_PER_ADDRESS:
            entry = self._plan.take_due(now)
            if entry is None:
                break
            # A suppressed address counts towards the budget: checking thousands of them would block the loop too.
            kinds = self._arp_kinds if is_ipv4(entry.ip) else self._na_kinds
            self._budget -= len(kinds)
            if not self._owns(entry.announcement.link, entry.ip):
                self.counters.suppressed[Suppressed.NOT_OWNED] += 1
                continue
            self._send(entry, kinds)
            self._plan.sent(entry, now)
        if self._budget < self._frames_per_tick_max:
            self._await_tick(loop)
        self._arm_timer(loop, now)

    def _send(self, entry: Entry, kinds: tuple[FrameKind, ...]) -> None:
        if not entry.frames:
            # Built with the first send and kept: the first of many addresses does not wait for the frames of the last.
            entry.frames = self._build_frames(entry.announcement.mac, entry.ip)
        ifindex = entry.announcement.link.ifindex
        for kind, frame in zip(kinds, entry.frames, strict=True):
            code = self._socket.send(ifindex, frame)
            if code:
                # A reason that refuses one frame (link down or gone, queue full) refuses the next one too.
                self.counters.errors[errno.errorcode.get(code, "unknown")] += 1
                return
            self.counters.sent[kind] += 1
            if entry.announcement.sent_at is None:
                entry.announcement.sent_at = self._clock()
                if self._on_first_send is not None:
                    self._on_first_send(entry.announcement)

    def _ask(self, loop: asyncio.AbstractEventLoop) -> None:
        """Send the waiting solicitations, within the budget of this iteration of the loop."""
        asked = list(itertools.islice(self._questions.items(), self._questions_left))
        self._questions_left -= len(asked)
        for (link, target), (mac, source) in asked:
            del self._questions[link, target]
            if not self._owns(link, source):
                self.counters.suppressed[Suppressed.NOT_OWNED] += 1
                continue
            if is_ipv4(source):
                kind, frame = FrameKind.ARP_QUESTION, request(mac, source, target)
            else:
                kind, frame = FrameKind.NS, solicitation(mac, source, target)
            error = self._socket.send(link.ifindex, frame)
            if error:
                self.counters.errors[errno.errorcode.get(error, str(error))] += 1
            else:
                self.counters.sent[kind] += 1
        if self._questions_left < _QUESTIONS_PER_TICK:
            self._await_tick(loop)

    def _await_tick(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._next_tick is None:
            self._next_tick = loop.call_soon(self._start_tick, loop)

    def _start_tick(self, loop: asyncio.AbstractEventLoop) -> None:
        self._next_tick = None
        self._budget = self._frames_per_tick_max
        self._questions_left = _QUESTIONS_PER_TICK
        self._send_due(loop)
        self._ask(loop)

    def _arm_timer(self, loop: asyncio.AbstractEventLoop, now: float) -> None:
        due = self._plan.next_due()
        if due is None or self._budget < _FRAMES_PER_ADDRESS:
            return  # the budget is spent: the next tick is scheduled, and arms the timer
        if self._timer is not None:
            if self._timer_due <= due:
                return
            self._timer.cancel()
        self._timer_due = due
        self._timer = loop.call_later(max(0.0, due - now), self._timer_fired, loop)

    def _timer_fired(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        self._send_due(loop)
