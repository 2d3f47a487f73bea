"""Removal of our tables without a loss of packets that other programs have queued.

When a hook is removed, Linux drops every packet that waits in a queue of nfnetlink_queue in the same network namespace
(nf_queue_nf_hook_drop), and nfqlb 1.2.0 ends at its next verdict on one of them. Tried on Linux 6.18, a hook goes with
its chain, with its table, when a transaction that adds it is refused, when the table becomes dormant, and with the last
`tproxy` expression of the namespace, which switches defragmentation on. Rules, chains without a hook, sets and maps can
be removed at any time.

So a hook is added by a transaction of its own, before others that may be refused. Where another program may have a
queue, a table that is to go loses all that has an effect. Its chains with a hook stay, without rules, and the chain
`defragment`, to which no packet comes. The next start uses them, or removes them when no queue is left.
"""

import logging
from collections.abc import Collection, Iterable
from enum import Enum, auto
from pathlib import Path
from typing import Final

from lbguard.distributor.nftables.elements import transactions
from lbguard.distributor.nftables.inventory import Kind, RulesetObject, read_inventory
from lbguard.distributor.nftables.nfnetlink import (
    DELETE_CHAIN,
    DELETE_OBJECT,
    DELETE_RULE,
    DELETE_SET,
    DELETE_TABLE,
    NETLINK_NETFILTER,
    Nfnetlink,
    Request,
    netfilter_message,
    text_attribute,
)
from lbguard.distributor.nftables.ruleset import DEFRAGMENT, FAMILY
from lbguard.kernel.codec.framing import attribute
from lbguard.telemetry.log import fields

_log = logging.getLogger(__name__)

_NET: Final = Path("/proc/thread-self/net")
_DESCRIPTORS: Final = Path("/proc/self/fd")
_PROTOCOL_COLUMN, _PORT_COLUMN, _INODE_COLUMN = 1, 2, 9

# include/uapi/linux/netfilter/nf_tables.h
_TABLE, _NAME, _CHAIN_NAME, _OBJECT_TYPE = 1, 2, 3, 3
_COUNTER: Final = (1).to_bytes(4, "big")


class Removal(Enum):
    """Outcome of a removal. `EMPTIED`: the table has no effect any more, and its hooks stay."""

    ABSENT = auto()
    REMOVED = auto()
    EMPTIED = auto()


def queue_possible() -> bool:
    """Return whether another program may have a packet queue in the network namespace of this thread.

    The kernel shows queues to root only. To others it shows the sockets: a queue ends with the socket of its owner.
    """
    try:
        return bool((_NET / "netfilter" / "nfnetlink_queue").read_text().strip())
    except FileNotFoundError:
        # Without this module of the kernel there is no queue; without /proc nothing is known.
        return not (_NET / "netfilter").is_dir()
    except OSError:
        pass
    try:
        own = [str(each.readlink()) for each in _DESCRIPTORS.iterdir() if each.is_symlink()]
        return has_foreign_socket((_NET / "netlink").read_text(), own)
    except OSError:
        return True


def has_foreign_socket(sockets: str, own: Iterable[str]) -> bool:
    """Return whether /proc/net/netlink has a socket of netfilter that is none of the `own` (`socket:[INODE]`)."""
    known = set(own)
    rows = [line.split() for line in sockets.splitlines()[1:]]
    return any(
        row[_PROTOCOL_COLUMN] == str(NETLINK_NETFILTER) and f"socket:[{row[_INODE_COLUMN]}]" not in known
        for row in rows
        # The kernel's own socket has port 0.
        if len(row) > _INODE_COLUMN and row[_PORT_COLUMN] != "0"
    )


def remove_table(kernel: Nfnetlink, table: str) -> Removal:
    """Remove a table of ours; where another program may have queued packets, only what has an effect.

    Raises:
        NftError: the kernel refuses.
    """
    found = read_inventory(kernel, table)
    if found is None:
        return Removal.ABSENT
    if has_hooks(found) and queue_possible():
        emptying = _emptying(table, found)
        for requests in transactions([[request] for request in emptying], kernel.transaction_bytes_max):
            kernel.transact(requests)
        if emptying:
            reason = "removing its hooks would drop the packets that other programs have queued"
            _log.info("nftables table without effect stays", extra=fields(table=table, reason=reason))
        return Removal.EMPTIED
    body = text_attribute(_TABLE, table)
    kernel.transact([Request(netfilter_message(DELETE_TABLE, body), f"delete table {FAMILY} {table}")])
    return Removal.REMOVED


def has_hooks(found: Collection[RulesetObject]) -> bool:
    """Return whether the removal of these objects removes a hook."""
    return any(each.priority is not None or (each.kind is Kind.RULE and each.name == DEFRAGMENT) for each in found)


def _emptying(table: str, found: Iterable[RulesetObject]) -> list[Request]:
    """Return the requests that remove all but the hooks; their order allows several transactions."""
    by_kind: dict[Kind, list[RulesetObject]] = {kind: [] for kind in Kind}
    for each in found:
        if each.name != DEFRAGMENT:
            by_kind[each.kind].append(each)
    # The chains with a hook come first: after the first transaction no packet meets half of the rules.
    hooks = [each.name for each in by_kind[Kind.CHAIN] if each.priority is not None]
    chains = [each.name for each in by_kind[Kind.CHAIN] if each.priority is None]
    ruled = {each.name for each in by_kind[Kind.RULE]}
    requests = [_request("flush chain", DELETE_RULE, table, _NAME, name) for name in hooks + chains if name in ruled]
    for each in by_kind[Kind.MAP] + by_kind[Kind.SET]:
        requests.append(_request(f"delete {each.kind}", DELETE_SET, table, _NAME, each.name))
    for each in by_kind[Kind.COUNTER]:
        kind = attribute(_OBJECT_TYPE, _COUNTER)
        requests.append(_request("delete counter", DELETE_OBJECT, table, _NAME, each.name, kind))
    requests += [_request("delete chain", DELETE_CHAIN, table, _CHAIN_NAME, name) for name in chains]
    return requests


def _request(what: str, kind: int, table: str, name_attribute: int, name: str, more: bytes = b"") -> Request:
    body = text_attribute(_TABLE, table) + text_attribute(name_attribute, name) + more
    return Request(netfilter_message(kind, body), f"{what} {FAMILY} {table} {name}")
