"""Memory of the process: one arena of the C library for all threads."""

import contextlib
import ctypes
import os
from typing import Final

_M_ARENA_MAX: Final = -8  # malloc.h
_VARIABLE: Final = "MALLOC_ARENA_MAX"


def share_one_arena() -> None:
    """Let all threads allocate from one arena; call it before the first thread starts.

    glibc gives each thread an arena of its own, up to eight for each processor, and memory that is free in one is of no
    use to the others. gRPC has a dozen threads, which share the interpreter's lock most of the time. An operator's
    MALLOC_ARENA_MAX stays in force. A C library without mallopt has no such arenas.
    """
    if _VARIABLE in os.environ:
        return
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)
