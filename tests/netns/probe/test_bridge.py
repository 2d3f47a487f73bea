"""The bridge of a proxy on the real kernel: neighbours, ports and the forwarding database."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import pytest
from pyroute2.netlink.rtnl.ndmsg import NTF_USE

from lbguard.core.model import LinkSubject, TargetSubject
from lbguard.lab.netns import Namespace
from lbguard.probe.bridge import BridgeNeighbors, BridgePorts, BridgeSource
from lbguard.probe.connections import Connection, ConnectionList, ConnectionsLost
from lbguard.probe.kernel_view import KernelView
from tests.unit.kernel.fake_kernel import eventually
from tests.unit.probe.verdicts import ip

pytestmark = pytest.mark.netns


class Heard:
    """What the source told."""

    def __init__(self) -> None:
        self.told: list[ConnectionList | ConnectionsLost] = []

    def by_id(self) -> dict[str, Connection]:
        """Return the last list."""
        lists = [item for item in self.told if isinstance(item, ConnectionList)]
        return {connection.id: connection for connection in lists[-1].connections} if lists else {}


@pytest.fixture
def proxy(make_namespace: Callable[[str], Namespace]) -> Namespace:
    made = make_namespace("proxy")
    made.add_link("bridge0", "bridge")
    made.add_addresses("bridge0", "172.16.0.1/24", "fd00::1/64")
    return made


@pytest.fixture
def join(proxy: Namespace, make_namespace: Callable[[str], Namespace]) -> Callable[[str, str], Namespace]:
    def join(port: str, host: str) -> Namespace:
        made = make_namespace(port)
        made.add_veth("eth0", port, proxy.path)
        proxy.set_link(port, master="bridge0", up=True)
        made.add_addresses("eth0", f"172.16.0.{host}/24")
        return made

    return join


def talk(proxy: Namespace, host: str) -> None:
    """Make the proxy resolve a neighbour."""
    proxy.replace_neighbor(f"172.16.0.{host}", "bridge0", state="none", flags=NTF_USE)


@pytest.fixture
async def heard(proxy: Namespace) -> AsyncIterator[Heard]:
    heard = Heard()
    with proxy.entered():
        view, ports = KernelView(), BridgePorts(proxy.name)
        await view.start()
    source = BridgeSource(BridgeNeighbors("bridge0", ("lb-*",), 600.0, 100), view, ports, heard.told.append)
    view.when_changed(source.reload)
    running = asyncio.create_task(source.run())
    yield heard
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    await view.stop()
    ports.close()


async def test_targets_and_load_balancers_are_told_apart_by_their_ports(
    proxy: Namespace, join: Callable[[str, str], Namespace], heard: Heard
) -> None:
    join("t1", "10")
    join("lb-fe-1", "254")
    talk(proxy, "10")
    talk(proxy, "254")
    await eventually(lambda: len(heard.by_id()) == 2)
    assert {connection.subject for connection in heard.by_id().values()} == {
        TargetSubject(ip=ip("172.16.0.10")),
        LinkSubject(lb_ip=ip("172.16.0.254"), proxy_ip=ip("172.16.0.1")),
    }
    assert {connection.ifname for connection in heard.by_id().values()} == {"bridge0"}


async def test_a_target_made_anew_comes_with_its_new_mac(
    proxy: Namespace, join: Callable[[str, str], Namespace], heard: Heard
) -> None:
    target = join("t1", "10")
    talk(proxy, "10")
    await eventually(lambda: "bridge0/172.16.0.10" in heard.by_id())
    target.set_link("eth0", up=False)
    target.set_link("eth0", address="02:00:00:00:00:99", up=True)
    target.flush_neighbors()
    proxy.flush_neighbors("bridge0")
    assert "bridge0/172.16.0.10" in heard.by_id()
    talk(proxy, "10")
    await eventually(lambda: heard.by_id()["bridge0/172.16.0.10"].mac == bytes.fromhex("020000000099"))


async def test_without_the_bridge_the_list_stays(
    proxy: Namespace, join: Callable[[str, str], Namespace], heard: Heard
) -> None:
    join("t1", "10")
    talk(proxy, "10")
    await eventually(lambda: "bridge0/172.16.0.10" in heard.by_id())
    proxy.delete_link("bridge0")
    await eventually(lambda: isinstance(heard.told[-1], ConnectionsLost))
    assert "bridge0/172.16.0.10" in heard.by_id()
