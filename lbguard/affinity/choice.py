"""Choice of a healthy target in the kernel, as nftables text: chains and maps of each stream. Pure, no kernel.

A stream's chain `steer_FAMILY_STREAM` first takes targets by hash from the map `healthy_FAMILY_STREAM`, and keeps the
first one whose route is there. A hash may name targets that are cut off again and again, so the chain `sweep_FAMILY`
then goes from the last one to the next healthy target in a fixed order (the map `next_FAMILY`, one ring for each
stream): of up to SWEEP_STEPS healthy targets, one that is not cut off is always found. Only a flow whose choice is cut
off too gets there.
"""

from collections.abc import Iterator, Sequence
from typing import Final

from lbguard.affinity.names import IN_TABLE, healthy_map, steer_chain
from lbguard.core.model import PARKING_LINK

CHOICES: Final = 1024
"""Slots among which the healthy targets of a stream are spread."""
SWEEP_STEPS: Final = 64

_SEEDS: Final = (1, 2, 3, 4)
STEER_RULES: Final = len(_SEEDS) + 1
"""Number of rules in each chain that chooses a target."""
_REACHABLE: Final = f'fib daddr . mark oif exists fib daddr . mark oifname != "{PARKING_LINK}"'


def sweep_rules() -> list[str]:
    """Return the rules that go through the healthy targets of any stream, each behind the name of its chain."""
    return [
        f"sweep_{family} meta mark set meta mark map @next_{family} {_REACHABLE} return"
        for family in (4, 6)
        for _ in range(SWEEP_STEPS)
    ]


def ring(marks: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield the elements of `next_FAMILY` for one stream: each healthy target with the one after it."""
    return ((mark, after) for mark, after in zip(marks, [*marks[1:], *marks[:1]], strict=True) if mark != after)


def shares(marks: Sequence[int]) -> list[tuple[int, int, int]]:
    """Return the ranges of slots of a stream's healthy targets: the first slot, the one after the last, the mark."""
    edges = [CHOICES * n // len(marks) for n in range(len(marks) + 1)] if marks else []
    return [(first, end, mark) for first, end, mark in zip(edges, edges[1:], marks, strict=False) if end > first]


def stream_objects(stream: str) -> list[str]:
    """Return the commands that make a stream's chains and maps, and fill the chains."""
    lines = []
    for family in (4, 6):
        chain, healthy = steer_chain(stream, family), healthy_map(stream, family)
        addresses = "ip saddr . ip daddr" if family == 4 else "ip6 saddr . ip6 daddr"
        lines += [
            f"add map {IN_TABLE} {healthy} {{ typeof numgen inc mod {CHOICES} : meta mark; flags interval; }}",
            f"add chain {IN_TABLE} {chain}",
            f"flush chain {IN_TABLE} {chain}",
        ]
        for seed in _SEEDS:
            hashed = f"jhash {addresses} . th sport . th dport mod {CHOICES} seed {seed} map @{healthy}"
            lines.append(f"add rule {IN_TABLE} {chain} meta mark set {hashed} {_REACHABLE} return")
        lines.append(f"add rule {IN_TABLE} {chain} goto sweep_{family}")
    return lines


def drop_steer_chain(chain: str) -> list[str]:
    """Return the commands that remove a chain of `stream_objects` and its map; no mark may lead there any more."""
    healthy = chain.replace("steer_", "healthy_", 1)
    return [f"flush chain {IN_TABLE} {chain}", f"delete chain {IN_TABLE} {chain}", f"delete map {IN_TABLE} {healthy}"]
