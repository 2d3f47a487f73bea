"""Ruleset of flow affinity as nftables text. Pure, no kernel; `raw_rules.py` has the rules that nft cannot write.

One table `inet lbguard-affinity` acts after the distributor (`distributor/nftables/queueing.py` says where) on every
packet that carries a mark. For each protocol and family it holds a map `flows_PROTOCOL_FAMILY` from the flow's
addresses and ports to the mark of the target that answered it.

- A packet of a remembered flow gets the flow's mark while that target is `served_FAMILY`, and renews the time-out of
  the entry. After a FIN, a RST or the end of an SCTP association the time-out is a few seconds. The last ACK of a TCP
  connection has no FIN, so the set `closed_FAMILY` holds the ended flows.
- A flow whose target is no longer served is forgotten. Its packet goes to a healthy target, which resets the
  connection, so that the client reconnects at once. A packet for a target that is no longer registered is dropped,
  because its mark has no route; the next packet follows the distributor's table.
- A new flow whose target is cut off (`fib daddr . mark oif missing`: the mark's table has nothing but its blackhole;
  with parking, its route leads to the parking link) or is in the set `avoid_FAMILY` is given to a healthy target
  (`choice.py`), and is remembered. This works while lbguard is stopped.
- Any other new flow is remembered if its mark is in the set `learn`: its stream is in an incident.
- A packet in the middle of a flow that is not remembered follows the distributor's table, with two exceptions. If the
  mark is in the set `observe`, the flow is remembered with it: the table is about to change. If the mark is in the set
  `fallen_FAMILY`, the target is withdrawn in this family and keeps its slots for the other one: a healthy target resets
  the connection.
- When the map is full, no flow is steered, because the second packet would not reach the target of the first one. The
  first packet of a flow to a target that is cut off is dropped, as the blackhole route does; a target to avoid is
  used.
- An ICMP error gets the mark of the flow that it quotes.

`update` does not change the mark of an entry, so a flow that gets another target is forgotten first. Whole packets are
hashed: rules of the chain `defragment`, which no packet reaches, make the kernel reassemble fragments first (see
`distributor/nftables/ruleset.py`).

Order and shape of the rules follow the costs: `python -m tests.bench --only affinity` measures them. TCP is tested by
comparisons, which cost less than a lookup of the protocol; the flow is looked up once, by the rule that sets its mark;
sets that are empty in quiet times (`EXCEPTIONAL_SETS`) have rules only while they are not.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Final

from lbguard.affinity.choice import sweep_rules
from lbguard.affinity.names import (
    CLOSING_S,
    COUNTERS,
    IN_TABLE,
    AffinityOptions,
    closed_set,
    flow_map,
    layout_chain,
)
from lbguard.affinity.raw_rules import raw_rules
from lbguard.core.model import PARKING_LINK
from lbguard.distributor.nftables.queueing import AFFINITY_AFTER, MANGLE
from lbguard.distributor.nftables.ruleset import DEFRAGMENT

DEFAULT_PRIORITY: Final = MANGLE + AFFINITY_AFTER
EXCEPTIONAL_SETS: Final = ("learn", "observe", "avoid_4", "avoid_6", "fallen_4", "fallen_6")
"""Sets that are empty in quiet times: rules look in them only while they have elements."""
MARK_SETS: Final = ("marks", "served_4", "served_6", *EXCEPTIONAL_SETS)
STEER_MAPS: Final = ("steer_4", "steer_6")
NEXT_MAPS: Final = ("next_4", "next_6")

# TCP's flags, FIN 1, SYN 2, RST 4 and ACK 16, without the test of the protocol that nft adds to `tcp flags`.
_TCP_FLAGS: Final = "@th,104,8"
_BEGINS: Final = {"tcp": f"{_TCP_FLAGS} & 0x12 == 0x02", "sctp": "sctp chunk init exists"}
"""First packets. Nothing tells the first packet of a UDP flow from the others."""
_TCP_ENDS: Final = f"{_TCP_FLAGS} & 0x05 != 0"


def key(protocol: str, family: int) -> str:
    """Return the expression that identifies a flow."""
    addresses = "ip saddr . ip daddr" if family == 4 else "ip6 saddr . ip6 daddr"
    return f"{addresses} . {protocol} sport . {protocol} dport"


def rule_counts(
    options: AffinityOptions, filled: Iterable[str] | None = None, priority: int = DEFAULT_PRIORITY
) -> dict[str, int]:
    """Return how many rules each chain holds that belongs to no stream.

    `filled`: the exceptional sets that have elements; without it, the chains that depend on them are left out.
    """
    lines = rules(options, priority) + ([] if filled is None else exceptional_rules(options, filled))
    chains = [line.split()[4] for line in lines if line.startswith("add rule")]
    return dict(Counter(chains + [rule.chain for rule in raw_rules(options)]))


def structure(options: AffinityOptions) -> list[str]:
    """Return the commands that make sets, maps and chains; those that exist keep their elements, chains are emptied."""
    lines = [f"add counter {IN_TABLE} {name}" for name in COUNTERS]
    lines += [f"add set {IN_TABLE} {name} {{ type mark; }}" for name in MARK_SETS]
    lines += [f"add map {IN_TABLE} {name} {{ type mark : verdict; }}" for name in STEER_MAPS]
    lines += [f"add map {IN_TABLE} {name} {{ type mark : mark; }}" for name in NEXT_MAPS]
    for family in (4, 6):
        address = f"ipv{family}_addr"
        key_type = f"type {address} . {address} . inet_service . inet_service"
        lines += [
            f"add map {IN_TABLE} {flow_map(protocol, family)} {{ {key_type} : mark;"
            f" size {options.max_flows}; flags dynamic,timeout; timeout {options.idle_s}s; }}"
            for protocol in options.protocols
        ]
        lines.append(
            f"add set {IN_TABLE} {closed_set(family)} {{ {key_type};"
            f" size {options.max_flows}; flags dynamic,timeout; timeout {CLOSING_S}s; }}"
        )
    chains = [name for protocol in options.protocols for family in (4, 6) for name in _chains(protocol, family)]
    chains += ["sweep_4", "sweep_6", "quoted_4", "quoted_6", "recalled", DEFRAGMENT, layout_chain(options)]
    lines += [f"add chain {IN_TABLE} {name}" for name in chains]
    lines += [f"flush chain {IN_TABLE} {name}" for name in chains if name != DEFRAGMENT]
    return lines


def hook_chain(priority: int) -> str:
    """Return the name of the chain by which packets come at a priority."""
    return "prerouting" if priority == DEFAULT_PRIORITY else f"prerouting_{priority}".replace("-", "m")


def hook(priority: int = DEFAULT_PRIORITY) -> list[str]:
    """Return the commands that make the chain by which packets come, empty, for a transaction of their own.

    Where a transaction that adds a hook is refused, the kernel drops the packets that are queued.
    """
    chain = hook_chain(priority)
    return [
        f'add table {IN_TABLE} {{ comment "made by lbguard: flow affinity"; }}',
        f"add chain {IN_TABLE} {chain} {{ type filter hook prerouting priority {priority}; policy accept; }}",
        f"flush chain {IN_TABLE} {chain}",
    ]


def move(options: AffinityOptions, before: int, priority: int) -> list[str]:
    """Return the commands that give the packets to the rules at another priority; all that is remembered stays.

    The earlier chain stays, without rules; see `distributor/nftables/removal.py`.
    """
    return [
        f"flush chain {IN_TABLE} {hook_chain(before)}",
        *(f"add rule {IN_TABLE} {line}" for line in _hook_rules(options, priority)),
    ]


def rules(options: AffinityOptions, priority: int = DEFAULT_PRIORITY) -> list[str]:
    """Return the commands that fill the chains, but for the raw rules and those of streams."""
    lines = sweep_rules()
    for protocol in options.protocols:
        for family in (4, 6):
            lines += _flow_rules(protocol, family)
    # An ICMP error for a target that is no longer registered has no route either.
    lines.append("recalled meta mark != @marks drop")
    return [f"add rule {IN_TABLE} {line}" for line in lines + _hook_rules(options, priority)]


def _hook_rules(options: AffinityOptions, priority: int) -> list[str]:
    chain = hook_chain(priority)
    others = [protocol for protocol in options.protocols if protocol != "tcp"]
    ways = ", ".join(f"ipv{f} . {p} : goto flow_{p}_{f}" for p in others for f in (4, 6))
    four = "icmp type { destination-unreachable, time-exceeded, parameter-problem } @th,64,8 0x45"
    six = "icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, parameter-problem }"
    return [
        # A remembered flow is looked for whatever target the table names: it may be one that was listed this moment.
        f"{chain} meta mark 0 accept",
        f"{chain} meta l4proto tcp meta nfproto ipv4 goto flow_tcp_4",
        f"{chain} meta l4proto tcp meta nfproto ipv6 goto flow_tcp_6",
        f"{chain} meta nfproto . meta l4proto vmap {{ {ways} }}",
        f"{chain} {four} goto quoted_4",
        f"{chain} {six} goto quoted_6",
    ]


def exceptional_rules(options: AffinityOptions, filled: Iterable[str]) -> list[str]:
    """Return the commands that renew the chains with rules for exceptional sets. `filled`: those that have elements."""
    present = frozenset(filled)
    lines = []

    def renew(chain: str, *wanted: tuple[bool, str]) -> None:
        lines.append(f"flush chain {IN_TABLE} {chain}")
        lines.extend(f"add rule {IN_TABLE} {chain} {rule}" for there, rule in wanted if there)

    for protocol in options.protocols:
        for family in (4, 6):
            at, avoid, fallen = f"{protocol}_{family}", f"avoid_{family}", f"fallen_{family}"
            renew(
                f"first_{at}",
                (True, f"fib daddr . mark oif missing goto steer_{at}"),
                (True, f'fib daddr . mark oifname "{PARKING_LINK}" goto steer_{at}'),
                (avoid in present, f"meta mark @{avoid} goto avoid_{at}"),
                (options.every_flow, f"goto learn_{at}"),
                (not options.every_flow and "learn" in present, f"meta mark @learn goto learn_{at}"),
            )
            if protocol in _BEGINS:
                renew(
                    f"missed_{at}",
                    (fallen in present, f"meta mark @{fallen} goto fallen_{at}"),
                    ("observe" in present, f"meta mark @observe goto observe_{at}"),
                )
    return lines


def defragment() -> list[str]:
    """Return the commands that have fragments put together before they come here; a kernel may refuse them.

    They renew the rules in one transaction, since the kernel removes hooks of its own with the last one.
    """
    return [
        f"flush chain {IN_TABLE} {DEFRAGMENT}",
        f"add rule {IN_TABLE} {DEFRAGMENT} meta l4proto tcp tproxy ip to 127.0.0.1:1",
        f"add rule {IN_TABLE} {DEFRAGMENT} meta l4proto tcp tproxy ip6 to [::1]:1",
    ]


def _chains(protocol: str, family: int) -> list[str]:
    kinds = ["flow", "new", "strange", "again", "first", "known", "avoid", "steer", "learn", "orphan"]
    kinds += ["remember", "closing", "forget"]
    if protocol in _BEGINS:
        kinds += ["missed", "observe", "fallen"]
    if protocol == "tcp":
        kinds += ["flagged", "begin"]
    return [f"{kind}_{protocol}_{family}" for kind in kinds]


def _flow_rules(protocol: str, family: int) -> list[str]:
    """Return the rules of one protocol and family, each behind the name of its chain.

    The first rule of each chain `flow`, `remember`, `closing` and `forget` is a raw one; a remembered flow leaves
    `flow` by it, for `known`, with the flow's mark.
    """
    at, this = f"{protocol}_{family}", key(protocol, family)
    entry = f"{this} @{flow_map(protocol, family)}"
    make = {"tcp": _tcp_rules, "sctp": _sctp_rules, "udp": _udp_rules}[protocol]
    begin = f"begin_{at}" if protocol == "tcp" else f"remember_{at}"
    return [
        *make(at, family),
        # With no healthy target to fall back to, its own is as good as any.
        f"orphan_{at} meta mark @marks meta mark != @steer_{family} goto remember_{at}",
        f"orphan_{at} counter name orphaned",
        f"orphan_{at} jump forget_{at}",
        f"orphan_{at} meta mark != @marks drop",
        f"orphan_{at} meta mark vmap @steer_{family}",
        f"new_{at} meta mark != @served_{family} goto strange_{at}",
        f"new_{at} goto first_{at}",
        f"strange_{at} meta mark != @marks accept",
        f"strange_{at} goto steer_{at}",
        # A repeated first packet goes where the first one went, unless that target is lost too.
        f"again_{at} meta mark != @served_{family} goto steer_{at}",
        f"again_{at} goto first_{at}",
        f"learn_{at} jump {begin}",
        f"learn_{at} {entry} counter name learned accept",
        f"learn_{at} counter name refused",
        # A target that is only doubted is used where there is no room to remember another one.
        f"avoid_{at} jump {begin}",
        f"avoid_{at} {entry} goto steer_{at}",
        f"avoid_{at} counter name refused",
        f"steer_{at} jump forget_{at}",
        f"steer_{at} meta mark != @marks drop",
        f"steer_{at} meta mark @steer_{family} counter name steered",
        f"steer_{at} meta mark vmap @steer_{family}",
        f"steer_{at} jump {begin}",
        f"steer_{at} {entry} accept",
        f"steer_{at} counter name refused drop",
    ]


def _udp_rules(at: str, family: int) -> list[str]:
    return [
        f"flow_{at} goto new_{at}",
        f"known_{at} meta mark != @served_{family} goto orphan_{at}",
        f"known_{at} goto remember_{at}",
    ]


def _tcp_rules(at: str, family: int) -> list[str]:
    this = key("tcp", family)
    return [
        f"flow_{at} {_BEGINS['tcp']} goto new_{at}",
        f"flow_{at} goto missed_{at}",
        f"known_{at} {_TCP_FLAGS} & 0x07 != 0 goto flagged_{at}",
        f"known_{at} meta mark != @served_{family} goto orphan_{at}",
        f"known_{at} {this} @{closed_set(family)} goto closing_{at}",
        f"known_{at} goto remember_{at}",
        f"flagged_{at} {_BEGINS['tcp']} goto again_{at}",
        f"flagged_{at} meta mark != @served_{family} goto orphan_{at}",
        f"flagged_{at} {_TCP_ENDS} goto closing_{at}",
        f"flagged_{at} goto remember_{at}",
        f"closing_{at} update @{closed_set(family)} {{ {this} }}",
        # The ports of an ended connection may be used again.
        f"again_{at} delete @{closed_set(family)} {{ {this} }}",
        f"begin_{at} delete @{closed_set(family)} {{ {this} }}",
        f"begin_{at} goto remember_{at}",
        f"observe_{at} {_TCP_ENDS} goto closing_{at}",
        *_missed_flow_rules("tcp", family),
    ]


def _sctp_rules(at: str, family: int) -> list[str]:
    ended = [f"sctp chunk {kind} exists goto closing_{at}" for kind in ("abort", "shutdown-ack", "shutdown-complete")]
    return [
        f"flow_{at} {_BEGINS['sctp']} goto new_{at}",
        f"flow_{at} goto missed_{at}",
        f"known_{at} {_BEGINS['sctp']} goto again_{at}",
        f"known_{at} meta mark != @served_{family} goto orphan_{at}",
        *[f"known_{at} {end}" for end in ended],
        f"known_{at} goto remember_{at}",
        *[f"observe_{at} {end}" for end in ended],
        *_missed_flow_rules("sctp", family),
    ]


def _missed_flow_rules(protocol: str, family: int) -> list[str]:
    """Return the rules for packets in the middle of flows that are not remembered; see `exceptional_rules`."""
    at = f"{protocol}_{family}"
    return [
        f"observe_{at} jump remember_{at}",
        f"observe_{at} {key(protocol, family)} @{flow_map(protocol, family)} counter name observed accept",
        f"observe_{at} counter name refused",
        f"fallen_{at} counter name orphaned",
        f"fallen_{at} meta mark vmap @steer_{family}",
    ]
