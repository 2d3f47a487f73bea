"""The real service with source kubernetes, against a model of the API server in its namespace."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from lbguard.core.model import Action
from tests.fakes.kubernetes_api import FakeKubernetesApi, Object, endpoint, group_slice, member, service_slice
from tests.netns.service.guarded import LIMIT_S, PATIENT, TARGETS, Guarded, Process, ips_of, wait_until

pytestmark = pytest.mark.netns

SERVICES = {
    "LBGUARD_SOURCE": "kubernetes",
    "LBGUARD_TARGETS_FILE": "",
    "LBGUARD_KUBERNETES__SERVICES": "stream-a",
    "LBGUARD_KUBERNETES__NAMESPACE": "default",
    "LBGUARD_KUBERNETES__MAX_TARGETS": "10",
    "LBGUARD_KUBERNETES__VIPS": "stream-a=20.0.0.1/32,stream-a=2000::1/128",
}
GATEWAY = {**SERVICES, "LBGUARD_KUBERNETES__SERVICES": "", "LBGUARD_KUBERNETES__GATEWAY": "gateway-a"}
DRAINS = {"LBGUARD_DRAIN__WINDOW": "1h", "LBGUARD_DRAIN__IDLE": "1h"}
QUICK = {"LBGUARD_AFFINITY__LEARN": "0s"}

Do = Callable[[Coroutine[Any, Any, object]], None]
"""Runs something in the thread of the model, and waits for it."""


def slices(*ready: int, not_ready: tuple[int, ...] = ()) -> tuple[Object, Object]:
    """Return the two EndpointSlices of a dual-stack Service."""
    pods = sorted({*ready, *not_ready})
    by_family = (
        [endpoint(f"pod-{number}", ips_of(number)[index], ready=number in ready) for number in pods] for index in (0, 1)
    )
    ipv4, ipv6 = (
        service_slice("stream-a", *endpoints, family=family)
        for family, endpoints in zip(("IPv4", "IPv6"), by_family, strict=True)
    )
    return ipv4, ipv6


async def against(
    guarded: Guarded, api: FakeKubernetesApi, settings: dict[str, str], body: Callable[[Process, Do], None]
) -> None:
    """Run a service that has admitted all targets of the model, and a body beside it in a thread."""
    url = await api.start(guarded.lb.entered())
    loop = asyncio.get_running_loop()

    def do(what: Coroutine[Any, Any, object]) -> None:
        asyncio.run_coroutine_threadsafe(what, loop).result(LIMIT_S)

    def in_a_thread() -> None:
        with guarded.service({**settings, **QUICK, "LBGUARD_KUBERNETES__URL": url}) as service:
            body(service, do)

    try:
        await asyncio.to_thread(in_a_thread)
    finally:
        await api.stop()


async def test_drained_held_left_alone_and_brought_up_to_date(guarded: Guarded) -> None:
    """An endpoint that is not ready drains; a broken path holds; without the API nothing changes."""
    api = FakeKubernetesApi()
    await api.put(*slices(*TARGETS))

    def body(service: Process, do: Do) -> None:
        assert {target: guarded.gateways(target) for target in TARGETS} == {
            target: set(ips_of(target)) for target in TARGETS
        }
        table = guarded.slots()
        do(api.put(*slices(2, 3, 4, not_ready=(1,))))
        guarded.wait_for(t1="draining", t2="active")
        assert guarded.slots() == table
        do(api.put(*slices(*TARGETS)))
        guarded.wait_for(t1="active")
        guarded.delete_link("nse-b")
        guarded.wait_for(t3="held", t4="held")
        do(api.stop())
        service.wait_for_log("targets cannot be read: the last list stays in force")
        wait_until(lambda: guarded.metric("lbguard_source_ok") == 0, "the loss is counted")
        assert guarded.metric("lbguard_source_lost_timestamp_seconds") == pytest.approx(time.time(), abs=LIMIT_S)
        with guarded.client() as client:
            status = client.status()
        assert not status.source_ok
        assert "API server" in status.source_reason
        assert "since" in status.source_reason
        assert guarded.slots() == table
        assert guarded.states() == {1: "active", 2: "active", 3: "held", 4: "held"}
        guarded.make_link("nse-b")
        guarded.wait_for(t3="active", t4="active")
        do(api.put(*slices(2, 3, 4)))
        do(api.start(guarded.lb.entered()))
        guarded.wait_for(t1="draining")
        assert guarded.slots() == table
        wait_until(lambda: guarded.metric("lbguard_source_ok") == 1)
        assert (guarded.metric("lbguard_source_sessions_total"), guarded.metric("lbguard_source_losses_total")) == (
            2,
            1,
        )
        assert guarded.http("/readyz")[0] == 200

    await against(guarded, api, {**SERVICES, **PATIENT, **DRAINS}, body)


async def test_identifiers_outlast_a_crash_and_an_absent_api(guarded: Guarded) -> None:
    api = FakeKubernetesApi()
    await api.put(*slices(*TARGETS))

    def body(service: Process, do: Do) -> None:
        table = guarded.slots()
        service.kill()
        do(api.stop())
        settings = {**SERVICES, **QUICK, "LBGUARD_KUBERNETES__URL": api.url}
        with guarded.service(settings) as again:
            again.wait_for_log("the API server does not answer: the list of the earlier run is served")
            assert guarded.slots() == table
            assert guarded.states() == dict.fromkeys(TARGETS, "active")
            assert not [decision for decision in guarded.decisions() if decision.action is not Action.ADOPT]
            # One leaves, and what comes in its place gets an identifier of its own.
            do(api.put(*slices(2, 3, 4)))
            do(api.start(guarded.lb.entered()))
            wait_until(lambda: guarded.states().keys() == {2, 3, 4}, "the target that left is removed")

    await against(guarded, api, SERVICES, body)


async def test_slices_of_meridio_2_with_identifiers_from_0(guarded: Guarded) -> None:
    api = FakeKubernetesApi()
    members = {number: member(f"pod-{number}", number - 1, *ips_of(number)) for number in TARGETS}
    await api.put(group_slice("stream-a", *members.values()))

    def body(service: Process, do: Do) -> None:
        with guarded.client() as client:
            marks = {target.identifier: target.mark for target in client.status().targets}
        assert marks == {0: 5000, 1: 5001, 2: 5002, 3: 5003}
        not_ready = {**members, 1: member("pod-1", 0, *ips_of(1), ready=False)}
        do(api.put(group_slice("stream-a", *not_ready.values())))
        guarded.wait_for(t0="draining", t1="active")
        twice = {**members, 2: member("pod-2", 0, *ips_of(2))}
        do(api.put(group_slice("stream-a", *twice.values())))
        line = service.wait_for_log("entry of the API server skipped", reason="duplicate_identifier")
        assert "pod-2" in line["what"]
        guarded.wait_for(t0="active", t1="active", t2="active", t3="active")

    await against(guarded, api, GATEWAY, body)
