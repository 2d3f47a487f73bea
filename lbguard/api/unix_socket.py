"""Makes the place for a unix socket ready: its directory is there, and no dead process's socket is in the way."""

import errno
import os
import socket
import stat
from pathlib import Path

from lbguard.start_error import StartError

PATH_BYTES_MAX = 107  # struct sockaddr_un holds 108 bytes with the final zero
_PROBE_TIMEOUT_S = 1.0


class SocketError(StartError):
    """A unix socket cannot be made; the text names the setting and what to do."""


def prepare_socket(path: Path, setting: str) -> None:
    """Make the directory and remove the socket of a dead process; refuse a live one or anything else.

    Raises:
        SocketError: the path cannot be used; the text begins with the setting that names it.
    """
    place = f"{setting} = {path}"
    if len(os.fsencode(path)) > PATH_BYTES_MAX:
        raise SocketError(f"{place}: the path is longer than {PATH_BYTES_MAX} bytes; choose a shorter one")
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise SocketError(f"{place}: {error.strerror}; make {path.parent} and let this user write to it") from None
    if not stat.S_ISSOCK(mode):
        raise SocketError(
            f"{place}: the path is taken by something that is no socket; remove it or choose another path"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_TIMEOUT_S)
        code = probe.connect_ex(str(path))
    if code not in {errno.ECONNREFUSED, errno.ENOENT}:
        raise SocketError(f"{place}: another process listens there; stop it or choose another path")
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise SocketError(f"{place}: the socket of a dead process is in the way: {error.strerror}; remove it") from None
