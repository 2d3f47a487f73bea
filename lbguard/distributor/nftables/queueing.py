"""Priority of the chains that hand packets to the distributor's process (NFQUEUE), read from the kernel's ruleset.

Our chains that look at a packet's mark have to come after them. Meridio queues at priority mangle (-150), Meridio-2 at
filter (0), and other releases may do so elsewhere. A rule queues by the statement `queue`, or by the target NFQUEUE of
iptables-nft. A chain without a hook that has such a rule counts for every prerouting chain of its table. The rules of
iptables-legacy are not in this ruleset; they queue at the priority that is assumed.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

from lbguard.distributor.nftables.nfnetlink import GET_CHAIN, GET_RULE, NFPROTO_INET, Nfnetlink, text_attribute
from lbguard.kernel.codec.framing import attributes

MANGLE: Final = -150
"""Priority of Meridio's queue and of the chains of the nftables distributor."""
FILTER: Final = 0
"""Priority of Meridio-2's queue."""
AFFINITY_AFTER: Final = 10
"""Distance of flow affinity from the last chain that queues."""
COUNTERS_AFTER: Final = 11
"""Distance of the packet counters, which count what flow affinity has decided."""

_OURS: Final = "lbguard"
_FAMILIES: Final = (NFPROTO_INET, 2, 10)
# include/uapi/linux/netfilter/nf_tables.h and nf_tables_compat.h
_TABLE, _CHAIN_NAME, _CHAIN_HOOK = 1, 3, 4
_HOOK_NUMBER, _HOOK_PRIORITY, _PREROUTING = 1, 2, 0
_RULE_CHAIN, _RULE_EXPRESSIONS = 2, 4
_EXPRESSION_NAME, _EXPRESSION_DATA, _TARGET_NAME = 1, 2, 1


class Hook(NamedTuple):
    """Hook of a base chain. `number`: 0 is prerouting."""

    number: int
    priority: int


class LastQueue:
    """Priority of the last prerouting chain that queues packets, for one thread.

    It only rises: a load balancer that starts again takes its rules away for a while.

    Args:
        at_least: the priority that is assumed until a later chain is seen.
    """

    def __init__(self, at_least: int = MANGLE) -> None:
        self.priority = at_least
        self._generation = -1

    def look(self, kernel: Nfnetlink) -> int:
        """Return the priority, from the ruleset as it is now.

        Raises:
            NftError: the kernel refuses.
        """
        generation = kernel.generation()
        if generation != self._generation:
            self.raise_to(queue_priority(kernel))
            self._generation = generation
        return self.priority

    def raise_to(self, priority: int | None) -> None:
        """Assume at least this priority."""
        if priority is not None:
            self.priority = max(self.priority, priority)


def queue_priority(kernel: Nfnetlink) -> int | None:
    """Return the priority of the last prerouting chain of another program that queues packets; None: there is none.

    Raises:
        NftError: the kernel refuses.
    """
    found = [priority for family in _FAMILIES for priority in _priorities(kernel, family)]
    return max(found, default=None)


def hook_of(chain: dict[int, memoryview]) -> Hook | None:
    """Return the hook among the attributes of a chain; None: it is no base chain."""
    if _CHAIN_HOOK not in chain:
        return None
    hook = dict(attributes(chain[_CHAIN_HOOK]))
    number = int.from_bytes(hook.get(_HOOK_NUMBER, b"\xff"), "big")
    return Hook(number, int.from_bytes(hook.get(_HOOK_PRIORITY, b""), "big", signed=True))


def _priorities(kernel: Nfnetlink, family: int) -> Iterator[int]:
    tables: dict[str, dict[str, Hook | None]] = {}
    for body in kernel.dump(GET_CHAIN, family=family) or ():
        chain = dict(attributes(body))
        tables.setdefault(_text(chain, _TABLE), {})[_text(chain, _CHAIN_NAME)] = hook_of(chain)
    for table, hooks in tables.items():
        prerouting = [hook.priority for hook in hooks.values() if hook is not None and hook.number == _PREROUTING]
        if table.startswith(_OURS) or not prerouting:
            continue
        for chain_name in _queueing_chains(kernel, family, table):
            hook = hooks.get(chain_name)
            if hook is None:
                yield from prerouting
            elif hook.number == _PREROUTING:
                yield hook.priority


def _queueing_chains(kernel: Nfnetlink, family: int, table: str) -> set[str]:
    found = set()
    for body in kernel.dump(GET_RULE, text_attribute(_TABLE, table), family=family) or ():
        rule = dict(attributes(body))
        # A kernel that does not filter by table returns the rules of all.
        if _text(rule, _TABLE) == table and any(map(_queues, _expressions(rule))):
            found.add(_text(rule, _RULE_CHAIN))
    return found


def _expressions(rule: dict[int, memoryview]) -> Iterator[dict[int, memoryview]]:
    for _, element in attributes(rule.get(_RULE_EXPRESSIONS, memoryview(b""))):
        yield dict(attributes(element))


def _queues(expression: dict[int, memoryview]) -> bool:
    name = _text(expression, _EXPRESSION_NAME)
    if name != "target":
        return name == "queue"
    data = dict(attributes(expression.get(_EXPRESSION_DATA, memoryview(b""))))
    return _text(data, _TARGET_NAME) == "NFQUEUE"


def _text(fields: dict[int, memoryview], kind: int) -> str:
    return bytes(fields.get(kind, b"")).rstrip(b"\0").decode(errors="replace")
