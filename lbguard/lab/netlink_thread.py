"""A thread with a netlink socket in one network namespace.

pyroute2 opens a socket, and an event loop that cannot run within another one, for each thread that calls it; with
`netns=` it forks for each of them. In a thread of its own the socket stays in its namespace, whoever calls, a coroutine
too, and nothing forks.
"""

import contextlib
import socket
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self, TypeVar

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkDumpInterrupted

_BATCH = 100
"""Requests that are sent at once: the socket has room for as many answers."""

_Result = TypeVar("_Result")


class NetlinkThread:
    """Thread with a netlink socket, in the network namespace of the thread that makes it."""

    def __init__(self) -> None:
        self._batch: list[Any] | None = None
        self._thread = ThreadPoolExecutor(1, "netlink")
        try:
            self.netlink = self.in_thread(self.open)
        except BaseException:
            self._thread.shutdown()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket and end its thread; once more is no error."""
        if self.netlink is not None:
            self.in_thread(self.netlink.close)
            self._thread.shutdown()
            self.netlink = None

    def open(self) -> Any:
        """Open the socket, in the thread."""
        return IPRoute(groups=0, ext_ack=True, strict_check=True)

    def in_thread(self, work: Callable[..., _Result], *args: Any, **fields: Any) -> _Result:
        """Call a function in the thread, that is, in the namespace."""
        return self._thread.submit(work, *args, **fields).result()

    def request(self, subject: str, command: str, **fields: Any) -> Sequence[Any]:
        """Make a request in pyroute2's own terms, such as `request("link", "dump")`.

        Raises:
            NetlinkError: the kernel refuses it.
        """
        while True:
            with contextlib.suppress(NetlinkDumpInterrupted):
                found: Sequence[Any] = self.in_thread(getattr(self.netlink, subject), command, **fields)
                return found

    @contextlib.contextmanager
    def batch(self) -> Iterator[None]:
        """Collect what is asked of addresses, routes, rules and neighbours, and send it at once in the end."""
        collected: list[Any] = []
        self._batch = collected
        try:
            yield
        finally:
            self._batch = None
        self.send(collected)

    def send(self, messages: Sequence[Any]) -> None:
        """Send messages, or collect them for the batch; return when the kernel has carried them out."""
        if self._batch is not None:
            self._batch += messages
            return
        for start in range(0, len(messages), _BATCH):
            self.in_thread(self.netlink.nlm_request_batch, messages[start : start + _BATCH])

    def index(self, link: str) -> int:
        """Return the number of a link."""
        return self.in_thread(socket.if_nametoindex, link)
