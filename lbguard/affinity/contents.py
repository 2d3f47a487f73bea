"""Contents of the affinity table: the desired elements, and those in the kernel."""

import sys
from collections.abc import Iterable
from typing import Final

from lbguard.affinity import ruleset
from lbguard.affinity.ruleset import AffinityOptions
from lbguard.core.model import StreamSteering
from lbguard.distributor.nftables.elements import list_request, read_keys
from lbguard.distributor.nftables.nfnetlink import GET_ELEMENTS, GET_SET, Nfnetlink, text_attribute
from lbguard.kernel.codec.framing import attributes

_SETS: Final = ("served", "marks", "learn", "avoid_4", "avoid_6")
_MAPS: Final = ("steer_4", "steer_6")

# include/uapi/linux/netfilter/nf_tables.h
_TABLE, _SET_NAME, _SET_COUNT = 1, 2, 20
_ELEMENT_LIST: Final = 3  # NFTA_SET_ELEM_LIST_ELEMENTS
_KEY, _DATA = 1, 2
_VALUE, _VERDICT, _VERDICT_CHAIN = 1, 2, 2

_NOTHING: Final = memoryview(b"")


def sets_of(streams: Iterable[StreamSteering]) -> dict[str, set[str]]:
    """Return the elements of each set, and of the maps from a mark to its stream's chain."""
    sets: dict[str, set[str]] = {name: set() for name in (*_SETS, *_MAPS)}
    for steering in streams:
        sets["marks"].update(map(str, steering.marks))
        sets["served"].update(map(str, steering.ipv4.served))
        if steering.learning:
            sets["learn"].update(map(str, steering.marks))
        for family, of_family in ((4, steering.ipv4), (6, steering.ipv6)):
            sets[f"avoid_{family}"].update(map(str, of_family.avoid))
            # Without a healthy target, the mark stays as it is.
            if of_family.healthy:
                chain = ruleset.steer_chain(steering.stream, family)
                sets[f"steer_{family}"].update(f"{mark} : jump {chain}" for mark in steering.marks)
    return sets


def read_sets_of_marks(kernel: Nfnetlink) -> dict[str, set[str]]:
    """Return the kernel's elements of the sets and maps of `sets_of`; an absent set is empty."""
    sets = {name: set(map(str, read_keys(_elements(kernel, name)))) for name in _SETS}
    return sets | {name: set(map(_jump, _each(_elements(kernel, name)))) for name in _MAPS}


def count_flows(kernel: Nfnetlink, options: AffinityOptions) -> dict[tuple[str, int], int]:
    """Return how many flows are remembered, by protocol and family.

    Kernels from 6.17 on report the number; on older kernels every flow is read.
    """
    counts = {}
    for body in kernel.dump(GET_SET, text_attribute(_TABLE, ruleset.TABLE)) or ():
        fields = dict(attributes(body))
        if _SET_COUNT in fields:
            counts[bytes(fields[_SET_NAME]).rstrip(b"\0").decode()] = int.from_bytes(fields[_SET_COUNT], "big")
    flows = {}
    for protocol in options.protocols:
        for family in (4, 6):
            name = ruleset.flow_map(protocol, family)
            reported = counts.get(name)
            flows[protocol, family] = sum(1 for _ in _each(_elements(kernel, name))) if reported is None else reported
    return flows


def _elements(kernel: Nfnetlink, name: str) -> list[memoryview]:
    return kernel.dump(GET_ELEMENTS, list_request(ruleset.TABLE, name)) or []


def _each(found: Iterable[memoryview]) -> Iterable[memoryview]:
    for body in found:
        for kind, payload in attributes(body):
            if kind == _ELEMENT_LIST:
                yield from (element for _, element in attributes(payload))


def _jump(element: memoryview) -> str:
    """Return an element of a verdict map as nft writes it."""
    fields = dict(attributes(element))
    mark = dict(attributes(fields.get(_KEY, _NOTHING))).get(_VALUE, _NOTHING)
    verdict = dict(attributes(dict(attributes(fields.get(_DATA, _NOTHING))).get(_VERDICT, _NOTHING)))
    chain = bytes(verdict.get(_VERDICT_CHAIN, b"")).rstrip(b"\0").decode(errors="replace")
    return f"{int.from_bytes(mark, sys.byteorder)} : jump {chain}"
