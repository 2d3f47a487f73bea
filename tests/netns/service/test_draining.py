"""Drains and families in the real service, as the targets file, a restart, the API and the metrics have them."""

import asyncio

import pytest

from lbguard.core.model import Action
from tests.fakes.nsp import FakeNsp, target, vip
from tests.fakes.nsp import stream as stream_of_registry
from tests.netns.service.guarded import TARGETS, Guarded, ips_of, stream, targets_yaml, wait_until

pytestmark = pytest.mark.netns

ON = {"LBGUARD_AFFINITY__MODE": "incident", "LBGUARD_AFFINITY__LEARN": "0s"}
LONG = {"LBGUARD_DRAIN__WINDOW": "1h", "LBGUARD_DRAIN__IDLE": "1h"}


def listed(*identifiers: int, draining: tuple[int, ...] = ()) -> str:
    targets = [{"identifier": i, "ips": ips_of(i), "draining": i in draining} for i in identifiers]
    return targets_yaml(stream(targets=targets))


def test_a_target_drains_for_as_long_as_the_file_says_so(guarded: Guarded) -> None:
    with guarded.service(ON):
        table = guarded.slots()
        guarded.write_targets(listed(*TARGETS, draining=(1,)))
        guarded.wait_for(t1="draining", t2="active")
        with guarded.client() as client:
            status, story = client.status(), client.explain("1").story
        assert status.affinity is not None
        assert status.affinity.in_force
        (drained,) = [each for each in status.targets if each.identifier == 1]
        assert (drained.draining, drained.unlisted, drained.deadline) == (True, False, None)
        assert all(path.steered for path in drained.paths)
        assert "It drains for as long as the source lists it as draining." in story
        wait_until(lambda: guarded.metric('lbguard_target_states{state="draining",stream="stream-a"}') == 1)
        assert guarded.slots() == table
        guarded.write_targets(listed(*TARGETS))
        guarded.wait_for(t1="active")
        assert guarded.slots() == table


def test_without_flow_affinity_a_target_listed_as_draining_is_active_and_the_log_says_so(guarded: Guarded) -> None:
    with guarded.service({"LBGUARD_AFFINITY__MODE": "off"}, targets=listed(*TARGETS, draining=(1,))) as service:
        line = service.wait_for_log(
            "targets are listed as draining, but flow affinity is off: they get new connections"
        )
        assert "affinity.mode" in line["remedy"]
        assert guarded.states()[1] == "active"
        guarded.write_targets(listed(1, 2, 3, draining=(1,)))
        wait_until(lambda: 4 not in guarded.states())
        assert len(service.log(line["event"])) == 1


def test_a_killed_service_drains_on_for_the_time_that_is_left(guarded: Guarded) -> None:
    with guarded.service(ON | LONG) as service:
        table = guarded.slots()
        guarded.write_targets(listed(2, 3, 4))
        guarded.wait_for(t1="draining")
        kept = guarded.socket.with_name(f"{guarded.socket.name}.holds")
        wait_until(lambda: kept.exists() and '"drains": [["stream-a", 1,' in kept.read_text(), "the drain is kept")
        service.kill()
    with guarded.service(ON | LONG, admitted=4) as service:
        service.wait_for_log("drains of an earlier run go on", targets=1)
        guarded.wait_for(t1="draining", t2="active", t3="active", t4="active")
        with guarded.client() as client:
            status = client.status()
        (drained,) = [each for each in status.targets if each.identifier == 1]
        assert drained.unlisted
        assert drained.deadline is not None
        assert 0 < drained.deadline - status.now < 3600
        assert guarded.slots() == table
        guarded.delete_link("nse-a")
        wait_until(lambda: 1 not in guarded.states(), "its path is lost")
        last = [decision for decision in guarded.decisions() if decision.target.identifier == 1][-1]
        assert last.action is Action.REMOVE
        assert last.cause in ("link_down", "no_link")
        wait_until(lambda: not kept.exists() or '"drains": []' in kept.read_text(), "the drain is forgotten")


def test_a_family_that_is_withdrawn_alone_is_shown(guarded: Guarded) -> None:
    def families(state: str) -> float | None:
        return guarded.metric(f'lbguard_target_families{{family="ipv6",state="{state}",stream="stream-a"}}')

    with guarded.service(ON):
        assert (families("held"), families("withdrawn")) == (0, 0)
        guarded.lb.delete_addresses("nse-a", "fd00:1::1/64")
        wait_until(lambda: families("withdrawn") == 2, "IPv6 of the targets 1 and 2 is withdrawn")
        assert families("held") == 0
        with guarded.client() as client:
            story = client.explain("stream-a/1").story
            (shown,) = client.status().streams
        assert "IPv6 is withdrawn; IPv4 serves." in story
        assert "New IPv6 connections are given to another target at once." in story
        assert [(family.ipv4, family.held, family.withdrawn) for family in shown.families] == [
            (True, 0, 0),
            (False, 0, 2),
        ]


async def test_targets_of_meridios_registry_drain_when_they_are_unregistered(guarded: Guarded) -> None:
    """Stream and identifier are the target; with other addresses it is another one."""
    entries = {i: target(i, *ips_of(i)) for i in TARGETS}
    registry = FakeNsp()
    registry.configure([stream_of_registry("stream-a", 10)], [vip("vip-a", "20.0.0.1/32")])
    registry.put(*entries.values())
    settings = {
        "LBGUARD_SOURCE": "nsp",
        "LBGUARD_TARGETS_FILE": "",
        "LBGUARD_NSP__ADDRESS": await registry.start(f"unix:{guarded.directory}/nsp.sock"),
        "LBGUARD_NSP__TRENCH": "trench-a",
        "LBGUARD_NSP__CONDUIT": "load-balancer",
    }
    loop = asyncio.get_running_loop()

    def in_a_service() -> None:
        with guarded.service(settings | ON | LONG):
            table = guarded.slots()
            loop.call_soon_threadsafe(registry.remove, entries[1])
            guarded.wait_for(t1="draining", t2="active")
            assert guarded.slots() == table
            loop.call_soon_threadsafe(registry.put, entries[1])
            guarded.wait_for(t1="active")
            assert guarded.slots() == table
            loop.call_soon_threadsafe(registry.remove, entries[1])
            guarded.wait_for(t1="draining")
            loop.call_soon_threadsafe(registry.put, target(1, "172.16.1.99", "fd00:1::99"))
            wait_until(lambda: guarded.states()[1] != "draining", "another target has its identifier")
            last = [d for d in guarded.decisions() if d.target.identifier == 1 and d.action is Action.REMOVE][-1]
            assert last.cause == "identifier_used_again"

    try:
        await asyncio.to_thread(in_a_service)
    finally:
        await registry.stop()
