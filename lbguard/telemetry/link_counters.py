r"""Reads the kernel's counters of links (/proc/net/dev), and link names as the kernel has them: bytes.

A link name may hold any byte but white space, `/`, `:` and 0. Everywhere in lbguard a byte that is not UTF-8 is shown
as `\xff`, as the decoder of netlink messages shows it.
"""

import re
from pathlib import Path

_NET_DEV = Path("/proc/thread-self/net/dev")
_ESCAPED = re.compile(rb"\\x([89a-f][0-9a-f])")
_HEADER_LINES = 2
_COLUMN_COUNT = 16


def decode_link_name(raw: bytes) -> str:
    r"""Return a link name as text; bytes that are not UTF-8 become `\xff`."""
    return raw.decode("utf-8", "backslashreplace")


def encode_link_name(name: str) -> bytes:
    """Return the bytes of a link name that `decode_link_name` made text of."""
    return _ESCAPED.sub(lambda found: bytes.fromhex(found[1].decode()), name.encode("utf-8", "surrogateescape"))


def parse_net_dev(table: bytes) -> dict[str, tuple[int, ...]]:
    """Return 16 counters by name of a link: eight received, eight sent (net/core/net-procfs.c).

    Other lines are skipped.
    """
    counters = {}
    for line in table.split(b"\n")[_HEADER_LINES:]:
        # An old kernel sets no space behind the colon; a name has none, but may have a colon (an alias).
        name, colon, rest = line.strip(b" ").rpartition(b":")
        columns = rest.split()
        if colon and len(columns) == _COLUMN_COUNT and all(column.isdigit() for column in columns):
            counters[decode_link_name(name)] = tuple(int(column) for column in columns)
    return counters


def read_net_dev() -> bytes:
    """Return the table of the network namespace of this thread; empty when it cannot be read."""
    try:
        return _NET_DEV.read_bytes()
    except OSError:
        return b""
