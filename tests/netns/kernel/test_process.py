import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from lbguard.kernel.process import InstanceLock, InstanceRunning
from lbguard.lab.netns import Namespace

HOLDER = """
import sys
from lbguard.kernel.process import InstanceLock
with InstanceLock():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_second_instance_is_refused_with_the_pid_of_the_first(namespace: Namespace) -> None:
    with namespace.entered():
        lock = InstanceLock()
        lock.acquire()
        with pytest.raises(InstanceRunning) as refused:
            InstanceLock().acquire()
        assert refused.value.pid == os.getpid()
        assert str(os.getpid()) in str(refused.value)
        lock.release()
        lock.release()
        with InstanceLock(), pytest.raises(InstanceRunning):
            InstanceLock().acquire()


def test_lock_dies_with_its_holder(namespace: Namespace) -> None:
    holder = subprocess.Popen(
        namespace.command(sys.executable, "-c", HOLDER), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with namespace.entered():
            with pytest.raises(InstanceRunning) as refused:
                InstanceLock().acquire()
            assert refused.value.pid == holder.pid
            holder.kill()
            holder.wait()
            with InstanceLock():
                pass


def test_each_namespace_has_its_own(make_namespace: Callable[[str], Namespace]) -> None:
    one, other = make_namespace("one"), make_namespace("other")
    with one.entered():
        lock = InstanceLock()
        lock.acquire()
    with other.entered(), InstanceLock():
        pass
    lock.release()
