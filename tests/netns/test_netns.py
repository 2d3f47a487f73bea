from collections.abc import Callable
from pathlib import Path

from lbguard.lab.netns import Namespace, connect


def test_entering_a_namespace_switches_this_thread_and_back(namespace: Namespace) -> None:
    here = Path("/proc/thread-self/ns/net").readlink()
    with namespace.entered():
        assert Path("/proc/thread-self/ns/net").readlink() != here
    assert Path("/proc/thread-self/ns/net").readlink() == here


def test_a_veth_pair_joins_two_namespaces(make_namespace: Callable[[str], Namespace]) -> None:
    left, right = make_namespace("left"), make_namespace("right")
    connect(left, "left0", right, "right0")
    left.add_addresses("left0", "192.0.2.1/24")
    right.add_addresses("right0", "192.0.2.2/24")
    route = left.route_to("192.0.2.2")
    assert route is not None
    assert route.link == "left0"
