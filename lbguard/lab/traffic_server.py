"""The targets: one process that listens in the namespace of every target and names the target in each answer.

    python -m lbguard.lab.traffic_server '{"1": "target1-ab12", ...}'

It prints `{"event": "ready"}` once every socket is bound. A last request, the end of its standard input, makes it print
`{"event": "resets", "sent": {"1": 0, ...}}`, the RST packets that each target sent, and stop.
"""

import asyncio
import json
import socket
import sys
from functools import partial
from pathlib import Path
from typing import cast

from lbguard.lab.netns import entered
from lbguard.lab.topology import VIP4, VIP6
from lbguard.lab.traffic import ANSWER, PORT, REQUEST, allow_many_files


class StreamAnswerer(asyncio.Protocol):
    """Answers every request of one TCP connection."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._rest = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport to answer on."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer all whole requests; the rest of a split one waits."""
        assert self._transport is not None
        data = self._rest + data
        whole = len(data) - len(data) % REQUEST.size
        self._rest = data[whole:]
        numbers = REQUEST.iter_unpack(data[:whole])
        self._transport.write(b"".join(ANSWER.pack(number, self._target) for (number,) in numbers))


class DatagramAnswerer(asyncio.DatagramProtocol):
    """Answers every datagram with the target's identifier."""

    def __init__(self, target: int) -> None:
        self._suffix = bytes((target,))
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport to answer on."""
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        """Answer one request."""
        assert self._transport is not None
        self._transport.sendto(data + self._suffix, addr)

    def error_received(self, exc: Exception) -> None:
        """Let it pass: the way back is gone for the moment, and the client notes the lost answer."""


def _bound(namespace: str, kind: socket.SocketKind) -> list[socket.socket]:
    sockets = []
    with entered(namespace):
        for family, address in ((socket.AF_INET, VIP4), (socket.AF_INET6, VIP6)):
            sock = socket.socket(family, kind)
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((address, PORT))
            sockets.append(sock)
    return sockets


def resets_sent(namespace: str) -> int:
    """Return how many RST packets a namespace has sent (`OutRsts` of /proc/net/snmp, both families)."""
    with entered(namespace):
        lines = Path("/proc/thread-self/net/snmp").read_text().splitlines()
    names, values = (line.split() for line in lines if line.startswith("Tcp:"))
    return int(values[names.index("OutRsts")])


async def serve(targets: dict[int, str]) -> None:
    """Answer in these namespaces (by target identifier) until standard input ends."""
    loop = asyncio.get_running_loop()
    for target, namespace in targets.items():
        for sock in _bound(namespace, socket.SOCK_STREAM):
            await loop.create_server(partial(StreamAnswerer, target), sock=sock, backlog=1024)
        for sock in _bound(namespace, socket.SOCK_DGRAM):
            await loop.create_datagram_endpoint(partial(DatagramAnswerer, target), sock=sock)
    print(json.dumps({"event": "ready"}), flush=True)
    ended = asyncio.Event()
    loop.add_reader(sys.stdin, ended.set)
    await ended.wait()
    loop.remove_reader(sys.stdin)
    sent = {str(target): resets_sent(namespace) for target, namespace in targets.items()}
    print(json.dumps({"event": "resets", "sent": sent}), flush=True)


def main() -> None:
    """Entry of the process."""
    allow_many_files()
    asyncio.run(serve({int(target): name for target, name in json.loads(sys.argv[1]).items()}))


if __name__ == "__main__":
    main()
