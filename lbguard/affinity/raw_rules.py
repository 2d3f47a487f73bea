"""Rules of flow affinity that libnftables cannot write, as pyroute2 takes them. Pure, no kernel.

libnftables 1.0.6 aborts at `update` of a map with a key over 16 bytes, such as every IPv6 key, and cannot look up the
addresses that an ICMP error quotes. It can list all of these rules, as it must: `nft list ruleset` of other programs
shows them. It aborts at a rule that looks up the result of a lookup.
"""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from pyroute2.nftables.expressions import genex

from lbguard.affinity.names import CLOSING_S, PROTOCOLS, AffinityOptions, flow_map

# include/uapi/linux/netfilter/nf_tables.h; registers are numbered in steps of four bytes.
_VERDICT_REGISTER: Final = 0
_REGISTER: Final = 8  # NFT_REG32_00
_KEY_WORDS: Final = {4: 4, 6: 10}
_NETWORK, _TRANSPORT = 1, 2  # NFT_PAYLOAD_..._HEADER
_META_MARK: Final = 3
_UPDATE, _DELETE = 1, 2  # NFT_DYNSET_OP_...
_EQUAL: Final = 0  # NFT_CMP_EQ
_GOTO: Final = -4  # NFT_GOTO


class RawRule(NamedTuple):
    """A rule: the chain that it is added to, and its expressions."""

    chain: str
    expressions: Sequence[dict[str, Any]]


def raw_rules(options: AffinityOptions) -> list[RawRule]:
    """Return the rules; each is the first of its chain, or follows another one of them."""
    return [rule for protocol in options.protocols for family in (4, 6) for rule in _of_protocol(protocol, family)]


def _of_protocol(protocol: str, family: int) -> list[RawRule]:
    at, load = f"{protocol}_{family}", _load_key(family)
    mark = _REGISTER + _KEY_WORDS[family]
    read_mark = genex("meta", {"key": _META_MARK, "dreg": mark})
    recall = [
        genex("lookup", {"set": flow_map(protocol, family), "sreg": _REGISTER, "dreg": mark}),
        genex("meta", {"key": _META_MARK, "sreg": mark}),
    ]
    entry = {"set_name": flow_map(protocol, family), "sreg_key": _REGISTER, "sreg_data": mark}
    return [
        # One lookup both tells whether the flow is remembered and sets its mark.
        RawRule(f"flow_{at}", [*load, *recall, _goto(f"known_{at}")]),
        RawRule(f"remember_{at}", [*load, read_mark, genex("dynset", entry | {"op": _UPDATE})]),
        RawRule(
            f"closing_{at}",
            [*load, read_mark, genex("dynset", entry | {"op": _UPDATE, "timeout": CLOSING_S * 1000})],
        ),
        # The kernel asks for data here too, and does not look at it.
        RawRule(f"forget_{at}", [*load, read_mark, genex("dynset", entry | {"op": _DELETE})]),
        RawRule(
            f"quoted_{family}", [*_quotes(protocol, family), *_load_quoted_key(family), *recall, _goto("recalled")]
        ),
    ]


def _goto(chain: str) -> dict[str, Any]:
    verdict = {"attrs": [("NFTA_VERDICT_CODE", _GOTO), ("NFTA_VERDICT_CHAIN", chain)]}
    made: dict[str, Any] = genex(
        "immediate", {"dreg": _VERDICT_REGISTER, "data": {"attrs": [("NFTA_DATA_VERDICT", verdict)]}}
    )
    return made


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
    number = {"attrs": [("NFTA_DATA_VALUE", bytes([PROTOCOLS[protocol]]))]}
    return [_load(_TRANSPORT, at, 1, _REGISTER), genex("cmp", {"sreg": _REGISTER, "op": _EQUAL, "data": number})]
