"""Ruleset of flow affinity, as nftables text and as rules for pyroute2. Pure, no kernel.

One table `inet lbguard-affinity` acts after the distributor (priority -150 in nfqlb's NFQUEUE rule and in the
nftables distributor) on every packet that carries a mark. For each protocol and family it holds a map
`flows_PROTOCOL_FAMILY` from the flow's addresses and ports to the mark of the target that answered it.

- A packet of a remembered flow gets the flow's mark while that target is `served`, and renews the time-out of the
  entry. After a FIN, a RST or the end of an SCTP association the time-out is a few seconds. The last ACK of a TCP
  connection has no FIN, so the set `closed_FAMILY` holds the ended flows.
- A flow whose target is no longer served is forgotten. Its packet goes to a healthy target, which resets the
  connection, so that the client reconnects at once. A packet for a target that is no longer registered is dropped,
  because its mark has no route; the next packet follows the distributor's table.
- A new flow whose target is cut off (`fib daddr . mark oif missing`: the mark's table has nothing but its blackhole)
  or is in the set `avoid_FAMILY` is given to a healthy target by hash, and is remembered. If that target is cut off
  too, the kernel tries another hash, up to eight in all. This works while lbguard is stopped.
- Any other new flow is remembered if its mark is in the set `learn`: its stream is in an incident.
- When the map is full, no flow is steered, because the second packet would not reach the target of the first one. The
  first packet of a flow to a target that is cut off is dropped, as the blackhole route does; a target to avoid is
  used.
- An ICMP error gets the mark of the flow that it quotes.

Whole packets are hashed: rules of the chain `defragment`, which no packet reaches, make the kernel reassemble
fragments first (see `distributor/nftables/ruleset.py`).

libnftables 1.0.6 aborts at `update` of a map with a key over 16 bytes, such as every IPv6 key, and cannot look up the
addresses that an ICMP error quotes. pyroute2 adds those rules (`raw_rules`). `nft list ruleset` of other programs
must be able to show each of them: it aborts at a rule that looks up the result of a lookup. `update` does not change
the mark of an entry, so a flow that gets another target is forgotten first.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from pyroute2.nftables.expressions import genex

from lbguard.distributor.nftables.ruleset import encode_name

FAMILY: Final = "inet"
TABLE: Final = "lbguard-affinity"
VERSION: Final = 2
"""A table of another version is created again."""
CHOICES: Final = 1024
"""Slots among which the healthy targets of a stream are spread."""
CLOSING_S: Final = 10
"""Seconds that an ended flow is remembered for, so that its last packets still find its target."""
COUNTERS: Final = ("steered", "orphaned", "refused")

_SEEDS: Final = (1, 2, 3, 4, 5, 6, 7, 8)
STEER_RULES: Final = 2 * len(_SEEDS) - 1
"""Number of rules in each chain that chooses a target."""
_ELEMENTS_MAX: Final = 500
"""Elements in one command: where sockets are small, each is a transaction."""
_PROTOCOLS: Final = {"tcp": 6, "sctp": 132, "udp": 17}
_TABLE: Final = f"{FAMILY} {TABLE}"
_NAME_LEN_MAX: Final = 200
"""The kernel's own limit is 255, and prefixes need some of it."""

# include/uapi/linux/netfilter/nf_tables.h; registers are numbered in steps of four bytes.
_REGISTER: Final = 8  # NFT_REG32_00
_KEY_WORDS: Final = {4: 4, 6: 10}
_NETWORK, _TRANSPORT = 1, 2  # NFT_PAYLOAD_..._HEADER
_META_MARK: Final = 3
_UPDATE, _DELETE = 1, 2  # NFT_DYNSET_OP_...
_EQUAL: Final = 0  # NFT_CMP_EQ


@dataclass(frozen=True, slots=True, kw_only=True)
class AffinityOptions:
    """Bounds of the flow maps.

    Attributes:
        every_flow: remember every new flow, not only those around an incident.
        max_flows: entries of each map; one stands for a protocol in a family.
        idle_s: seconds without a packet after which a flow is forgotten.
        udp: remember and steer UDP flows too.
    """

    every_flow: bool = False
    max_flows: int = 65_536
    idle_s: int = 900
    udp: bool = False

    @property
    def protocols(self) -> tuple[str, ...]:
        """The protocols whose flows are remembered."""
        return tuple(name for name in _PROTOCOLS if self.udp or name != "udp")


class RawRule(NamedTuple):
    """A rule that nft cannot write: the chain that it is added to, and its expressions as pyroute2 takes them."""

    chain: str
    expressions: Sequence[dict[str, Any]]


def flow_map(protocol: str, family: int) -> str:
    """Return the name of the map of a protocol's flows in a family (4 or 6)."""
    return f"flows_{protocol}_{family}"


def closed_set(family: int) -> str:
    """Return the name of the set of TCP flows that one side has ended."""
    return f"closed_{family}"


def steer_chain(stream: str, family: int) -> str:
    """Return the name of the chain that chooses a healthy target of a stream."""
    return f"steer_{family}_{_identifier(stream)}"


def healthy_map(stream: str, family: int) -> str:
    """Return the name of the map from a slot to a healthy target of a stream."""
    return f"healthy_{family}_{_identifier(stream)}"


def _identifier(stream: str) -> str:
    """Return a stream's name as part of an identifier; of a long name, its digest, which no other name is encoded to.

    nfqlb takes names that nftables does not.
    """
    try:
        encoded = encode_name(stream)
    except ValueError:
        encoded = ""
    if encoded and len(encoded) <= _NAME_LEN_MAX:
        return encoded
    return f"__{hashlib.sha256(stream.encode()).hexdigest()}"


def key(protocol: str, family: int) -> str:
    """Return the expression that identifies a flow."""
    addresses = "ip saddr . ip daddr" if family == 4 else "ip6 saddr . ip6 daddr"
    return f"{addresses} . {protocol} sport . {protocol} dport"


def layout_chain(options: AffinityOptions) -> str:
    """Return the name of an empty chain that says by which version and bounds the table was made."""
    extent = "all" if options.every_flow else "incident"
    return f"layout-{VERSION}-{options.max_flows}-{options.idle_s}-{extent}-{'-'.join(options.protocols)}"


def rule_counts(options: AffinityOptions) -> dict[str, int]:
    """Return how many rules each chain holds that belongs to no stream."""
    chains = [line.split()[4] for line in rules(options)] + [rule.chain for rule in raw_rules(options)]
    return dict(Counter(chains))


def structure(options: AffinityOptions) -> list[str]:
    """Return the commands that make sets, maps and chains; those that exist keep their elements, chains are emptied."""
    lines = [f'add table {_TABLE} {{ comment "made by lbguard: flow affinity, version {VERSION}"; }}']
    lines += [f"add counter {_TABLE} {name}" for name in COUNTERS]
    lines += [f"add set {_TABLE} {name} {{ type mark; }}" for name in ("marks", "served", "learn")]
    for family in (4, 6):
        lines.append(f"add set {_TABLE} avoid_{family} {{ type mark; }}")
        lines.append(f"add map {_TABLE} steer_{family} {{ type mark : verdict; }}")
        address = f"ipv{family}_addr"
        for protocol in options.protocols:
            lines.append(
                f"add map {_TABLE} {flow_map(protocol, family)} {{"
                f" type {address} . {address} . inet_service . inet_service : mark;"
                f" size {options.max_flows}; flags dynamic,timeout; timeout {options.idle_s}s; }}"
            )
        lines.append(
            f"add set {_TABLE} {closed_set(family)} {{"
            f" type {address} . {address} . inet_service . inet_service;"
            f" size {options.max_flows}; flags dynamic,timeout; timeout {CLOSING_S}s; }}"
        )
    chains = [name for protocol in options.protocols for family in (4, 6) for name in _chains(protocol, family)]
    chains += ["quoted_4", "quoted_6", "defragment", layout_chain(options)]
    hook = "{ type filter hook prerouting priority -140; policy accept; }"
    lines += [f"add chain {_TABLE} {name}" for name in chains] + [f"add chain {_TABLE} prerouting {hook}"]
    lines += [f"flush chain {_TABLE} {name}" for name in [*chains, "prerouting"]]
    return lines


def rules(options: AffinityOptions) -> list[str]:
    """Return the commands that fill the chains, but for the raw rules and those of streams."""
    lines = []
    for protocol in options.protocols:
        for family in (4, 6):
            lines += _flow_rules(protocol, family, every_flow=options.every_flow)
    ways = ", ".join(f"ipv{f} . {p} : goto flow_{p}_{f}" for p in options.protocols for f in (4, 6))
    four = "icmp type { destination-unreachable, time-exceeded, parameter-problem } @th,64,8 0x45"
    six = "icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, parameter-problem }"
    lines += [
        # A remembered flow is looked for whatever target the table names: it may be one that was listed this moment.
        "prerouting meta mark 0 accept",
        f"prerouting meta nfproto . meta l4proto vmap {{ {ways} }}",
        f"prerouting {four} goto quoted_4",
        f"prerouting {six} goto quoted_6",
    ]
    return [f"add rule {_TABLE} {line}" for line in lines]


def defragment() -> list[str]:
    """Return the commands that have fragments put together before they come here; a kernel may refuse them."""
    return [
        f"add rule {_TABLE} defragment meta l4proto tcp tproxy ip to 127.0.0.1:1",
        f"add rule {_TABLE} defragment meta l4proto tcp tproxy ip6 to [::1]:1",
    ]


def raw_rules(options: AffinityOptions) -> list[RawRule]:
    """Return the rules that libnftables cannot write."""
    made = []
    for protocol in options.protocols:
        for family in (4, 6):
            name, load = flow_map(protocol, family), _load_key(family)
            mark = _REGISTER + _KEY_WORDS[family]
            known = [*load, *_lookup(name, into=mark)]
            read_mark = genex("meta", {"key": _META_MARK, "dreg": mark})
            write_mark = genex("meta", {"key": _META_MARK, "sreg": mark})
            entry = {"set_name": name, "sreg_key": _REGISTER}
            made += [
                RawRule(f"recall_{protocol}_{family}", [*known, write_mark]),
                RawRule(
                    f"remember_{protocol}_{family}",
                    [*load, read_mark, genex("dynset", entry | {"op": _UPDATE, "sreg_data": mark})],
                ),
                RawRule(
                    f"closing_{protocol}_{family}",
                    [
                        *load,
                        read_mark,
                        genex("dynset", entry | {"op": _UPDATE, "sreg_data": mark, "timeout": CLOSING_S * 1000}),
                    ],
                ),
                # The kernel asks for data here too, and does not look at it.
                RawRule(
                    f"forget_{protocol}_{family}",
                    [*load, read_mark, genex("dynset", entry | {"op": _DELETE, "sreg_data": mark})],
                ),
                RawRule(
                    f"quoted_{family}",
                    [
                        *_quotes(protocol, family),
                        *_load_quoted_key(family),
                        *_lookup(name, into=mark),
                        write_mark,
                    ],
                ),
            ]
    return made


def stream_objects(stream: str) -> list[str]:
    """Return the commands that make a stream's chains and maps, and fill the chains."""
    lines = []
    for family in (4, 6):
        chain, healthy = steer_chain(stream, family), healthy_map(stream, family)
        addresses = "ip saddr . ip daddr" if family == 4 else "ip6 saddr . ip6 daddr"
        lines += [
            f"add map {_TABLE} {healthy} {{ typeof numgen inc mod {CHOICES} : meta mark; flags interval; }}",
            f"add chain {_TABLE} {chain}",
            f"flush chain {_TABLE} {chain}",
        ]
        for seed in _SEEDS:
            hashed = f"jhash {addresses} . th sport . th dport mod {CHOICES} seed {seed} map @{healthy}"
            lines.append(f"add rule {_TABLE} {chain} meta mark set {hashed}")
            if seed != _SEEDS[-1]:
                lines.append(f"add rule {_TABLE} {chain} fib daddr . mark oif exists return")
    return lines


def drop_steer_chain(chain: str) -> list[str]:
    """Return the commands that remove a chain of `stream_objects` and its map; no mark may lead there any more."""
    healthy = chain.replace("steer_", "healthy_", 1)
    return [f"flush chain {_TABLE} {chain}", f"delete chain {_TABLE} {chain}", f"delete map {_TABLE} {healthy}"]


def fill_healthy(stream: str, family: int, marks: Sequence[int]) -> list[str]:
    """Return the commands that spread a stream's slots over these targets, in place of all before."""
    healthy = healthy_map(stream, family)
    lines = [f"flush map {_TABLE} {healthy}"]
    if marks:
        edges = [CHOICES * n // len(marks) for n in range(len(marks) + 1)]
        shares = ", ".join(
            f"{first}-{end - 1} : {mark}" if end - first > 1 else f"{first} : {mark}"
            for first, end, mark in zip(edges, edges[1:], marks, strict=False)
            if end > first
        )
        lines.append(f"add element {_TABLE} {healthy} {{ {shares} }}")
    return lines


def change_elements(name: str, removed: Iterable[str], added: Iterable[str]) -> list[str]:
    """Return the commands that remove and add elements of a set or map."""
    lines = []
    for verb, elements in (("delete", list(removed)), ("add", list(added))):
        for start in range(0, len(elements), _ELEMENTS_MAX):
            part = ", ".join(elements[start : start + _ELEMENTS_MAX])
            lines.append(f"{verb} element {_TABLE} {name} {{ {part} }}")
    return lines


def _chains(protocol: str, family: int) -> list[str]:
    kinds = (
        *("flow", "new", "again", "first", "known", "avoid", "steer", "learn", "orphan"),
        *("recall", "remember", "closing", "forget"),
    )
    return [f"{kind}_{protocol}_{family}" for kind in kinds]


def _flow_rules(protocol: str, family: int, *, every_flow: bool) -> list[str]:
    """Return the rules of one protocol and family, each behind the name of its chain."""
    at, this = f"{protocol}_{family}", key(protocol, family)
    entry = f"{this} @{flow_map(protocol, family)}"
    begins = {"tcp": "tcp flags & (syn | ack) == syn", "sctp": "sctp chunk init exists"}.get(protocol)
    ends = {
        "tcp": ["tcp flags & (fin | rst) != 0", f"{this} @{closed_set(family)}"],
        "sctp": [f"sctp chunk {kind} exists" for kind in ("abort", "shutdown-ack", "shutdown-complete")],
    }.get(protocol, [])
    tcp = protocol == "tcp"
    return [
        *([f"flow_{at} {begins} goto new_{at}"] if begins else []),
        f"flow_{at} {entry} goto known_{at}",
        # Nothing tells the first packet of a UDP flow from the others.
        *([] if begins else [f"flow_{at} goto new_{at}"]),
        f"known_{at} jump recall_{at}",
        f"known_{at} meta mark != @served goto orphan_{at}",
        *[f"known_{at} {end} goto closing_{at}" for end in ends],
        f"known_{at} goto remember_{at}",
        *([f"closing_{at} update @{closed_set(family)} {{ {this} }}"] if tcp else []),
        # With no healthy target to fall back to, its own is as good as any.
        f"orphan_{at} meta mark @marks meta mark != @steer_{family} goto remember_{at}",
        f"orphan_{at} counter name orphaned",
        f"orphan_{at} jump forget_{at}",
        f"orphan_{at} meta mark != @marks drop",
        f"orphan_{at} meta mark vmap @steer_{family}",
        # The ports of an ended connection may be used again.
        *([f"new_{at} delete @{closed_set(family)} {{ {this} }}"] if tcp else []),
        # A repeated SYN goes where the first one went, unless that target is lost too.
        f"new_{at} {entry} goto again_{at}",
        f"new_{at} meta mark != @marks accept",
        f"new_{at} goto first_{at}",
        f"again_{at} jump recall_{at}",
        f"again_{at} goto first_{at}",
        f"first_{at} meta mark != @served goto steer_{at}",
        f"first_{at} fib daddr . mark oif missing goto steer_{at}",
        f"first_{at} meta mark @avoid_{family} goto avoid_{at}",
        f"first_{at} {'' if every_flow else 'meta mark @learn '}goto learn_{at}",
        f"learn_{at} jump remember_{at}",
        f"learn_{at} {entry} accept",
        f"learn_{at} counter name refused",
        # A target that is only doubted is used where there is no room to remember another one.
        f"avoid_{at} jump remember_{at}",
        f"avoid_{at} {entry} goto steer_{at}",
        f"avoid_{at} counter name refused",
        f"steer_{at} jump forget_{at}",
        f"steer_{at} meta mark != @marks drop",
        f"steer_{at} meta mark @steer_{family} counter name steered",
        f"steer_{at} meta mark vmap @steer_{family}",
        f"steer_{at} jump remember_{at}",
        f"steer_{at} {entry} accept",
        f"steer_{at} counter name refused drop",
    ]


def _load(base: int, offset: int, length: int, register: int) -> dict[str, Any]:
    loaded: dict[str, Any] = genex("payload", {"dreg": register, "base": base, "offset": offset, "len": length})
    return loaded


def _load_key(family: int) -> list[dict[str, Any]]:
    """Load source, destination and both ports into registers from the first on."""
    size, first = (4, 12) if family == 4 else (16, 8)
    words = size // 4
    return [
        _load(_NETWORK, first, size, _REGISTER),
        _load(_NETWORK, first + size, size, _REGISTER + words),
        _load(_TRANSPORT, 0, 2, _REGISTER + 2 * words),
        _load(_TRANSPORT, 2, 2, _REGISTER + 2 * words + 1),
    ]


def _load_quoted_key(family: int) -> list[dict[str, Any]]:
    """Load the key of the flow that an ICMP error is about: it quotes the target's packet, so the sides are swapped."""
    quoted = 8
    size, source, header = (4, 12, 20) if family == 4 else (16, 8, 40)
    words = size // 4
    return [
        _load(_TRANSPORT, quoted + source + size, size, _REGISTER),
        _load(_TRANSPORT, quoted + source, size, _REGISTER + words),
        _load(_TRANSPORT, quoted + header + 2, 2, _REGISTER + 2 * words),
        _load(_TRANSPORT, quoted + header, 2, _REGISTER + 2 * words + 1),
    ]


def _quotes(protocol: str, family: int) -> list[dict[str, Any]]:
    """Match an ICMP error that quotes a packet of a protocol."""
    at = 8 + (9 if family == 4 else 6)
    number = {"attrs": [("NFTA_DATA_VALUE", bytes([_PROTOCOLS[protocol]]))]}
    return [_load(_TRANSPORT, at, 1, _REGISTER), genex("cmp", {"sreg": _REGISTER, "op": _EQUAL, "data": number})]


def _lookup(name: str, into: int) -> list[dict[str, Any]]:
    return [genex("lookup", {"set": name, "sreg": _REGISTER, "dreg": into})]
