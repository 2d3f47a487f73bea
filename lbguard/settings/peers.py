"""Names in TLS certificates, patterns for them, and the rules that say which peers may report on which subnets.

A name is valid only as a whole, and only in printable ASCII characters: libraries cut a name at a zero byte, and
unprintable characters cannot be distinguished. An invalid name is ignored.

In a pattern `*` stands for any text within one part: it does not cross `/` in a SPIFFE ID nor `.` in a host name. `**`
crosses both. Host names are compared without regard to case or to a dot at the end.
"""

import ipaddress
import re
import ssl
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lbguard.core.addr import Prefix, parse_prefix

_SPIFFE = "spiffe://"
_PRINTABLE = re.compile(r"[!-~]+")
_SPIFFE_ID = re.compile(r"spiffe://[A-Za-z0-9._-]+(/[!-~]+)?")
# Characters that no SPIFFE ID contains (they would begin a query or a fragment, or end a user's name), so that one can
# separate a reporter's name from its identity.
_RESERVED = frozenset("#?@")
_HOST_LABEL = re.compile(r"\*|[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?")

_SEQUENCE, _OID, _OCTETS, _EXTENSIONS = 0x30, 0x06, 0x04, 0xA3
_DNS_NAME, _URI = 0x82, 0x86
_SUBJECT_ALT_NAME = b"\x55\x1d\x11"  # 2.5.29.17, RFC 5280


def is_spiffe_id(name: str) -> bool:
    """Return whether a name is a SPIFFE ID: a trust domain, and a path without empty or relative parts."""
    if _SPIFFE_ID.fullmatch(name) is None or not _RESERVED.isdisjoint(name):
        return False
    return all(part not in {"", ".", ".."} for part in name.removeprefix(_SPIFFE).split("/"))


def is_host_name(name: str) -> bool:
    """Return whether a name is a host name; its labels may be `*`, and it may end with a dot."""
    return all(_HOST_LABEL.fullmatch(label) is not None for label in name.removesuffix(".").split("."))


def plain_host(name: str) -> str:
    """Return a host name in the form for comparison."""
    return name.lower().removesuffix(".")


def is_printable(name: str) -> bool:
    """Return whether a name consists of printable ASCII characters, without white space."""
    return _PRINTABLE.fullmatch(name) is not None


def check_pattern(pattern: str) -> None:
    """Check that names can match a pattern; surrounding white space is ignored, and an empty pattern is none.

    Raises:
        ValueError: it contains a character that is not printable ASCII.
    """
    pattern = pattern.strip()
    if pattern and not is_printable(pattern):
        raise ValueError(f"{pattern!r} holds white space or characters that are not printable ASCII; no name has them")


def compile_pattern(pattern: str, separator: str) -> re.Pattern[str]:
    """Return a regular expression for `fullmatch`; `*` does not cross the separator."""
    part = f"[^{re.escape(separator)}]*"
    pieces = re.split(r"(\*\*?)", pattern)
    return re.compile("".join({"*": part, "**": ".*"}.get(piece, re.escape(piece)) for piece in pieces))


def name_matches(names: Sequence[str], pattern: str) -> bool:
    """Return whether one of a server's names matches a pattern; an empty pattern accepts every certificate.

    A pattern with `://` is for SPIFFE IDs, and its `*` crosses `/`. Any other is for host names and addresses; a
    certificate may itself have a wildcard as the first label of a host name (RFC 6125).
    """
    if not pattern:
        return True
    if "://" in pattern:
        wanted = compile_pattern(re.sub(r"\*+", "**", pattern), "/")
        return any(is_spiffe_id(name) and wanted.fullmatch(name) is not None for name in names)
    if _address(pattern):
        return any(_address(name) == _address(pattern) for name in names)
    host = plain_host(pattern)
    wanted, first_label_wild = compile_pattern(host, "."), f"*.{host.partition('.')[2]}"
    for name in names:
        if not is_host_name(name):
            continue
        plain = plain_host(name)
        # A name with `*` is a wildcard of the certificate, not a host.
        if (wanted.fullmatch(plain) is not None and "*" not in plain) or plain == host:
            return True
        if "." in host and "*" not in host and plain == first_label_wild:
            return True
    return False


def names_in_certificate(pem: bytes) -> tuple[list[str], list[str]]:
    """Return the valid SPIFFE IDs and host names of a certificate.

    As the X.509-SVID standard demands, a certificate with several URIs has no SPIFFE ID.
    """
    uris: list[str] = []
    hosts: list[str] = []
    try:
        for tag, value in _alternative_names(ssl.PEM_cert_to_DER_cert(pem.decode("ascii"))):
            if tag == _URI:
                uris.append(value.decode("latin-1"))
            elif tag == _DNS_NAME:
                hosts.append(value.decode("latin-1"))
    except (ValueError, IndexError):
        return [], []  # It was verified, so its kind is unsupported here: it has no names.
    return [uri for uri in uris if len(uris) == 1 and is_spiffe_id(uri)], [host for host in hosts if is_host_name(host)]


def _alternative_names(der: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield tag and content of each of a certificate's alternative names."""
    _, certificate = next(_elements(der), (0, b""))
    _, signed = next(_elements(certificate), (0, b""))
    for tag, content in _elements(signed):
        if tag != _EXTENSIONS:
            continue
        for _, extensions in _elements(content):
            for _, extension in _elements(extensions):
                fields = list(_elements(extension))
                if fields and fields[0] == (_OID, _SUBJECT_ALT_NAME) and fields[-1][0] == _OCTETS:
                    for _, names in _elements(fields[-1][1]):
                        yield from _elements(names)


def _elements(der: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield tag and content of each element in a row (DER, X.690).

    Raises:
        ValueError, IndexError: the bytes are not DER.
    """
    at = 0
    while at < len(der):
        tag, length = der[at], der[at + 1]
        at += 2
        if length & 0x80:
            size = length & 0x7F
            length = int.from_bytes(der[at : at + size])
            at += size
        if at + length > len(der):
            raise ValueError("an element is longer than what is around it")
        yield tag, der[at : at + length]
        at += length


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text.strip("[]"))
    except ValueError:
        return None


UNIX_PEER = "unix"
_KINDS = ("spiffe://", "dns:")

RULE_EXAMPLE = "spiffe://example.org/ns/*/proxy=172.16.0.0/16 fd00::/8"
"""A rule as text: PEER=SUBNET SUBNET ..."""


@dataclass(frozen=True, slots=True)
class PeerRule:
    """Rule: peers whose name matches the pattern `peer` may report on addresses in `subnets`."""

    peer: str
    subnets: tuple[Prefix, ...]

    def __str__(self) -> str:
        return f"{self.peer}={' '.join(map(str, self.subnets))}"


def parse_rule(value: object) -> PeerRule:
    """Parse a rule: text `PEER=SUBNET SUBNET`, or a mapping with `peer` and a list `subnets`.

    Raises:
        ValueError: it is not a rule; the text names the fault.
    """
    if isinstance(value, PeerRule):
        return value
    if isinstance(value, str):
        # A subnet contains no "=", a name may.
        peer, equals, subnets = value.rpartition("=")
        if not equals:
            raise ValueError(f"{value!r} is not a rule PEER=SUBNETS")
        return _rule(peer.strip(), subnets.split())
    if isinstance(value, dict) and value.keys() == {"peer", "subnets"}:
        subnets = value["subnets"]
        if isinstance(value["peer"], str) and isinstance(subnets, list | tuple):
            return _rule(value["peer"].strip(), [str(subnet) for subnet in subnets])
    raise ValueError(f"{value!r} is not a mapping of `peer` (text) and `subnets` (a list)")


def _rule(peer: str, subnets: Sequence[str]) -> PeerRule:
    if peer != UNIX_PEER and not any(peer.startswith(kind) and len(peer) > len(kind) for kind in _KINDS):
        raise ValueError(f"{peer!r} is not a peer: unix, spiffe://TRUST-DOMAIN/PATH or dns:NAME")
    check_pattern(peer)
    prefixes = []
    for subnet in subnets:
        try:
            prefixes.append(parse_prefix(subnet))
        except ValueError as error:
            raise ValueError(f"{subnet!r} is not a subnet: {error}") from None
    return PeerRule(peer, tuple(prefixes))
