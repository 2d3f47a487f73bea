"""Unix sockets of gRPC servers: prepares their path, serves them, and restores them when removed.

Another program may remove such a socket (a cleaner of /run or /tmp) or replace it. gRPC would continue to listen where
no client can connect, so the path is checked, and a new server serves it again.
"""

import asyncio
import contextlib
import errno
import logging
import os
import secrets
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import grpc

from lbguard.errors import StartError
from lbguard.settings.notation import unix_target
from lbguard.telemetry.log import fields

_log = logging.getLogger("lbguard.api")

PATH_BYTES_MAX = 107  # struct sockaddr_un holds 108 bytes with the final zero
_PROBE_TIMEOUT_S = 1.0
_NEVER = (0, 0)


class SocketError(StartError):
    """A unix socket cannot be made; the text names the setting and the remedy."""


def prepare_socket(path: Path, setting: str) -> None:
    """Make the directory and remove the socket of a dead process; refuse a live socket or another file.

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
        raise SocketError(f"{place}: the path exists and is not a socket; remove it or choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_TIMEOUT_S)
        code = probe.connect_ex(str(path))
    if code not in {errno.ECONNREFUSED, errno.ENOENT}:
        raise SocketError(f"{place}: another process listens there; stop it or choose another path")
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise SocketError(f"{place}: the socket of a dead process is in the way: {error.strerror}; remove it") from None


class ServedSocket:
    """A unix socket that a gRPC server serves. `problem`: why it cannot be served (empty: it is).

    gRPC removes any file at the path of its socket when it binds and when it ends. So it binds to another name in the
    same directory, which is then renamed; tools that list sockets show that name.

    Args:
        path: its path; the directory is made when missing.
        setting: the name of the setting that names it.
        mode: its permission bits.
        make: returns a server with all its services, not started.
        credentials: with them, clients have to show a certificate.
    """

    def __init__(
        self,
        path: Path,
        setting: str,
        mode: int,
        make: Callable[[], grpc.aio.Server],
        credentials: grpc.ServerCredentials | None = None,
    ) -> None:
        self.problem = ""
        self._path = path
        self._setting = setting
        self._mode = mode
        self._make = make
        self._credentials = credentials
        self._servers: list[grpc.aio.Server] = []
        self._identity = _NEVER

    async def serve(self) -> None:
        """Serve the socket. Open calls of a previous server continue until the socket is lost once more.

        Raises:
            SocketError: another process serves it, or it cannot be made.
        """
        await asyncio.to_thread(prepare_socket, self._path, self._setting)
        place = f"{self._setting} = {self._path}"
        server = self._make()
        try:
            beside = self._free_place_beside()
            self._bind(server, beside)
            await server.start()
        except (RuntimeError, OSError) as error:
            raise SocketError(f"{place}: cannot listen: {error}") from None
        try:
            status = beside.lstat()
            beside.rename(self._path)
        except OSError as error:
            await server.stop(None)
            raise SocketError(f"{place}: cannot be made: {error.strerror}; make {self._path.parent} writable") from None
        self._identity = (status.st_dev, status.st_ino)
        self._servers.append(server)
        while len(self._servers) > 2:
            await self._servers.pop(0).stop(None)

    async def keep(self) -> None:
        """Serve the socket again if its path was lost; called once a second. `problem` has the reason of a failure."""
        if self._is_ours():
            self.problem = ""
            return
        before = self._identity
        try:
            await self.serve()
        except SocketError as error:
            if str(error) != self.problem:
                _log.error("socket not served; trying again", extra=fields(reason=str(error)))
            self.problem = str(error)
            return
        if before != _NEVER:
            _log.warning("socket was taken away: served anew", extra=fields(path=str(self._path)))
        self.problem = ""

    async def stop(self, grace_s: float) -> None:
        """End open calls after `grace_s` seconds and remove the socket, unless another program has replaced it."""
        servers, self._servers = self._servers, []
        await asyncio.gather(*(server.stop(grace_s) for server in servers))
        if servers and self._is_ours():
            with contextlib.suppress(OSError):
                self._path.unlink()

    def _bind(self, server: grpc.aio.Server, path: Path) -> None:
        # With the mask the socket has its mode from the start.
        mask = os.umask(0o777 & ~self._mode)
        try:
            if self._credentials is None:
                server.add_insecure_port(unix_target(path))
            else:
                server.add_secure_port(unix_target(path), self._credentials)
        finally:
            os.umask(mask)

    def _is_ours(self) -> bool:
        try:
            status = self._path.lstat()
        except OSError:
            return False
        return (status.st_dev, status.st_ino) == self._identity

    def _free_place_beside(self) -> Path:
        """Return a free path that fits into a socket address.

        Raises:
            OSError: an old file there cannot be removed.
        """
        for name in (f".{self._path.name}.new", ".n", secrets.token_hex(3)):
            place = self._path.with_name(name)
            if len(os.fsencode(place)) <= PATH_BYTES_MAX:
                with contextlib.suppress(IsADirectoryError):
                    place.unlink(missing_ok=True)
                    return place
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
