"""The gRPC address of a unix socket."""

import os
from pathlib import Path
from urllib.parse import quote


def unix_target(path: Path | str) -> str:
    """Return a path in gRPC's notation, a URI: in it `%`, `#` and `?` mean something else, and it has to be ASCII."""
    return f"unix:{quote(os.fsencode(path))}"
