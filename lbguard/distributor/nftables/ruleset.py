"""Ruleset of the embedded distributor as nft text; pure, no kernel.

One table `inet lbguard` holds, for each stream:

- map `slots_S`: slot number to fwmark, one element a slot; no element means "no target". A map of another size is
  created as `spare_S`, filled, and replaces it (the next one is `slots_S` again);
- set `active_S`: the fwmarks of the active targets, so that a target that owns no slot is still known as active;
- counter `unserved_S`: packets to the VIPs that found no target and were dropped;
- chain `vips_S`, hooked to prerouting before routing: packets to the stream's VIPs go to
- chains `ipv4_S` and `ipv6_S`: the choice of hash key; and `ports4_S`, `ports6_S`: the five-tuple.

S is the stream's name, encoded so that no name can inject syntax and no two names collide.

Hash keys of packets (all with jhash, one seed, modulo M):

- TCP, UDP, SCTP: source, destination, protocol, source port, destination port;
- ICMP errors that quote a TCP, UDP or SCTP packet: the same five values of the flow, read from the quoted packet with
  the two sides swapped. A target answered the client, and a router on the path sends the error about that answer to the
  VIP. So path MTU discovery reaches the target whose packet was too big. Quoted first fragments of IPv6 are supported;
  IPv4 options or IPv6 extension headers in the quoted packet are not: such errors are hashed by the quoted addresses;
- everything else (echo requests, ESP, ...): source and destination.

Fragments. Only the first fragment of a packet carries ports, so the whole packet must be reassembled before it is
hashed. The kernel does that in its prerouting defragmentation hook (priority -400), which conntrack switches on, and
which the `tproxy` expression switches on *without* conntrack. So the table has a chain `defragment` with tproxy rules
that no rule jumps to: their existence alone enables the hook. No connection is tracked, and the load balancer stays
stateless. The kernel fragments the packet again on the way out, as large as the largest fragment it had received. Where
tproxy is missing, fragments arrive here: all of them, including the first, are hashed by addresses, so that they reach
one target.

A lookup is tried twice before a packet is dropped. A commit first switches the generation, then unlinks old elements,
then makes new ones valid for readers of the old generation too; a lookup that began before the switch and is suspended
meanwhile (a virtual CPU may be) could find neither. No run has shown this, and the second lookup costs nothing unless
the first misses.
"""

import ipaddress
import string
from collections import Counter
from collections.abc import Collection, Iterable
from typing import NamedTuple

from lbguard.core.addr import Prefix, is_ipv4, prefix_of

FAMILY = "inet"
TABLE = "lbguard"
DEFRAGMENT = "defragment"

_TABLE_MADE = f'add table {FAMILY} {TABLE} {{ comment "made by lbguard: its rules are rewritten and removed by it"; }}'
_PLAIN = frozenset(string.ascii_letters + string.digits + "-.")
_NAME_LEN_MAX = 255
"""NFT_NAME_MAXLEN (256) with its terminating zero."""

_PORTS = "meta l4proto { tcp, udp, sctp }"
_FOUR_ERRORS = "icmp type { destination-unreachable, time-exceeded, parameter-problem }"
_SIX_ERRORS = "icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, parameter-problem }"
_QUOTED_PORTS = "{ 6, 17, 132 }"

# Offsets in bits from the ICMP header (8 bytes), behind which the quoted packet starts.
_FOUR_ADDRESSES = "ip saddr . ip daddr"
_FOUR_TUPLE = f"{_FOUR_ADDRESSES} . meta l4proto . th sport . th dport"
_FOUR_QUOTED_ADDRESSES = "@th,192,32 . @th,160,32"
_FOUR_QUOTED_TUPLE = f"{_FOUR_QUOTED_ADDRESSES} . @th,136,8 . @th,240,16 . @th,224,16"
_FOUR_QUOTES_PORTS = f"@th,64,8 0x45 @th,112,16 & 0x1fff == 0 @th,136,8 {_QUOTED_PORTS}"
_SIX_ADDRESSES = "ip6 saddr . ip6 daddr"
_SIX_TUPLE = f"{_SIX_ADDRESSES} . meta l4proto . th sport . th dport"
_SIX_QUOTED_ADDRESSES = "@th,256,128 . @th,128,128"
_SIX_QUOTED_TUPLE = f"{_SIX_QUOTED_ADDRESSES} . @th,112,8 . @th,400,16 . @th,384,16"
_SIX_QUOTES_PORTS = f"@th,112,8 {_QUOTED_PORTS}"
_SIX_QUOTED_FRAGMENT_TUPLE = f"{_SIX_QUOTED_ADDRESSES} . @th,384,8 . @th,464,16 . @th,448,16"
_SIX_QUOTES_FIRST_FRAGMENT = f"@th,112,8 44 @th,384,8 {_QUOTED_PORTS} @th,400,16 & 0xfff8 == 0"
_NEIGHBOR_DISCOVERY = (
    "icmpv6 type { nd-router-solicit, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert, nd-redirect }"
)


def encode_name(name: str) -> str:
    """Encode any stream name in the characters of an nft identifier; different names stay different.

    Letters, digits, `-` and `.` stay as they are; every other byte of the UTF-8 text becomes `_` and two hex digits.

    Raises:
        ValueError: the name is empty or too long for the kernel.
    """
    encoded = "".join(chr(byte) if chr(byte) in _PLAIN else f"_{byte:02x}" for byte in name.encode())
    if not encoded:
        raise ValueError("a stream needs a name")
    if len(f"unserved_{encoded}") > _NAME_LEN_MAX:
        raise ValueError(f"the stream name {name[:20]!r}... is too long for an nftables identifier")
    return encoded


def decode_name(encoded: str) -> str:
    """Return the stream name that `encode_name` turned into this.

    Raises:
        ValueError: the text is not an encoded name.
    """
    head, *escaped = encoded.split("_")
    name = (head.encode() + b"".join(bytes.fromhex(part[:2]) + part[2:].encode() for part in escaped)).decode()
    if encode_name(name) != encoded:
        raise ValueError(f"{encoded!r} is not an encoded stream name")
    return name


class StreamNames(NamedTuple):
    """The identifiers of one stream's objects in the table."""

    slots: str
    spare: str
    active: str
    unserved: str
    vips: str
    ipv4: str
    ipv6: str
    ports4: str
    ports6: str

    @property
    def chains(self) -> tuple[str, ...]:
        """The stream's chains, each before those it jumps to, so that they can be deleted in this order."""
        return (self.vips, self.ipv4, self.ipv6, self.ports4, self.ports6)


def stream_names(stream: str) -> StreamNames:
    """Return the identifiers for a stream name.

    Raises:
        ValueError: the name is empty or too long.
    """
    encoded = encode_name(stream)
    return StreamNames(*(f"{kind}_{encoded}" for kind in StreamNames._fields))


def declarations(names: StreamNames, map_name: str, slots: int) -> list[str]:
    """Return the commands that create a stream's maps, sets and counters; existing ones stay unchanged.

    `map_name` is one of the two possible names of the stream's map, `slots` is M.
    """
    return [
        _TABLE_MADE,
        f"add map {FAMILY} {TABLE} {map_name} {{ typeof numgen inc mod {slots} : meta mark; size {slots}; }}",
        f"add set {FAMILY} {TABLE} {names.active} {{ type mark; }}",
        f"add counter {FAMILY} {TABLE} {names.unserved}",
    ]


def hook(names: StreamNames) -> list[str]:
    """Return the commands that make the chain by which a stream's packets come, for a transaction of their own.

    Where a transaction that adds a hook is refused, the kernel drops the packets that are queued.
    """
    chain = f"add chain {FAMILY} {TABLE} {names.vips}"
    return [_TABLE_MADE, f"{chain} {{ type filter hook prerouting priority mangle; policy accept; }}"]


def rules(
    names: StreamNames, vips: Collection[Prefix], *, map_name: str, slots: int, seed: int, defragment: bool
) -> list[str]:
    """Return the commands that create or renew a stream's chains and rules, after its hook and declarations.

    They replace all rules; in one transaction no packet sees a state in between. `slots` is M, `seed` the seed of the
    hash (32 bits).
    """
    lines = [
        *(f"add chain {FAMILY} {TABLE} {chain}" for chain in names.chains[1:]),
        *(f"flush chain {FAMILY} {TABLE} {chain}" for chain in names.chains),
        *(f"add rule {FAMILY} {TABLE} {rule}" for rule in _stream_rules(names, map_name, slots, seed)),
        *(f"add rule {FAMILY} {TABLE} {names.vips} {rule}" for rule in _vip_rules(names, vips)),
    ]
    if defragment:
        lines += [
            f"add chain {FAMILY} {TABLE} {DEFRAGMENT}",
            f"flush chain {FAMILY} {TABLE} {DEFRAGMENT}",
            f"add rule {FAMILY} {TABLE} {DEFRAGMENT} meta l4proto tcp tproxy ip to 127.0.0.1:1",
            f"add rule {FAMILY} {TABLE} {DEFRAGMENT} meta l4proto tcp tproxy ip6 to [::1]:1",
        ]
    return lines


def rules_by_chain(lines: Iterable[str]) -> Counter[str]:
    """Return how many rules the commands of `rules` add to each chain."""
    prefix = f"add rule {FAMILY} {TABLE} "
    return Counter(line.removeprefix(prefix).split(" ", 1)[0] for line in lines if line.startswith(prefix))


def _stream_rules(names: StreamNames, map_name: str, slots: int, seed: int) -> list[str]:
    def lookup(key: str) -> str:
        return f"meta mark set jhash {key} mod {slots} seed {seed:#x} map @{map_name} accept"

    give_up = f"counter name {names.unserved} drop"
    return [
        f"{names.ports4} {lookup(_FOUR_TUPLE)}",
        f"{names.ports4} {lookup(_FOUR_TUPLE)}",
        f"{names.ports4} {give_up}",
        f"{names.ports6} {lookup(_SIX_TUPLE)}",
        f"{names.ports6} {lookup(_SIX_TUPLE)}",
        f"{names.ports6} {give_up}",
        f"{names.ipv4} ip frag-off & 0x3fff != 0 {lookup(_FOUR_ADDRESSES)}",
        f"{names.ipv4} {_PORTS} ip frag-off & 0x3fff == 0 goto {names.ports4}",
        f"{names.ipv4} {_FOUR_ERRORS} {_FOUR_QUOTES_PORTS} {lookup(_FOUR_QUOTED_TUPLE)}",
        f"{names.ipv4} {_FOUR_ERRORS} {lookup(_FOUR_QUOTED_ADDRESSES)}",
        f"{names.ipv4} {lookup(_FOUR_ADDRESSES)}",
        f"{names.ipv4} {lookup(_FOUR_ADDRESSES)}",
        f"{names.ipv4} {give_up}",
        # Neighbour discovery for a VIP is between the gateway and this machine: it must not reach a target.
        f"{names.ipv6} {_NEIGHBOR_DISCOVERY} accept",
        f"{names.ipv6} exthdr frag exists {lookup(_SIX_ADDRESSES)}",
        f"{names.ipv6} {_PORTS} exthdr frag missing goto {names.ports6}",
        f"{names.ipv6} {_SIX_ERRORS} {_SIX_QUOTES_PORTS} {lookup(_SIX_QUOTED_TUPLE)}",
        f"{names.ipv6} {_SIX_ERRORS} {_SIX_QUOTES_FIRST_FRAGMENT} {lookup(_SIX_QUOTED_FRAGMENT_TUPLE)}",
        f"{names.ipv6} {_SIX_ERRORS} {lookup(_SIX_QUOTED_ADDRESSES)}",
        f"{names.ipv6} {lookup(_SIX_ADDRESSES)}",
        f"{names.ipv6} {lookup(_SIX_ADDRESSES)}",
        f"{names.ipv6} {give_up}",
    ]


def _vip_rules(names: StreamNames, vips: Collection[Prefix]) -> list[str]:
    four = [ipaddress.IPv4Network((vip.network, vip.length)) for vip in vips if is_ipv4(vip.network)]
    six = [ipaddress.IPv6Network((vip.network, vip.length)) for vip in vips if not is_ipv4(vip.network)]
    rules = []
    # nftables refuses overlapping prefixes in one set, so they are merged first.
    if four:
        members = ", ".join(map(str, ipaddress.collapse_addresses(four)))
        rules.append(f"ip daddr {{ {members} }} goto {names.ipv4}")
    if six:
        members = ", ".join(map(str, ipaddress.collapse_addresses(six)))
        rules.append(f"ip6 daddr {{ {members} }} goto {names.ipv6}")
    return rules


def overlap(one: Prefix, other: Prefix) -> bool:
    """Return whether two prefixes share an address."""
    if is_ipv4(one.network) != is_ipv4(other.network):
        return False
    length = min(one.length, other.length)
    return prefix_of(one.network, length) == prefix_of(other.network, length)


def map_removal(map_name: str) -> str:
    """Return the command that removes a map that no rule uses."""
    return f"delete map {FAMILY} {TABLE} {map_name}"


def removal(names: StreamNames, present: Collection[str], *, keep_hook: bool) -> list[str]:
    """Return the commands that remove the present objects of a stream (by identifier).

    `keep_hook`: the chain with the hook stays, without rules; see `removal.py`.
    """
    chains = [chain for chain in names.chains if chain in present]
    ended = [chain for chain in chains if chain != names.vips or not keep_hook]
    others = (("map", names.slots), ("map", names.spare), ("set", names.active), ("counter", names.unserved))
    return [
        *(f"flush chain {FAMILY} {TABLE} {chain}" for chain in chains),
        *(f"delete chain {FAMILY} {TABLE} {chain}" for chain in ended),
        *(f"delete {kind} {FAMILY} {TABLE} {name}" for kind, name in others if name in present),
    ]
