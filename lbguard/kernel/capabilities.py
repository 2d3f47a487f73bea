"""Makes the permitted capabilities of this process effective, where its start did not.

The image's interpreter has file capabilities without the effective bit (capabilities(7)): a file with that bit cannot
be started where one of its capabilities is not granted, and `lbguard check-config`, observe mode and the probe need
none or fewer. The granted capabilities are permitted after the start, and have to be made effective.
"""

import ctypes
import os

# include/uapi/linux/capability.h
_VERSION_3 = 0x20080522


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Data(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def use_permitted() -> None:
    """Make every permitted capability of this thread effective; call it before other threads start.

    Raises:
        OSError: the kernel refuses.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    header, data = _Header(_VERSION_3, 0), (_Data * 2)()
    if libc.capget(ctypes.byref(header), data):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    if all(half.effective == half.permitted for half in data):
        return
    for half in data:
        half.effective = half.permitted
    if libc.capset(ctypes.byref(header), data):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
