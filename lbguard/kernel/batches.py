"""Batches of idempotent kernel changes (routes, rules, neighbour entries), and the netlink channel that sends them.

Replacing is atomic, deleting what is absent succeeds, and only routes and rules with our protocol number are changed:
where we have no route, one is added, which the kernel refuses if another program has one.
"""

import asyncio
import errno
import itertools
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, NamedTuple

from lbguard.core.addr import Ip
from lbguard.core.effects import FlushNeighbors, ProbeNeighbors, ProgramRoutes, ProgramRules, ResolveNeighbors
from lbguard.core.events import RouteFailed, RoutesProgrammed, RuleFailed, RuleGone, RuleSeen
from lbguard.core.model import ROUTE_PROTOCOL
from lbguard.kernel.codec import constants as c
from lbguard.kernel.codec.decode import decode
from lbguard.kernel.codec.encode import (
    add_route,
    add_rule,
    delete_neighbor,
    delete_route,
    delete_rule,
    probe_neighbor,
    replace_route,
    resolve_neighbor,
)
from lbguard.kernel.codec.framing import Sequences, add_flags, number_messages
from lbguard.kernel.sockets import KERNEL_PORT, KernelSocket, NetlinkSocket

_BUFFER_BYTES: Final = 65536


def describe_error(error: OSError) -> str:
    """Return an error of the kernel by name, with the kernel's text."""
    return _describe(error.errno or errno.EIO, error.strerror or "")


def _describe(code: int, text: str) -> str:
    return f"{errno.errorcode.get(code, str(code))}: {text or os.strerror(code)}"


class Ack(NamedTuple):
    """The kernel's answer to one message: an errno (0: done) and its text."""

    error: int = 0
    text: str = ""

    @property
    def reason(self) -> str:
        """The error by name with the kernel's text; empty on success."""
        if not self.error:
            return ""
        return _describe(self.error, self.text)


class NetlinkChannel:
    """Sends requests in batches and assigns the answers to them. All adapters of the data path share one.

    The kernel processes the messages of a datagram in order before `send` returns, and continues after an error. Only
    the last message of a chunk asks for an acknowledgement; errors of the others are sent without a request. Chunks of
    different callers may interleave; the messages of one chunk never do.
    """

    def __init__(
        self,
        kernel: KernelSocket | None = None,
        *,
        chunk_messages: int = 128,
        answer_timeout_s: float = 2.0,
        receive_buffer_bytes: int = 2 << 20,
    ) -> None:
        self._kernel = kernel or NetlinkSocket(receive_buffer_bytes=receive_buffer_bytes)
        self._chunk_messages = chunk_messages
        self._answer_timeout_s = answer_timeout_s
        self._buffer = bytearray(_BUFFER_BYTES)
        self._sequences = Sequences()
        self._lock = asyncio.Lock()

    async def submit(self, messages: Sequence[bytes], *, turn_s: float = 0.0) -> list[Ack]:
        """Carry out messages in order and return one result for each.

        Nothing raises for an error of the kernel: a message without an answer has the errno of the failed send,
        ENOBUFS (answers dropped) or ETIMEDOUT. The loop gets a turn after every chunk; with `turn_s`, for urgent
        requests, after the first chunk that ends `turn_s` or more after the last turn, in processor time: on a busy
        machine waiting for a processor is no reason to let others go first.
        """
        results: list[Ack] = []
        turn_at = time.thread_time() + turn_s
        for start in range(0, len(messages), self._chunk_messages):
            if start and time.thread_time() >= turn_at:
                await asyncio.sleep(0)
                turn_at = time.thread_time() + turn_s
            async with self._lock:
                results += await self._exchange(messages[start : start + self._chunk_messages])
        return results

    def close(self) -> None:
        """Close the socket."""
        self._kernel.close()

    async def _exchange(self, messages: Sequence[bytes]) -> list[Ack]:
        count = len(messages)
        first = self._sequences.next(count)
        datagram = bytearray(b"".join(messages))
        starts = [0, *itertools.accumulate(len(message) for message in messages)]
        assert starts.pop() % 4 == 0, "every message is padded to a multiple of four"
        number_messages(datagram, starts, first)
        add_flags(datagram, starts[-1], c.NLM_F_ACK)
        try:
            self._kernel.send(datagram)
        except OSError as error:
            return [Ack(error.errno or errno.EIO, "the request could not be sent")] * count
        return await self._collect(first, count)

    async def _collect(self, first: int, count: int) -> list[Ack]:
        """Read answers up to that of the last message; a message without an answer succeeded."""
        answers: dict[int, Ack] = {}
        last = first + count - 1
        while last not in answers:
            try:
                length, port = self._kernel.receive_into(self._buffer)
            except BlockingIOError:
                if await self._readable():
                    continue
                return self._without_answer(answers, first, count, errno.ETIMEDOUT, "the kernel did not answer")
            except OSError as error:
                code = error.errno or errno.EIO
                return self._without_answer(answers, first, count, code, "the kernel's answers were lost")
            if port != KERNEL_PORT:
                continue
            decoded = decode(self._buffer, min(length, _BUFFER_BYTES), _every_table)
            for control in decoded.controls:
                if first <= control.sequence <= last and not control.done:
                    answers[control.sequence] = Ack(control.error, control.text)
        if len(answers) == 1 and not answers[last].error:
            return [_DONE] * count
        return [answers.get(sequence, _DONE) for sequence in range(first, last + 1)]

    @staticmethod
    def _without_answer(answers: dict[int, Ack], first: int, count: int, code: int, text: str) -> list[Ack]:
        unknown = Ack(code, text)
        return [answers.get(sequence, unknown) for sequence in range(first, first + count)]

    async def _readable(self) -> bool:
        """Wait until an answer can be read; False when none arrived in time."""
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()
        loop.add_reader(self._kernel.fileno(), ready.set)
        try:
            await asyncio.wait_for(ready.wait(), self._answer_timeout_s)
        except TimeoutError:
            return False
        finally:
            loop.remove_reader(self._kernel.fileno())
        return True


_DONE: Final = Ack()


def _every_table(_: int) -> bool:
    return True


# ESRCH and ENOENT: no such route or rule. ENODEV: its device is gone, and the route went with it.
_ABSENT: Final = frozenset({0, errno.ESRCH, errno.ENOENT, errno.ENODEV})

# The kernel has no route by which the gateway is on the link. The core knows an address or a route for it: one that was
# seen just now, or an address without a prefix route.
_NOT_ON_LINK: Final = frozenset({errno.EINVAL, errno.ENETUNREACH, errno.EHOSTUNREACH})

_TURN_S: Final = 0.1
"""Routes end an outage, so they come first. Between two chunks the loop would process the kernel's notifications of the
last one, and then decide on every target, which takes longer than all chunks of a thousand targets and can wait."""


class RouteTable:
    """Programs the default routes and the fwmark rules of targets."""

    def __init__(self, channel: NetlinkChannel) -> None:
        self._channel = channel
        # The channel may interleave batches; of two changes of a route the later one must apply last.
        self._in_order = asyncio.Lock()

    async def program(self, effect: ProgramRoutes) -> list[RoutesProgrammed | RouteFailed]:
        """Add, replace and delete routes, in this order.

        Returns:
            One RoutesProgrammed with all that the kernel did (if anything), and a RouteFailed for each refused route.
        """
        wanted = effect.put
        for route in wanted + effect.delete:
            assert route.protocol == ROUTE_PROTOCOL, f"not ours to change: {route}"
        put = [partial(add_route, route) for route in effect.add]
        put += [partial(replace_route, route) for route in effect.replace]
        messages = [encode() for encode in put] + [delete_route(route) for route in effect.delete]
        async with self._in_order:
            acks = await self._channel.submit(messages, turn_s=_TURN_S)
            off_link = [n for n in range(len(wanted)) if acks[n].error in _NOT_ON_LINK and wanted[n].oif]
            again = await self._channel.submit([put[n](on_link=True) for n in off_link], turn_s=_TURN_S)
        for n, ack in zip(off_link, again, strict=True):
            acks[n] = ack
        events: list[RoutesProgrammed | RouteFailed] = []
        added, deleted = [], []
        split = len(wanted)
        for route, ack in zip(wanted, acks[:split], strict=True):
            if ack.error:
                events.append(RouteFailed(route=route, reason=ack.reason))
            else:
                added.append(route)
        for route, ack in zip(effect.delete, acks[split:], strict=True):
            if ack.error in _ABSENT:
                deleted.append(route)
            else:
                events.append(RouteFailed(route=route, reason=ack.reason))
        if added or deleted:
            events.insert(0, RoutesProgrammed(added=tuple(added), deleted=tuple(deleted)))
        return events

    async def program_rules(self, effect: ProgramRules) -> list[RuleSeen | RuleGone | RuleFailed]:
        """Add and delete rules, in this order.

        Returns:
            One event for each rule: it exists, it is gone, or the kernel refused.
        """
        for rule in effect.add + effect.delete:
            assert rule.protocol == ROUTE_PROTOCOL, f"not ours to change: {rule}"
        messages = [add_rule(rule) for rule in effect.add] + [delete_rule(rule) for rule in effect.delete]
        async with self._in_order:
            acks = await self._channel.submit(messages)
        events: list[RuleSeen | RuleGone | RuleFailed] = []
        split = len(effect.add)
        for rule, ack in zip(effect.add, acks[:split], strict=True):
            if ack.error in (0, errno.EEXIST):
                events.append(RuleSeen(rule=rule))
            else:
                events.append(RuleFailed(rule=rule, reason=ack.reason))
        for rule, ack in zip(effect.delete, acks[split:], strict=True):
            if ack.error in _ABSENT:
                events.append(RuleGone(rule=rule))
            else:
                events.append(RuleFailed(rule=rule, reason=ack.reason))
        return events


_NEIGHBOR_ABSENT: Final = frozenset({errno.ENOENT, errno.ENODEV})
# There is no entry, or it has no link-layer address to verify.
_NOT_RESOLVED: Final = frozenset({errno.ENOENT, errno.EINVAL})

Entry = tuple[int, Ip]


@dataclass(frozen=True, slots=True, kw_only=True)
class NeighborFailure:
    """The kernel refused an operation on a neighbour entry."""

    ifindex: int
    ip: Ip
    reason: str


class Neighbors:
    """Carries out neighbour effects. Their results arrive as neighbour events of the kernel; refusals are returned."""

    def __init__(self, channel: NetlinkChannel) -> None:
        self._channel = channel

    async def flush(self, effect: FlushNeighbors) -> list[NeighborFailure]:
        """Delete exactly these entries; absent entries (or links) are not failures."""
        return await self._each(effect.entries, delete_neighbor, _NEIGHBOR_ABSENT)

    async def resolve(self, effect: ResolveNeighbors) -> list[NeighborFailure]:
        """Start resolving these addresses; a valid entry stays unchanged (a stale one is verified soon)."""
        return await self._each(effect.entries, resolve_neighbor, frozenset())

    async def probe(self, effect: ProbeNeighbors) -> list[NeighborFailure]:
        """Verify these entries now; resolve those that do not exist or have no address."""
        failures = []
        unresolved = []
        acks = await self._channel.submit([probe_neighbor(ifindex, ip) for ifindex, ip in effect.entries])
        for (ifindex, ip), ack in zip(effect.entries, acks, strict=True):
            if ack.error in _NOT_RESOLVED:
                unresolved.append((ifindex, ip))
            elif ack.error:
                failures.append(NeighborFailure(ifindex=ifindex, ip=ip, reason=ack.reason))
        return failures + await self._each(tuple(unresolved), resolve_neighbor, frozenset())

    async def _each(
        self, entries: tuple[Entry, ...], encode: Callable[[int, Ip], bytes], accepted: frozenset[int]
    ) -> list[NeighborFailure]:
        acks = await self._channel.submit([encode(ifindex, ip) for ifindex, ip in entries])
        return [
            NeighborFailure(ifindex=ifindex, ip=ip, reason=ack.reason)
            for (ifindex, ip), ack in zip(entries, acks, strict=True)
            if ack.error and ack.error not in accepted
        ]
