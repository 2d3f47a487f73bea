"""Trial of the rules of flow affinity: whether this kernel takes them. Nothing is changed."""

import errno
import os
from contextlib import closing

from lbguard.affinity import ruleset
from lbguard.affinity.names import IN_TABLE, AffinityOptions
from lbguard.distributor.base import DistributorError
from lbguard.distributor.nftables.session import LIBRARY, NftContext

_LAST = f"create table {IN_TABLE}"
"""A command that the kernel refuses with EEXIST, after it took all others; then the whole transaction has no effect."""


def refusal(options: AffinityOptions, *, more: tuple[str, ...] = ()) -> str:
    """Return why the kernel refuses the table in the network namespace of this thread; empty: it takes it.

    Args:
        options: bounds of the flow maps.
        more: further commands.
    """
    try:
        with closing(NftContext(LIBRARY)) as nft:
            nft.run("\n".join([*ruleset.structure(options), *ruleset.rules(options), *more, _LAST]))
    except DistributorError as error:
        return "" if os.strerror(errno.EEXIST) in str(error) else str(error)
    return f"it took the command `{_LAST}` for an existing table"
