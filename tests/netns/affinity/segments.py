"""Packets that begin a flow, go on with it and end it."""

import struct

from tests.netns.distributor.packets import SCTP, TCP, Flow, ip_packet, segment

FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10
_INIT, _DATA, _ABORT, _SHUTDOWN_ACK, _SHUTDOWN_COMPLETE = 1, 0, 6, 8, 14


def tcp(flow: Flow, flags: int, data: bytes = b"") -> bytes:
    """Return a TCP packet with these flags."""
    header = struct.pack("!HHIIBBHHH", flow.sport, flow.dport, 1, 0, 5 << 4, flags, 1024, 0, 0)
    return ip_packet(flow.source, flow.destination, TCP, header + data)


def sctp(flow: Flow, chunk: int) -> bytes:
    """Return an SCTP packet with one chunk."""
    body = struct.pack("!HHIIBBHI", flow.sport, flow.dport, 1, 0, chunk, 0, 8, 0)
    return ip_packet(flow.source, flow.destination, SCTP, body)


def begin(flow: Flow) -> bytes:
    """Return the packet that begins a flow."""
    if flow.protocol == TCP:
        return tcp(flow, SYN)
    if flow.protocol == SCTP:
        return sctp(flow, _INIT)
    return ip_packet(flow.source, flow.destination, flow.protocol, segment(flow))


def go_on(flow: Flow) -> bytes:
    """Return a packet in the middle of a flow."""
    if flow.protocol == TCP:
        return tcp(flow, ACK, b"more")
    if flow.protocol == SCTP:
        return sctp(flow, _DATA)
    return ip_packet(flow.source, flow.destination, flow.protocol, segment(flow, b"more"))


def ends(flow: Flow) -> dict[str, bytes]:
    """Return the packets that end a flow, by name."""
    if flow.protocol == TCP:
        return {"fin": tcp(flow, FIN | ACK), "rst": tcp(flow, RST)}
    kinds = {"abort": _ABORT, "shutdown-ack": _SHUTDOWN_ACK, "shutdown-complete": _SHUTDOWN_COMPLETE}
    return {name: sctp(flow, kind) for name, kind in kinds.items()}
