import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from pyroute2.netlink.exceptions import NetlinkError

from lbguard.lab.netns import Namespace, connect

UNPRIVILEGED = """
from lbguard.lab.netns import Namespace, enter_sandbox
enter_sandbox()
with Namespace("one") as one:
    one.add_veth("a", "b")
    print([link.name for link in one.links()])
"""


def test_entering_a_namespace_switches_this_thread_and_back(namespace: Namespace) -> None:
    here = Path("/proc/thread-self/ns/net").readlink()
    with namespace.entered():
        assert Path("/proc/thread-self/ns/net").readlink() != here
    assert Path("/proc/thread-self/ns/net").readlink() == here


async def test_a_veth_pair_joins_two_namespaces(make_namespace: Callable[[str], Namespace]) -> None:
    """In a coroutine, too."""
    left, right = make_namespace("left"), make_namespace("right")
    connect(left, "left0", right, "right0")
    left.add_addresses("left0", "192.0.2.1/24")
    right.add_addresses("right0", "192.0.2.2/24")
    route = left.route_to("192.0.2.2")
    assert route is not None
    assert route.link == "left0"
    assert "left0" in left.run("ip", "-br", "link")


def test_a_namespace_leaves_nothing_open_and_moves_nobody(sandbox: None) -> None:
    def held() -> tuple[int, list[int], Path]:
        files = [len(list(Path(place).iterdir())) for place in ("/proc/self/fd", "/run/netns")]
        return threading.active_count(), files, Path("/proc/self/ns/net").readlink()

    Namespace("first").delete()  # makes the directory
    before = held()
    for _ in range(3):
        with Namespace("left") as left, Namespace("right") as right:
            connect(left, "left0", right, "right0")
            assert held() != before
            left.delete()  # once more is no error
    assert held() == before


def test_a_refusal_says_why(namespace: Namespace) -> None:
    with pytest.raises(NetlinkError, match="Nexthop has invalid gateway"):
        namespace.add_route("default", "192.0.2.1")
    namespace.add_addresses("lo", *(f"10.0.{n}.1/32" for n in range(250)))
    with pytest.raises(NetlinkError):
        namespace.add_addresses("lo", "10.1.0.1/32", "10.0.7.1/32")
    assert len(namespace.addresses("lo")) == 253


def test_namespaces_are_made_in_a_user_namespace_too() -> None:
    command = ["unshare", "--user", "--map-root-user", sys.executable, "-c", UNPRIVILEGED]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if "unshare failed" in done.stderr:
        pytest.skip(f"user namespaces cannot be made here: {done.stderr}")
    assert done.stdout == "['lo', 'b', 'a']\n", done.stderr
