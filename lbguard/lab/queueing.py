"""Sends packets of the VIPs to NFQUEUE, as `iptables -t mangle -A PREROUTING -d VIP -j NFQUEUE` does, without iptables.

The load balancer of Meridio-2 does so in a table of its own, at priority filter.

Some kernels have the target NFQUEUE of iptables and no `queue` statement of nftables. nftables can call such a target,
as iptables itself does today, but nft cannot write the rule: it is packed here.
"""

import contextlib
import struct
import subprocess

from lbguard.distributor.base import DistributorError
from lbguard.distributor.nftables.nfnetlink import (
    NetfilterSocket,
    Nfnetlink,
    Request,
    netfilter_message,
    text_attribute,
)
from lbguard.distributor.nftables.queueing import MANGLE
from lbguard.kernel.codec.framing import attribute
from lbguard.lab.netns import CurrentNamespace, Namespace

TABLE = "lab-nfqueue"
# include/uapi/linux/netfilter/nf_tables.h and nf_tables_compat.h
_NEW_RULE = 10 << 8 | 6
_RULE_TABLE, _RULE_CHAIN, _RULE_EXPRESSIONS = 1, 2, 4
_LIST_ELEM, _NESTED = 1, 0x8000
_EXPRESSION_NAME, _EXPRESSION_DATA = 1, 2
_TARGET_NAME, _TARGET_REVISION, _TARGET_INFO = 1, 2, 3
_CREATE_APPEND = 0x400 | 0x800
_FAMILIES = {"ip": 2, "ip6": 10}


class QueueingError(Exception):
    """The kernel or nft refused; the message says what."""


def send_to_queues(
    namespace: Namespace | CurrentNamespace,
    vips: dict[str, str],
    first: int,
    last: int,
    *,
    priority: int = MANGLE,
    table: str = TABLE,
) -> None:
    """Send packets of the VIPs (by family, `ip` or `ip6`) to the queues from `first` to `last`.

    Raises:
        QueueingError: the kernel lacks something, or nft refused.
    """
    declared = "".join(
        f"table {family} {table} {{ chain to_nfqueue {{ }}; chain prerouting {{"
        f" type filter hook prerouting priority {priority}; {family} daddr {vip} jump to_nfqueue; }}; }}\n"
        for family, vip in vips.items()
    )
    done = subprocess.run(
        namespace.command("nft", "-f", "-"), input=declared, check=False, capture_output=True, text=True
    )
    if done.returncode != 0:
        raise QueueingError(f"nft: {done.stderr.strip()}")
    rules = [
        Request(_queue_rule(family, table, first, last), f"queue packets of {vip}") for family, vip in vips.items()
    ]
    try:
        with namespace.entered(), contextlib.closing(NetfilterSocket()) as datagrams:
            Nfnetlink(datagrams).transact(rules)
    except (DistributorError, OSError) as error:
        raise QueueingError(f"this kernel may lack nft_compat or xt_NFQUEUE: {error}") from error


def _queue_rule(family: str, table: str, first: int, last: int) -> bytes:
    """Return the request for a rule that is the target NFQUEUE and nothing else."""
    # struct xt_NFQ_info_v1, and what aligns it to eight bytes.
    info = struct.pack("=HH4x", first, last - first + 1)
    target = (
        text_attribute(_TARGET_NAME, "NFQUEUE")
        + attribute(_TARGET_REVISION, struct.pack("!I", 1))
        + attribute(_TARGET_INFO, info)
    )
    expression = text_attribute(_EXPRESSION_NAME, "target") + attribute(_EXPRESSION_DATA | _NESTED, target)
    body = (
        text_attribute(_RULE_TABLE, table)
        + text_attribute(_RULE_CHAIN, "to_nfqueue")
        + attribute(_RULE_EXPRESSIONS | _NESTED, attribute(_LIST_ELEM | _NESTED, expression))
    )
    return netfilter_message(_NEW_RULE, body, flags=_CREATE_APPEND, family=_FAMILIES[family])
