"""The packet process of the stand-in for nfqlb (`nfqlb flowlb`): takes packets from NFQUEUE and sets their fwmark.

A packet of a flow is hashed over protocol, addresses and ports (nfqlb's hash mode 0, though not with its function), so
all packets of a connection meet the same slot of the memory. The target's fwmark goes with the verdict. What belongs to
no flow or has no target is dropped, as by the real one. So are fragments, which the real one can follow.

Flows are declared by other calls (`flow-set`, `flow-delete`) over an abstract unix socket, which is seen in the same
network namespace alone: one JSON object there, the answer back.
"""

import contextlib
import ipaddress
import json
import os
import selectors
import socket
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

from lbguard.kernel.codec.framing import HEADER, attribute, attributes, message
from lbguard.lab.nfqlb_stand_in import Memory

OK: Final = "OK"
SERVER: Final = "\0lbguard-lab-nfqlb"
PROTOCOLS: Final = {"tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP, "sctp": 132}
_REQUEST_BYTES: Final = 65536
_TIMEOUT_S: Final = 5.0

# include/uapi/linux/netfilter/nfnetlink_queue.h
_SUBSYSTEM: Final = 3 << 8  # NFNL_SUBSYS_QUEUE
_PACKET, _VERDICT, _CONFIG = _SUBSYSTEM | 0, _SUBSYSTEM | 1, _SUBSYSTEM | 2
_CONFIG_COMMAND, _CONFIG_PARAMETERS, _CONFIG_LENGTH, _CONFIG_MASK, _CONFIG_FLAGS = 1, 2, 3, 4, 5
_BIND, _COPY_PACKET, _TAKE_LARGE = 1, 2, 4  # NFQNL_CFG_CMD_BIND, NFQNL_COPY_PACKET, NFQA_CFG_F_GSO
_PACKET_HEADER, _VERDICT_HEADER, _MARK, _PAYLOAD = 1, 2, 3, 10
_DROP, _ACCEPT = 0, 1
COPY_BYTES: Final = 128
"""Of each packet: its headers are all that is read."""

_ACK: Final = 4
_ERROR: Final = 2
_NETFILTER: Final = 12
_SOL_NETLINK, _NO_ENOBUFS = 270, 5
_RECEIVE_BUFFER_BYTES: Final = 8 << 20
_BURST: Final = 64
"""Packets that get their verdicts in one message."""
_GENERIC: Final = struct.Struct("!BBH")
_BODY_AT: Final = HEADER.size + _GENERIC.size


@dataclass(frozen=True, slots=True)
class Tuple5:
    """Five-tuple that identifies a connection; `key` is all of it."""

    protocol: int
    destination: bytes
    key: bytes


def dissect(packet: bytes) -> Tuple5 | None:
    """Read the headers of an IPv4 or IPv6 packet; None for a fragment and for what has no ports."""
    version = packet[0] >> 4 if packet else 0
    if version == 4 and len(packet) >= 20:
        (fragment,) = struct.unpack_from("!H", packet, 6)
        protocol, addresses, ports_at = packet[9], packet[12:20], 4 * (packet[0] & 15)
        if fragment & 0x3FFF:  # more to come, or not the first
            return None
    elif version == 6 and len(packet) >= 40:
        protocol, addresses, ports_at = packet[6], packet[8:40], 40
    else:
        return None
    ports = packet[ports_at : ports_at + 4]
    if protocol not in PROTOCOLS.values() or len(ports) < 4:
        return None
    return Tuple5(protocol, addresses[len(addresses) // 2 :], bytes([protocol]) + addresses + ports)


@dataclass(frozen=True, slots=True)
class Flow:
    """Match of packets to a memory; no protocols and no destinations mean all of them."""

    memory: Memory
    priority: int
    protocols: frozenset[int]
    destinations: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]

    def takes(self, packet: Tuple5) -> bool:
        """Return whether a packet belongs to the flow."""
        if self.protocols and packet.protocol not in self.protocols:
            return False
        address = ipaddress.ip_address(packet.destination)
        return not self.destinations or any(address in network for network in self.destinations)


class Flows:
    """The flows that were declared, and the mark that each packet gets by them."""

    def __init__(self, shm_dir: Path) -> None:
        self._shm_dir = shm_dir
        self._flows: dict[str, Flow] = {}
        # A destination meets the same flow every time, and looking it up takes longer than all the rest.
        self._met: dict[tuple[int, bytes], Memory | None] = {}

    def change(self, command: str, options: dict[str, str]) -> str:
        """Carry out `flow-set` or `flow-delete`, and return the answer."""
        self._met.clear()
        if command == "flow-delete":
            self._flows.pop(options["name"], None)
            return OK
        names = [name for name in options.get("protocols", "").split(",") if name]
        if not set(names) <= set(PROTOCOLS):
            return "Invalid protocols"
        try:
            networks = [ipaddress.ip_network(each) for each in options.get("dsts", "").split(",") if each]
        except ValueError:
            return "Invalid dsts"
        try:
            memory = Memory(self._shm_dir / options["target"])
        except (OSError, ValueError):
            return "FAIL: Couldn't create load-balancer"
        protocols = frozenset(PROTOCOLS[name] for name in names)
        self._flows[options["name"]] = Flow(memory, int(options.get("prio", "0")), protocols, tuple(networks))
        return OK

    def mark(self, packet: bytes) -> int:
        """Return the fwmark of a packet; negative when it has no flow or no target."""
        known = dissect(packet)
        if known is None:
            return -1
        where = (known.protocol, known.destination)
        if where not in self._met:
            self._met[where] = self._memory(known)
        memory = self._met[where]
        return -1 if memory is None else memory.mark_of(zlib.crc32(known.key))

    def _memory(self, packet: Tuple5) -> Memory | None:
        taking = [flow for flow in self._flows.values() if flow.takes(packet)]
        return max(taking, key=lambda flow: flow.priority).memory if taking else None


class Queues:
    """Packet queues of this network namespace, all on one netlink socket."""

    def __init__(self, numbers: range, length: int) -> None:
        """Bind the queues.

        Raises:
            OSError: the kernel refuses, or somebody else has one of them.
        """
        # It takes long to load, and only the process that works on packets needs it.
        from lbguard.kernel.sockets import open_netlink

        self._socket = open_netlink(_NETFILTER, receive_buffer_bytes=_RECEIVE_BUFFER_BYTES)
        # What does not fit is dropped by the kernel; to be told of it would be no use.
        self._socket.setsockopt(_SOL_NETLINK, _NO_ENOBUFS, 1)
        for number in numbers:
            self._configure(number, attribute(_CONFIG_COMMAND, struct.pack("!BxH", _BIND, 0)))
            self._configure(number, attribute(_CONFIG_PARAMETERS, struct.pack("!IB", COPY_BYTES, _COPY_PACKET)))
            self._configure(number, attribute(_CONFIG_LENGTH, struct.pack("!I", length)))
            large = struct.pack("!I", _TAKE_LARGE)
            self._configure(number, attribute(_CONFIG_FLAGS, large) + attribute(_CONFIG_MASK, large))
        self._socket.setblocking(False)

    def fileno(self) -> int:
        """Return the socket's descriptor, to wait for packets."""
        return self._socket.fileno()

    def work(self, flows: Flows) -> None:
        """Give every packet that waits its verdict, up to a burst."""
        verdicts: list[bytes] = []
        with contextlib.suppress(BlockingIOError):
            while len(verdicts) < _BURST:
                data, (port, _groups) = self._socket.recvfrom(_REQUEST_BYTES)
                if port == 0:
                    verdicts.append(verdict_of(data, flows))
        if verdicts:
            self._socket.sendto(b"".join(verdicts), (0, 0))

    def _configure(self, number: int, body: bytes) -> None:
        self._socket.sendto(_for_queue(_CONFIG, number, body, _ACK), (0, 0))
        # A packet that came already would stay without a verdict, but nobody sends any before a flow is declared.
        data = bytes(_BODY_AT)
        while HEADER.unpack_from(data)[1] != _ERROR:
            data = self._socket.recv(_REQUEST_BYTES)
        (code,) = struct.unpack_from("=i", data, HEADER.size)
        if code:
            raise OSError(-code, f"queue {number}: {os.strerror(-code)}")


def _for_queue(kind: int, number: int, body: bytes, flags: int = 0) -> bytes:
    return message(kind, flags, _GENERIC.pack(0, 0, number) + body)


def verdict_of(data: bytes, flows: Flows) -> bytes:
    """Return the verdict for a packet message; nothing for any other message, such as that of a late verdict."""
    if HEADER.unpack_from(data)[1] != _PACKET:
        return b""
    (queue,) = struct.unpack_from("!H", data, _BODY_AT - 2)
    known = dict(attributes(memoryview(data)[_BODY_AT:]))
    (number,) = struct.unpack_from("!I", known[_PACKET_HEADER])
    mark = flows.mark(bytes(known.get(_PAYLOAD, b"")))
    body = attribute(_VERDICT_HEADER, struct.pack("!II", _DROP if mark < 0 else _ACCEPT, number))
    if mark >= 0:
        body += attribute(_MARK, struct.pack("!I", mark))
    return _for_queue(_VERDICT, queue, body)


def serve(options: dict[str, str], shm_dir: Path) -> NoReturn:
    """Do `nfqlb flowlb`: work on packets and declarations until killed.

    Raises:
        OSError: a queue or the server's name is taken, or the kernel refuses.
    """
    first, _, last = options.get("queue", "2").partition(":")
    flows = Flows(shm_dir)
    queues = Queues(range(int(first), int(last or first) + 1), int(options.get("qlength", "1024")))
    server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    server.bind(SERVER)
    server.listen()
    with selectors.DefaultSelector() as selector:
        selector.register(queues, selectors.EVENT_READ)
        selector.register(server, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is server:
                    _answer(server, flows)
                else:
                    queues.work(flows)


def _answer(server: socket.socket, flows: Flows) -> None:
    caller, _ = server.accept()
    caller.settimeout(_TIMEOUT_S)
    with caller, contextlib.suppress(OSError, ValueError):
        command, options = json.loads(caller.recv(_REQUEST_BYTES))
        caller.sendall(flows.change(command, options).encode())


def ask(command: str, options: dict[str, str]) -> str:
    """Hand a declaration to the packet process of this network namespace, and return its answer.

    Raises:
        OSError: there is none, or it does not answer.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as caller:
        caller.settimeout(_TIMEOUT_S)
        caller.connect(SERVER)
        caller.sendall(json.dumps([command, options]).encode())
        return caller.recv(_REQUEST_BYTES).decode()
