"""Session of libnftables in a worker thread, so that the event loop never waits for nftables.

A libnftables context belongs to the network namespace of the thread that creates it, is not thread-safe, and blocks
while the kernel processes a transaction. So each session has exactly one thread, which alone creates and uses the
context.
"""

import asyncio
import ctypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from lbguard.distributor.base import DistributorError
from lbguard.distributor.nftables.nfnetlink import SEND_BUFFER_BYTES, NetfilterSocket, Nfnetlink, NftError, explain

T = TypeVar("T")

LIBRARY = "libnftables.so.1"


class NftContext:
    """One libnftables context and one nfnetlink socket, used (and blocked) by the worker thread alone."""

    def __init__(self, library: str, send_buffer_bytes: int = SEND_BUFFER_BYTES) -> None:
        try:
            import nftables
        except ImportError as error:
            raise DistributorError(
                f"the Python module nftables is missing ({error}): pip install pip-nftables"
            ) from error
        try:
            # Nftables() would leave an incomplete object, whose destructor fails.
            ctypes.CDLL(library)
        except OSError as error:
            raise DistributorError(f"{library} cannot be loaded ({error}): apt-get install libnftables1") from error
        self._nft: Any = nftables.Nftables(sofile=library)
        try:
            self.kernel = Nfnetlink(NetfilterSocket(send_buffer_bytes=send_buffer_bytes))
        except OSError as error:
            raise DistributorError(f"this kernel has no nfnetlink ({error}): load the module nf_tables") from error

    def run(self, commands: str) -> None:
        """Apply commands (lines of nft text) in one transaction.

        Raises:
            NftError: the kernel or the parser refused; nothing took effect.
        """
        code, _, error = self._nft.cmd(commands)
        if code != 0:
            raise NftError(_explain(error))

    def close(self) -> None:
        """Release the netlink socket; libnftables frees its own when the context is collected."""
        self.kernel.close()


class NftSession:
    """Runs blocking nftables work in its own thread, in the network namespace of the thread that constructs it."""

    def __init__(self, library: str = LIBRARY, send_buffer_bytes: int = SEND_BUFFER_BYTES) -> None:
        self._library = library
        self._send_buffer_bytes = send_buffer_bytes
        self._context: NftContext | None = None
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="lbguard-nft")
        # A thread inherits the namespace of its creator, so it must start now and not at the first call.
        self._executor.submit(int).result()

    async def call(self, work: Callable[[NftContext], T]) -> T:
        """Run `work` in the worker thread and return what it returns.

        Raises:
            DistributorError: nftables is missing, not permitted, or what `work` raises.
        """
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._work, work)

    def _work(self, work: Callable[[NftContext], T]) -> T:
        if self._context is None:
            self._context = NftContext(self._library, self._send_buffer_bytes)
        return work(self._context)

    async def close(self) -> None:
        """Wait for running work and end the thread; closing twice has no effect."""
        try:
            await asyncio.get_running_loop().run_in_executor(self._executor, self._release)
        except RuntimeError:
            return  # The executor was shut down before.
        self._executor.shutdown(wait=True)

    def _release(self) -> None:
        if self._context is not None:
            self._context.close()
            self._context = None


def _explain(error: str) -> str:
    """Return libnftables' output (message, command, carets) as one line, with a remedy where there is one."""
    return explain(error.strip().splitlines()[0] if error.strip() else "unknown error")
