"""A mesh manager's events at the load balancer: the kernel's own checks are off, so only they can mend anything."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from lbguard.api.gen.nsm.connection import connection_pb2 as pb
from tests.fakes.nsmgr import FakeNsmgr, connection
from tests.netns.companion.beside import FROM_KERNEL, Beside, answers, wait_until
from tests.netns.companion.test_beside import replace_target_link, wait_for_new_address

pytestmark = pytest.mark.netns


def target_connection(beside: Beside, identifier: int) -> pb.Connection:
    place = beside.chain.place(identifier)
    made = connection(
        f"target-{identifier}",
        src=(f"{place.ipv4}/32", f"{place.ipv6}/128"),
        dst=(f"172.16.{place.proxy}.1/32", f"fd00:0:0:{place.proxy}::1/128"),
        service="proxy.a",
    )
    made.context.ethernet_context.src_mac = beside.mac_of_target(identifier)
    return made


def settings_of(socket: Path) -> dict[str, str]:
    return {
        **FROM_KERNEL,
        "LBGUARD_NSM__ENABLED": "true",
        "LBGUARD_NSM__ADDRESS": f"unix://{socket}",
        "LBGUARD_NSM__NETWORK_SERVICES": "proxy.a",
        "LBGUARD_NEIGHBORS__PROBE_INTERVAL": "0",
        "LBGUARD_NEIGHBORS__SOLICIT": "false",
        "LBGUARD_NEIGHBORS__TUNE": "false",
    }


async def eventually(condition: Callable[[], object], what: str) -> None:
    """Wait beside the manager that is served in this process's loop."""
    await asyncio.to_thread(wait_until, condition, what)


async def test_a_closed_connection_flushes_its_targets_entries_and_nobody_elses(beside: Beside, tmp_path: Path) -> None:
    manager = FakeNsmgr()
    for identifier in (1, 2):
        made = target_connection(beside, identifier)
        manager.connections[made.id] = made
    await manager.start(tmp_path / "nsm.sock")
    try:
        with beside.guard(settings_of(tmp_path / "nsm.sock")):
            await eventually(lambda: manager.watchers, "the service follows the manager")
            assert list(manager.selectors[-1].network_services) == ["proxy.a"]
            for identifier in (1, 2):
                await asyncio.to_thread(beside.meet, identifier)
            old = beside.mac_in_lb(beside.chain.place(1).ipv4)
            await asyncio.to_thread(replace_target_link, beside, 1)
            assert beside.mac_in_lb(beside.chain.place(1).ipv4) == old
            seen = len(beside.changes("NEIGH"))
            manager.delete("target-1")
            await asyncio.to_thread(wait_for_new_address, beside, 1)
            assert answers(beside.lb, beside.chain.place(1).ipv4)
            changed = beside.changes("NEIGH")[seen:]
            for ip in (beside.chain.place(1).ipv4, beside.chain.place(1).ipv6):
                assert any("Deleted" in line and f"{ip} " in line for line in changed)
            for ip in (beside.chain.place(2).ipv4, beside.chain.place(2).ipv6):
                assert not any("Deleted" in line and f"{ip} " in line for line in changed)
            assert beside.path_changes()["ours"] == 0
    finally:
        await manager.stop()


async def test_a_new_interface_that_is_told_flushes_once_and_a_lost_manager_nothing(
    beside: Beside, tmp_path: Path
) -> None:
    manager = FakeNsmgr()
    manager.connections["target-1"] = target_connection(beside, 1)
    await manager.start(tmp_path / "nsm.sock")
    try:
        with beside.guard(settings_of(tmp_path / "nsm.sock")) as guard:
            await eventually(lambda: manager.watchers, "the service follows the manager")
            await asyncio.to_thread(beside.meet, 1)
            await asyncio.to_thread(replace_target_link, beside, 1)
            manager.update(target_connection(beside, 1))
            await asyncio.to_thread(wait_for_new_address, beside, 1)
            seen = len(beside.changes("NEIGH"))
            await manager.stop()
            await eventually(lambda: guard.log("mesh manager lost: nothing changes"), "the loss is told")
            await manager.start(tmp_path / "nsm.sock")
            await eventually(lambda: len(guard.log("mesh manager answers")) == 2, "the service is back at the manager")
            # A refresh tells the same again. Target 2's close, which comes after it, is what shows that it was heard.
            manager.update(target_connection(beside, 1), target_connection(beside, 2))
            await asyncio.to_thread(beside.meet, 2)
            manager.delete("target-2")
            ip = beside.chain.place(2).ipv4
            await eventually(
                lambda: any("Deleted" in line and f"{ip} " in line for line in beside.changes("NEIGH")[seen:]), ip
            )
            place = beside.chain.place(1)
            changed = beside.changes("NEIGH")[seen:]
            assert not any(
                "Deleted" in line and f"{ip} " in line for line in changed for ip in (place.ipv4, place.ipv6)
            )
    finally:
        await manager.stop()


async def test_a_connection_under_repair_is_waited_for(beside: Beside, tmp_path: Path) -> None:
    manager = FakeNsmgr()
    manager.connections["target-1"] = target_connection(beside, 1)
    await manager.start(tmp_path / "nsm.sock")
    try:
        waiting = {"LBGUARD_NSM__HEAL_TIME": "25s", "LBGUARD_GRACE__WINDOW": "1s", "LBGUARD_FREEZE__THRESHOLD": "1"}
        with beside.guard(settings_of(tmp_path / "nsm.sock") | waiting) as guard:
            await eventually(lambda: manager.watchers, "the service follows the manager")
            down = target_connection(beside, 1)
            down.state = pb.DOWN
            manager.update(down)
            await asyncio.to_thread(beside.chain.delete_lb_link, 1)

            def waits(identifier: int) -> list[float]:
                lines = [line for line in guard.log("decision") if line["identifier"] == identifier]
                return [line["deadline_in_s"] for line in lines if line["action"] in ("hold", "revise")]

            # Both lost the same link at once; only the one of which the mesh says so is worth a longer wait.
            await eventually(lambda: max(waits(1), default=0) > 10, "target 1 is waited for")
            await eventually(lambda: waits(2), "target 2 is held")
            assert max(waits(2)) <= 1
    finally:
        await manager.stop()


async def test_a_repair_of_our_own_link_that_is_told_after_the_loss_is_waited_for(
    beside: Beside, tmp_path: Path
) -> None:
    place = beside.chain.place(1)
    ours = connection(
        "our-end", src=(f"172.16.{place.proxy}.1/32",), dst=(f"172.16.{place.proxy}.2/32",), service="proxy.a"
    )
    manager = FakeNsmgr()
    manager.connections[ours.id] = ours
    await manager.start(tmp_path / "nsm.sock")
    try:
        waiting = {"LBGUARD_NSM__HEAL_TIME": "25s", "LBGUARD_GRACE__WINDOW": "10s", "LBGUARD_FREEZE__THRESHOLD": "1"}
        with beside.guard(settings_of(tmp_path / "nsm.sock") | waiting) as guard:
            await eventually(lambda: manager.watchers, "the service follows the manager")
            await asyncio.to_thread(beside.chain.delete_lb_link, place.proxy)

            def waits(action: str) -> list[float]:
                lines = [line for line in guard.log("decision") if line["identifier"] == 1]
                return [line["deadline_in_s"] for line in lines if line["action"] == action]

            await eventually(lambda: waits("hold"), "target 1 is held")
            assert max(waits("hold")) <= 10
            down = pb.Connection()
            down.CopyFrom(ours)
            down.state = pb.DOWN
            manager.update(down)
            await eventually(lambda: max(waits("revise"), default=0) > 15, "target 1 is waited for")
    finally:
        await manager.stop()
