from collections.abc import Callable

import pytest

from lbguard.dataplane.instance import InstanceLock
from lbguard.hostcheck import check_host
from lbguard.lab.netns import Namespace
from lbguard.settings.model import load

pytestmark = pytest.mark.netns

NETWORK = {
    "ipv4_forwarding_off",
    "ipv6_forwarding_off",
    "strict_rp_filter",
    "ipv4_fwmark_reflect_off",
    "ipv6_fwmark_reflect_off",
    "another_instance",
}


def found(namespace: Namespace) -> set[str]:
    with namespace.entered():
        return {finding.id for finding in check_host(load().settings)} & NETWORK


def test_the_sysctls_of_a_namespace_are_read(namespace: Namespace) -> None:
    for key in ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"):
        namespace.sysctl(key, "0")
    for key in ("net.ipv4.fwmark_reflect", "net.ipv6.fwmark_reflect"):
        namespace.sysctl(key, "0")
    namespace.sysctl("net.ipv4.conf.all.rp_filter", "1")
    assert found(namespace) == NETWORK - {"another_instance"}
    for key in ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"):
        namespace.sysctl(key, "1")
    for key in ("net.ipv4.fwmark_reflect", "net.ipv6.fwmark_reflect"):
        namespace.sysctl(key, "1")
    namespace.sysctl("net.ipv4.conf.all.rp_filter", "2")
    assert found(namespace) == set()


def test_an_instance_is_seen_in_its_own_namespace_only(make_namespace: Callable[[str], Namespace]) -> None:
    here, there = make_namespace("here"), make_namespace("there")
    lock = InstanceLock()
    with here.entered():
        lock.acquire()
    try:
        assert "another_instance" in found(here)
        assert "another_instance" not in found(there)
    finally:
        lock.release()
    assert "another_instance" not in found(here)
