"""Run a function in namespaces of its own (network, mounts, processes; users too when not root).

The caller stays outside as a supervisor that only passes signals on. Everything the function starts lives in one
process namespace whose first process asks the kernel to be killed with the supervisor: so nothing outlives the
command, not after Ctrl-C and not after `kill -9`, and the host's own namespaces are never touched.
"""

import contextlib
import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType

from lbguard.lab.netns import CLONE_NEWNET, CLONE_NEWNS, CLONE_NEWUSER, set_loopback_up
from lbguard.telemetry.output import OutputError, print_error

CLONE_NEWPID = 0x20000000
PR_SET_PDEATHSIG = 1
TOOLS = {"nft": "nftables", "nsenter": "util-linux", "mount": "mount"}
"""Commands the lab needs, and the Debian package of each."""

PRIVATE_DIRECTORIES = ("/run", "/dev/shm")
"""Directories of which the sandbox has its own; they vanish with it."""

_libc = ctypes.CDLL(None, use_errno=True)


class SandboxError(Exception):
    """The lab cannot be isolated on this machine; the message says why and what helps."""


def require_tools(tools: Mapping[str, str] = TOOLS) -> None:
    """Check that the commands the lab needs are installed.

    Args:
        tools: the Debian package of each command.

    Raises:
        SandboxError: some are missing; the message holds the command that installs them.
    """
    search = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    os.environ["PATH"] = search
    packages = sorted({package for tool, package in tools.items() if shutil.which(tool) is None})
    if packages:
        raise SandboxError(f"the lab needs more tools; install them with: apt-get install {' '.join(packages)}")


def run_isolated(function: Callable[[], int]) -> int:
    """Run `function` in fresh namespaces and return its exit status. Call it while the process has one thread.

    Inside, `/run` and `/dev/shm` are private, `/proc` shows only the sandbox's processes, and loopback is up.

    Raises:
        SandboxError: the kernel refuses namespaces.
    """
    uid, gid = os.getuid(), os.getgid()
    sys.stdout.flush()
    sys.stderr.flush()
    lifeline, ours = os.pipe()
    _unshare(uid, gid)
    child = os.fork()
    if child == 0:
        os.close(ours)
        os.setsid()  # Ctrl-C reaches the supervisor alone, so that the sandbox gets it once
        _die_with(lifeline)
        os._exit(_first_process(function))
    os.close(lifeline)
    return _supervise(child)


def _unshare(uid: int, gid: int) -> None:
    flags = CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWPID
    if uid != 0:
        flags |= CLONE_NEWUSER
    if _libc.unshare(flags) != 0:
        raise SandboxError(_refusal(ctypes.get_errno(), privileged=uid == 0))
    if uid != 0:
        try:
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
            Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
        except OSError as error:
            raise SandboxError(_refusal(error.errno or 0, privileged=False)) from error


def _refusal(code: int, *, privileged: bool) -> str:
    reason = os.strerror(code)
    if privileged:
        return (
            f"the kernel refuses new namespaces to this root user ({reason}). In a container, start it with "
            "--privileged (or --cap-add SYS_ADMIN --cap-add NET_ADMIN and an unconfined seccomp profile)."
        )
    return (
        f"the kernel refuses user namespaces to unprivileged users ({reason}). Run the command as root, or allow them: "
        "sysctl -w kernel.unprivileged_userns_clone=1 user.max_user_namespaces=10000 "
        "(on Ubuntu also kernel.apparmor_restrict_unprivileged_userns=0)."
    )


def _die_with(lifeline: int) -> None:
    """Be killed when the supervisor ends; the pipe closes the race with a supervisor that is gone already."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    poll = select.poll()
    poll.register(lifeline, select.POLLHUP)
    if poll.poll(0):
        os._exit(128 + signal.SIGKILL)


def _first_process(function: Callable[[], int]) -> int:
    # The supervisor asks for the end with SIGINT, which a command in the background of a script ignores.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)
        for path in PRIVATE_DIRECTORIES:
            subprocess.run(["mount", "-t", "tmpfs", "tmpfs", path], check=True)
        # A container may mask parts of /proc; then a new one is refused and the old one, which also works, stays.
        subprocess.run(["mount", "-t", "proc", "proc", "/proc"], check=False, stderr=subprocess.DEVNULL)
        set_loopback_up()
        status = function()
        with contextlib.suppress(OSError):
            sys.stdout.flush()
    except KeyboardInterrupt:
        print_error("interrupted; everything that was made is gone")
        status = 128 + signal.SIGINT
    except OutputError as error:
        print_error(str(error))
        status = 1
    except BaseException:  # the process ends here: nothing above it could report the error
        traceback.print_exc()
        status = 70
    with contextlib.suppress(OSError):
        sys.stderr.flush()
    return status


def _supervise(child: int) -> int:
    """Pass signals on to the sandbox and wait for it; a second signal kills it at once."""
    received = 0

    def pass_on(number: int, _frame: FrameType | None) -> None:
        nonlocal received
        received += 1
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGINT if received == 1 else signal.SIGKILL)

    previous = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        _, status = os.waitpid(child, 0)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code
