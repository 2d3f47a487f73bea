"""Reader of a machine, and what a check of it finds.

Checks read through a `Host`, so that tests can use a directory tree instead of a machine.
"""

import ctypes
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lbguard.core.addr import Prefix
from lbguard.kernel.requests import local_prefixes

Severity = Literal["error", "warning"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Finding about the machine. `id` is one of a bounded set; with severity error lbguard cannot work."""

    id: str
    severity: Severity
    what: str
    remedy: str


def _can_load(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


class Host:
    """Reader of a machine, or of a directory tree in its place.

    Args:
        root: root directory of its file system.
        can_load: returns whether a shared library can be loaded.
        local: returns the prefixes whose packets the kernel delivers locally.
        refuses_affinity: returns why the kernel refuses the rules of flow affinity, empty if it takes them.
    """

    def __init__(
        self,
        root: Path = Path("/"),
        can_load: Callable[[str], bool] = _can_load,
        local: Callable[[], Iterable[Prefix]] = local_prefixes,
        refuses_affinity: Callable[[], str] = str,
    ) -> None:
        self.root = root
        self.can_load = can_load
        self.refuses_affinity = refuses_affinity
        self._local = local

    def path(self, path: Path | str) -> Path:
        """Return a path below the root; a relative path is below the working directory."""
        return self.root / str(Path(path).absolute()).lstrip("/")

    def read(self, path: str) -> str | None:
        """Return a file's text without surrounding blanks, or None when it cannot be read."""
        try:
            return self.path(path).read_text(errors="replace").strip()
        except OSError:
            return None

    def local(self) -> Iterable[Prefix]:
        """Return the prefixes whose packets the kernel delivers locally; none when they cannot be read."""
        try:
            return self._local()
        except OSError:
            return ()

    def sysctl(self, name: str) -> str | None:
        """Return a sysctl (`net/ipv4/ip_forward`) of the network namespace of this thread."""
        return self.read(f"/proc/sys/{name}")

    def links(self) -> list[str]:
        """Return the names of the links that have IPv4 settings."""
        try:
            return sorted(entry.name for entry in self.path("/proc/sys/net/ipv4/conf").iterdir())
        except OSError:
            return []
