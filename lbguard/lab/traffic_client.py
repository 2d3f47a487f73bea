"""The client: long-lived TCP connections and UDP flows to the VIPs, one request per interval on each.

    python -m lbguard.lab.traffic_client '{"connections": 200, "flows": 40, "newcomers": 0, "result": "/run/..."}'

When all of them have had an answer, it opens a new TCP connection every `NEW_EVERY_S`, `newcomers` at most, which live
on too.

It prints JSON lines: `ready` when every connection and flow has had an answer, `failed` when one never opens, and
`progress` twice a second. The end of its standard input makes it stop sending, wait for the last answers, and write
the result file.
"""

import asyncio
import contextlib
import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

from lbguard.lab.topology import VIP4, VIP6
from lbguard.lab.traffic import (
    ANSWER,
    CLOSED,
    INTERVAL_S,
    NEW_EVERY_S,
    NEW_INTERVAL_S,
    OPEN,
    PAUSE_MIN_S,
    PORT,
    REQUEST,
    RESET,
    AnswerCounts,
    Channel,
    TrafficResult,
    allow_many_files,
    paused_s,
)

TICKS_PER_INTERVAL = 10
OPEN_TIMEOUT_S = 40.0
LAST_ANSWERS_S = 0.5
PROGRESS_S = 0.5

P = TypeVar("P", bound=asyncio.BaseProtocol)


class Connection(asyncio.Protocol):
    """One TCP connection."""

    def __init__(self, channel: Channel, counts: AnswerCounts) -> None:
        self.channel = channel
        self._counts = counts
        self._rest = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport to send on."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        if self.channel.opened_at:
            self.channel.connect_s = time.time() - self.channel.opened_at
            self.send()

    def send(self) -> None:
        """Send one request, unless the connection has ended."""
        if self._transport is not None and self.channel.ending == OPEN:
            self._transport.write(REQUEST.pack(self.channel.sent))
            self.channel.sent += 1

    def data_received(self, data: bytes) -> None:
        """Note all whole answers; the rest of a split one waits."""
        data = self._rest + data
        count = len(data) // ANSWER.size
        self._rest = data[count * ANSWER.size :]
        if count:
            now, target = time.time(), data[ANSWER.size - 1]
            self.channel.answer(now, target, count)
            self._counts.add(now, target, count)

    def connection_lost(self, exc: Exception | None) -> None:
        """Note how the connection ended."""
        if exc is None:
            ending = CLOSED
        elif isinstance(exc, (ConnectionResetError, BrokenPipeError)):
            ending = RESET
        else:
            ending = type(exc).__name__
        self.channel.end(time.time(), ending)


class Flow(asyncio.DatagramProtocol):
    """One UDP flow: a socket with a source port of its own."""

    def __init__(self, channel: Channel, counts: AnswerCounts) -> None:
        self.channel = channel
        self._counts = counts
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport to send on."""
        self._transport = cast("asyncio.DatagramTransport", transport)

    def send(self) -> None:
        """Send one datagram."""
        if self._transport is not None:
            self._transport.sendto(REQUEST.pack(self.channel.sent))
            self.channel.sent += 1

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        """Note one answer."""
        now, target = time.time(), data[-1]
        self.channel.answer(now, target)
        self._counts.add(now, target)

    def error_received(self, exc: Exception) -> None:
        """Let it pass: the datagram counts as lost because no answer will come."""


class Client:
    """All connections and flows of one run, half of them IPv4, half IPv6. `newcomers`: the most new connections."""

    def __init__(self, connections: int, flows: int, newcomers: int = 0) -> None:
        now = time.time()
        self.started = now
        self.tcp_counts, self.udp_counts = AnswerCounts(now), AnswerCounts(now)
        self.connections = [Connection(Channel(n, _family(n)), self.tcp_counts) for n in range(connections)]
        self.flows = [Flow(Channel(n, _family(n)), self.udp_counts) for n in range(flows)]
        self.newcomers: list[Connection] = []
        self._newcomers_max = newcomers
        self._opening: set[asyncio.Task[None]] = set()
        self._pauses: list[tuple[float, float]] = []
        self._sending = True
        self._late_s = 0.0
        self._all_answered = asyncio.Event()

    def channels(self) -> list[Channel]:
        """Every channel but the new connections', connections first."""
        return [each.channel for each in self.connections] + [each.channel for each in self.flows]

    async def open(self) -> None:
        """Open everything and wait until each channel has had an answer.

        Raises:
            TimeoutError, OSError: a connection does not open, or a channel gets no answer.
        """
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(OPEN_TIMEOUT_S):
            await asyncio.gather(
                *(loop.create_connection(partial(_same, c), _vip(c.channel.family), PORT) for c in self.connections)
            )
            for flow in self.flows:
                address = (_vip(flow.channel.family), PORT)
                await loop.create_datagram_endpoint(partial(_same, flow), remote_addr=address)
            loop.call_soon(self._tick, 0, loop.time())
            await self._all_answered.wait()

    def _tick(self, tick: int, due: float) -> None:
        """Send on every tenth channel; the ticks of one interval together reach all of them."""
        if not self._sending:
            return
        if not self._all_answered.is_set() and all(channel.answered for channel in self.channels()):
            self._all_answered.set()
        for group in (self.connections, self.flows):
            for each in group[tick % TICKS_PER_INTERVAL :: TICKS_PER_INTERVAL]:
                each.send()
        turns = round(NEW_INTERVAL_S / INTERVAL_S) * TICKS_PER_INTERVAL
        for newcomer in self.newcomers[tick % turns :: turns]:
            newcomer.send()
        loop = asyncio.get_running_loop()
        if self._all_answered.is_set():  # while it opens, the client is busy with that
            self._note_late(loop.time() - due)
        due = max(due + INTERVAL_S / TICKS_PER_INTERVAL, loop.time())
        loop.call_at(due, self._tick, tick + 1, due)

    def _note_late(self, late_s: float) -> None:
        self._late_s = max(self._late_s, late_s)
        if late_s >= PAUSE_MIN_S:
            now = time.time()
            self._pauses.append((now - late_s, now))

    def open_newcomers(self) -> None:
        """Open a new connection, and the next one at its time, until enough are open or `finish` is called."""
        loop = asyncio.get_running_loop()
        self._open_newcomer(loop.time())

    def _open_newcomer(self, due: float) -> None:
        number = len(self.newcomers)
        if not self._sending or number >= self._newcomers_max:
            return
        channel = Channel(number, _family(number), interval_s=NEW_INTERVAL_S, opened_at=time.time())
        newcomer = Connection(channel, self.tcp_counts)
        self.newcomers.append(newcomer)
        loop = asyncio.get_running_loop()
        task = loop.create_task(self._connect(newcomer))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)
        due = max(due + NEW_EVERY_S, loop.time())
        loop.call_at(due, self._open_newcomer, due)

    async def _connect(self, newcomer: Connection) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.create_connection(partial(_same, newcomer), _vip(newcomer.channel.family), PORT)
        except OSError as error:
            refused = isinstance(error, ConnectionRefusedError)
            newcomer.channel.end(time.time(), RESET if refused else type(error).__name__)

    def progress(self) -> dict[str, Any]:
        """Return how many connections answer at the moment and how many have ended."""
        now = time.time()
        channels = [connection.channel for connection in self.connections]
        return {
            "event": "progress",
            "answering": sum(1 for c in channels if c.ending == OPEN and now - c.last_at < PROGRESS_S),
            "ended": sum(1 for c in channels if c.ending != OPEN),
            "total": len(channels),
        }

    async def finish(self) -> TrafficResult:
        """Stop sending, wait for the last answers, and return what was measured."""
        ended = time.time()
        self._sending = False
        await asyncio.sleep(LAST_ANSWERS_S)
        for task in self._opening:
            task.cancel()
        for channel in (newcomer.channel for newcomer in self.newcomers):
            if channel.connect_s is not None:
                until = channel.opened_at + channel.connect_s
                channel.connect_s -= paused_s(self._pauses, channel.opened_at, until)
        return TrafficResult(
            started=self.started,
            ended=ended,
            connections=[connection.channel for connection in self.connections],
            flows=[flow.channel for flow in self.flows],
            tcp_bins=self.tcp_counts.series(ended),
            udp_bins=self.udp_counts.series(ended),
            late_s=self._late_s,
            newcomers=[newcomer.channel for newcomer in self.newcomers],
        )


def _same(each: P) -> P:
    return each


def _family(number: int) -> int:
    return 4 if number % 2 == 0 else 6


def _vip(family: int) -> str:
    return VIP4 if family == 4 else VIP6


def _say(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


async def run(options: dict[str, Any]) -> TrafficResult | None:
    """Open, send until standard input ends, and return what was measured (None: it never opened)."""
    client = Client(options["connections"], options["flows"], options["newcomers"])
    try:
        await client.open()
    except (TimeoutError, OSError) as error:
        silent = sum(1 for channel in client.channels() if channel.answered == 0)
        _say({"event": "failed", "reason": f"{silent} channels got no answer ({type(error).__name__}: {error})"})
        return None
    _say({"event": "ready"})
    client.open_newcomers()
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(sys.stdin, ended.set)
    while not ended.is_set():
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(ended.wait(), PROGRESS_S)
        _say(client.progress())
    loop.remove_reader(sys.stdin)
    return await client.finish()


def main() -> None:
    """Entry of the process."""
    options = json.loads(sys.argv[1])
    allow_many_files()
    result = asyncio.run(run(options))
    if result is None:
        sys.exit(1)
    Path(options["result"]).write_text(json.dumps(result.to_json()))
    _say({"event": "done"})


if __name__ == "__main__":
    main()
