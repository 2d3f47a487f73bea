"""Contents of the affinity table that follow from the steering of streams: desired, and as the kernel has them."""

from collections.abc import Iterable

from lbguard.affinity import choice
from lbguard.affinity.elements import Element, read_jumps
from lbguard.affinity.names import TABLE, steer_chain
from lbguard.affinity.ruleset import MARK_SETS, NEXT_MAPS, STEER_MAPS
from lbguard.core.model import FamilySteering, StreamSteering
from lbguard.distributor.nftables.elements import list_request, read_keys, read_pairs
from lbguard.distributor.nftables.nfnetlink import GET_ELEMENTS, Nfnetlink


def sets_of(streams: Iterable[StreamSteering]) -> dict[str, set[Element]]:
    """Return the elements of each set and map whose keys are marks."""
    sets: dict[str, set[Element]] = {name: set() for name in (*MARK_SETS, *STEER_MAPS, *NEXT_MAPS)}
    for steering in streams:
        sets["marks"].update(steering.marks)
        if steering.learning:
            sets["learn"].update(steering.marks)
        if steering.observing:
            sets["observe"].update(steering.marks)
        for family, of_family in ((4, steering.ipv4), (6, steering.ipv6)):
            sets[f"served_{family}"].update(of_family.served)
            sets[f"avoid_{family}"].update(of_family.avoid)
            sets[f"fallen_{family}"].update(_fallen(steering, of_family))
            sets[f"next_{family}"].update(choice.ring(of_family.healthy))
            # Without a healthy target, the mark stays as it is.
            if of_family.healthy:
                chain = steer_chain(steering.stream, family)
                sets[f"steer_{family}"].update([(mark, chain) for mark in steering.marks])
    return sets


def filled_of(streams: Iterable[StreamSteering]) -> frozenset[str]:
    """Return which of the exceptional sets have elements."""
    found: set[str] = set()
    for steering in streams:
        if steering.marks:
            found |= {name for name, there in (("learn", steering.learning), ("observe", steering.observing)) if there}
        for family, of_family in ((4, steering.ipv4), (6, steering.ipv6)):
            if of_family.avoid:
                found.add(f"avoid_{family}")
            if _fallen(steering, of_family):
                found.add(f"fallen_{family}")
    return frozenset(found)


def owners_of(streams: Iterable[StreamSteering]) -> dict[int, str]:
    """Return the stream of each mark."""
    return {mark: steering.stream for steering in streams for mark in steering.marks}


def read_sets(kernel: Nfnetlink) -> dict[str, set[Element]]:
    """Return the kernel's elements of the sets and maps of `sets_of`; an absent set is empty."""
    sets: dict[str, set[Element]] = {name: set(read_keys(_elements(kernel, name))) for name in MARK_SETS}
    sets |= {name: set(read_jumps(_elements(kernel, name))) for name in STEER_MAPS}
    for name in NEXT_MAPS:
        pairs = read_pairs(_elements(kernel, name))
        sets[name] = {pair for keys, marks in pairs for pair in zip(keys, marks, strict=True)}
    return sets


def _fallen(steering: StreamSteering, of_family: FamilySteering) -> set[int]:
    """Return the marks whose flows fall back to a healthy target, wherever the table sends them."""
    return set(steering.marks).difference(of_family.served) if of_family.healthy else set()


def _elements(kernel: Nfnetlink, name: str) -> list[memoryview]:
    return kernel.dump(GET_ELEMENTS, list_request(TABLE, name)) or []
