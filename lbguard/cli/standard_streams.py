"""Makes sure that the descriptors 0, 1 and 2 are open: a supervisor may have started us without one of them."""

import os
import sys
from typing import Final

_NAMES: Final = ("stdin", "stdout", "stderr")


def open_standard_streams() -> None:
    """Put the null device where a standard descriptor is closed.

    Otherwise the next file or socket that is opened gets its number, and what a library writes to standard error ends
    up in there; and Python has None in place of the stream.
    """
    for descriptor, name in enumerate(_NAMES):
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest free number is given out, and those below are open.
            opened = os.open(os.devnull, os.O_RDWR)
            assert opened == descriptor
            os.set_inheritable(descriptor, True)
        if getattr(sys, name) is None:
            setattr(sys, name, open(descriptor, "w" if descriptor else "r", closefd=False))  # noqa: SIM115
