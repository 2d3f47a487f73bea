"""Conversion of VerdictService messages into the core's verdicts. Pure; errors name the wrong field."""

import math
import socket
from collections.abc import Sequence
from typing import NoReturn

from lbguard.api.gen.v1 import lbguard_pb2 as pb
from lbguard.core.addr import Ip, is_link_local
from lbguard.core.model import (
    ConnectionSubject,
    FamilyEvidence,
    LinkSubject,
    Subject,
    TargetSubject,
    Verdict,
    VerdictState,
)

LEASE_S_MAX = 300.0
HEAL_S_MAX = 300.0
SINCE_REPLY_S_MAX = 1e9
CONNECTION_ID_MAX = 253
CONNECTION_IPS_MAX = 16
_MAC_BYTES = 6
_SHOWN = 60

_STATES = {
    pb.VERDICT_STATE_UP: VerdictState.UP,
    pb.VERDICT_STATE_DEGRADED: VerdictState.DEGRADED,
    pb.VERDICT_STATE_DOWN: VerdictState.DOWN,
    pb.VERDICT_STATE_HEALING: VerdictState.HEALING,
    pb.VERDICT_STATE_ENDED: VerdictState.ENDED,
}
_STATE_NAMES = ", ".join(pb.VerdictState.Name(number) for number in _STATES)
_V6_SELF = (bytes(16), bytes(15) + b"\x01")
_V4_MAPPED = bytes(10) + b"\xff\xff"


class InvalidField(Exception):  # noqa: N818 (it names the answer)
    """A field of a request is wrong. `path` is its place, such as `verdicts[3].lease_s`; the text has all of it.

    `allowed`: the values that are not refused, in words.
    """

    def __init__(self, path: str, value: object, allowed: str) -> None:
        shown = repr(value)
        shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
        super().__init__(f"{path} = {shown}; allowed: {allowed}")
        self.path = path
        self._value = value
        self.allowed = allowed

    def within(self, place: str) -> "InvalidField":
        """Return the same, seen from the message around it."""
        return InvalidField(f"{place}.{self.path}", self._value, self.allowed)


def verdict_from_proto(message: pb.Verdict, index: int = 0) -> Verdict:
    """Return the verdict of a message.

    Args:
        message: the message.
        index: index of the verdict in the request, for the path of a wrong field.

    Raises:
        InvalidField: the first field that is wrong.
    """
    try:
        return _verdict(message)
    except InvalidField as invalid:
        raise invalid.within(f"verdicts[{index}]") from None


def _verdict(message: pb.Verdict) -> Verdict:
    state = _STATES.get(message.state)
    if state is None:
        raise InvalidField("state", message.state, _STATE_NAMES)
    if not 0 < message.lease_s <= LEASE_S_MAX:  # also refuses NaN
        raise InvalidField("lease_s", message.lease_s, f"above 0, at most {LEASE_S_MAX:g} (seconds)")
    heal_s = message.heal_s
    if not 0 <= heal_s <= HEAL_S_MAX:
        raise InvalidField("heal_s", heal_s, f"0 to {HEAL_S_MAX:g} (seconds)")
    if heal_s and state is not VerdictState.HEALING:
        raise InvalidField("heal_s", heal_s, "0 unless state is VERDICT_STATE_HEALING")
    mac = message.new_mac
    if mac and (len(mac) != _MAC_BYTES or mac[0] & 1 or not any(mac)):
        raise InvalidField("new_mac", mac.hex(":"), "empty, or the 6 bytes of a unicast address other than 0")
    return Verdict(
        subject=_subject(message.subject, state),
        state=state,
        generation=message.generation,
        sequence=message.sequence,
        lease_s=message.lease_s,
        heal_s=heal_s,
        evidence=_evidence(message.evidence) if message.evidence else (),
        new_mac=mac,
    )


def _subject(message: pb.Subject, state: VerdictState) -> Subject:
    match message.WhichOneof("kind"):
        case "link":
            link = message.link
            lb_ip, proxy_ip = _ip("subject.link.lb_ip", link.lb_ip), _ip("subject.link.proxy_ip", link.proxy_ip)
            if len(lb_ip) != len(proxy_ip):
                raise InvalidField("subject.link.proxy_ip", link.proxy_ip, "an address of the family of lb_ip")
            if lb_ip == proxy_ip:
                raise InvalidField("subject.link.proxy_ip", link.proxy_ip, "another address than lb_ip")
            return LinkSubject(lb_ip=lb_ip, proxy_ip=proxy_ip)
        case "target_ip":
            return TargetSubject(ip=_ip("subject.target_ip", message.target_ip))
        case "connection":
            return _connection(message.connection, state)
        case _:
            raise InvalidField("subject.kind", None, "one of link, target_ip, connection")


def _connection(message: pb.ConnectionSubject, state: VerdictState) -> ConnectionSubject:
    if not message.id or len(message.id) > CONNECTION_ID_MAX or not message.id.isprintable():
        raise InvalidField("subject.connection.id", message.id, f"1 to {CONNECTION_ID_MAX} printable characters")
    lb_ips = _ips("subject.connection.lb_ips", message.lb_ips)
    peer_ips = _ips("subject.connection.peer_ips", message.peer_ips)
    if not lb_ips and not peer_ips and state is not VerdictState.ENDED:
        raise InvalidField(
            "subject.connection", "no address", "an address in lb_ips or peer_ips, unless state is VERDICT_STATE_ENDED"
        )
    return ConnectionSubject(id=message.id, lb_ips=lb_ips, peer_ips=peer_ips)


def _ips(path: str, texts: Sequence[str]) -> tuple[Ip, ...]:
    if len(texts) > CONNECTION_IPS_MAX:
        raise InvalidField(path, f"{len(texts)} addresses", f"at most {CONNECTION_IPS_MAX}")
    return tuple(_ip(f"{path}[{index}]", text) for index, text in enumerate(texts))


def _ip(path: str, text: str) -> Ip:
    # inet_pton is strict (no prefix length, no scope, no leading zeros) and several times faster than `ipaddress`.
    try:
        ip = socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)
    except (OSError, ValueError):
        _refuse_ip(path, text)
    if len(ip) == 4:
        # 0/8 this host, 127/8 loopback, 224/4 multicast, 240/4 reserved with broadcast.
        if ip[0] in {0, 127} or ip[0] >= 224:
            _refuse_ip(path, text)
    elif ip[0] == 0xFF or is_link_local(ip) or ip in _V6_SELF or ip[:12] == _V4_MAPPED:
        _refuse_ip(path, text)
    return ip


def _refuse_ip(path: str, text: str) -> NoReturn:
    allowed = "a unicast IPv4 or IPv6 address without prefix length, neither loopback, link-local nor IPv4-mapped"
    raise InvalidField(path, text, allowed)


def _evidence(messages: Sequence[pb.FamilyEvidence]) -> tuple[FamilyEvidence, ...]:
    if len(messages) > 2:
        raise InvalidField("evidence", f"{len(messages)} entries", "at most one for each family")
    entries = []
    for index, message in enumerate(messages):
        try:
            entries.append(_family(message))
        except InvalidField as invalid:
            raise invalid.within(f"evidence[{index}]") from None
    if len(entries) == 2 and entries[0].ipv4 == entries[1].ipv4:
        raise InvalidField("evidence[1].family", messages[1].family, "another family than evidence[0]")
    return tuple(entries)


def _family(message: pb.FamilyEvidence) -> FamilyEvidence:
    if message.family not in {4, 6}:
        raise InvalidField("family", message.family, "4 or 6")
    if message.received > message.sent:
        raise InvalidField("received", message.received, f"at most sent, which is {message.sent}")
    low, median, high = message.rtt_min_s, message.rtt_median_s, message.rtt_max_s
    for name, value in (("rtt_min_s", low), ("rtt_median_s", median), ("rtt_max_s", high)):
        if not 0 <= value < math.inf:
            raise InvalidField(name, value, "0 or more, finite (seconds)")
    if not low <= median <= high:
        raise InvalidField("rtt_median_s", median, f"between rtt_min_s and rtt_max_s, {low:g} to {high:g}")
    since_reply_s = message.since_reply_s if message.HasField("since_reply_s") else None
    if since_reply_s is not None and not 0 <= since_reply_s <= SINCE_REPLY_S_MAX:
        raise InvalidField("since_reply_s", since_reply_s, f"absent, or 0 to {SINCE_REPLY_S_MAX:g} (seconds)")
    return FamilyEvidence(
        ipv4=message.family == 4,
        sent=message.sent,
        received=message.received,
        rtt_min_s=low,
        rtt_median_s=median,
        rtt_max_s=high,
        since_reply_s=since_reply_s,
    )
