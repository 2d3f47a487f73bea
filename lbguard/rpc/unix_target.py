"""The gRPC address of a unix socket."""

import os
from pathlib import Path
from urllib.parse import quote


def unix_target(path: Path | str) -> str:
    """Return a path as a gRPC address, a URI: ASCII, with `%`, `#` and `?` escaped."""
    return f"unix:{quote(os.fsencode(path))}"
