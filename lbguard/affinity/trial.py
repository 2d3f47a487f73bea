"""Trial of the rules of flow affinity: whether this kernel takes them. Nothing is changed.

The table of the trial has a name of its own and is dormant, so its hook is never in force: where a hook goes, also with
a refused transaction, the kernel drops the packets that are queued.
"""

import errno
import os
from contextlib import closing
from typing import Final

from lbguard.affinity import ruleset
from lbguard.affinity.names import FAMILY, IN_TABLE, AffinityOptions
from lbguard.distributor.base import DistributorError
from lbguard.distributor.nftables.session import LIBRARY, NftContext

_IN_TRIAL: Final = f"{FAMILY} lbguard-trial"
_FIRST: Final = f"add table {_IN_TRIAL} {{ flags dormant; }}"
_LAST: Final = f"create table {_IN_TRIAL}"
"""A command that the kernel refuses with EEXIST, after it took all others; then the whole transaction has no effect."""


def refusal(options: AffinityOptions, *, more: tuple[str, ...] = ()) -> str:
    """Return why the kernel refuses the table in the network namespace of this thread; empty: it takes it.

    Args:
        options: bounds of the flow maps.
        more: further commands.
    """
    try:
        with closing(NftContext(LIBRARY)) as nft:
            _, *hook = ruleset.hook()
            lines = [*hook, *ruleset.structure(options), *ruleset.rules(options), *more]
            nft.run("\n".join([_FIRST, *(line.replace(IN_TABLE, _IN_TRIAL) for line in lines), _LAST]))
    except DistributorError as error:
        return "" if os.strerror(errno.EEXIST) in str(error) else str(error)
    return f"it took the command `{_LAST}` for an existing table"
