"""Limits of a stream's names, marks and sizes, for every source."""

import re

NAME_PATTERN = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
"""Stream and memory names: they become file names, table names and metric labels."""

RESERVED_TABLES = range(253, 256)
"""Route tables default, main and local (/etc/iproute2/rt_tables); table 0 is `unspecified`."""

MAX_MARK = 2**32 - 1
DEFAULT_OFFSET = 5000
MAX_TARGETS = 1_000_000
