"""From a ping that stays unanswered to the table of the load balancer, over mTLS, and back."""

import asyncio
import signal

import grpc
import pytest

from lbguard.api.gen.nsm.connection import connection_pb2 as nsm_pb
from lbguard.api.gen.v1 import lbguard_pb2 as pb
from lbguard.core.status import TargetStatus
from tests.netns.service.guarded import LINKS, PATIENT, wait_until
from tests.netns.verdicts.conftest import PROXY, Mesh, until

pytestmark = pytest.mark.netns

REPORTER = f"{PROXY}#proxy-1"
OUTDATED = "02:00:00:00:00:99"


async def test_up_is_shown_with_who_said_it_and_what_it_weighs(mesh: Mesh) -> None:
    with mesh.guarded.service(mesh.settings()):
        mesh.start_monitor()
        seen: list[TargetStatus] = []

        def up() -> bool:
            # One answer: between two, a monitor that gets no CPU may let its lease run out, and say UP again later.
            seen[:] = [mesh.target(1)]
            return [path.verdict for path in seen[0].paths] == ["up", "up"]

        await until(up, "an UP that concerns both families of target 1")
        [verdict] = seen[0].paths[0].verdicts
        assert (verdict.reporter, verdict.subject, verdict.weight) == (REPORTER, "connection conn-a", "counts")
        assert verdict.expires_at - verdict.at == pytest.approx(3.0)
        await until(lambda: [v.subject for v in mesh.verdicts(3)] == ["connection conn-b"], "its neighbour's own")
        # The gauges are set from time to time.
        one_stream = {"lbguard_verdict_streams 1.0", "lbguard_verdict_subjects 2.0"}
        await until(
            lambda: one_stream <= set(mesh.guarded.http("/metrics")[1].splitlines()), "one stream, of a reporter"
        )


async def test_a_datapath_that_is_cut_is_held_withdrawn_and_readmitted(mesh: Mesh) -> None:
    with mesh.guarded.service(mesh.settings()):
        mesh.start_monitor()
        await until(lambda: mesh.said(1) == ["up"])
        slots = mesh.guarded.slots()
        mesh.cut()
        await until(lambda: "withdraw" in mesh.actions_of(1) and "withdraw" in mesh.actions_of(2))
        hold, withdraw = (
            next(d for d in mesh.decisions_of(1) if d.action.value == action) for action in ("hold", "withdraw")
        )
        assert (hold.cause, withdraw.cause) == ("verdict_down", "verdict_down")
        assert [evidence.verdict for evidence in hold.evidence] == ["down", "down"]
        assert withdraw.at - hold.at >= 0.7, "its own window, not the one of a missing link"
        await until(lambda: set(mesh.guarded.active()) == {3, 4}, "their slots are with the others")
        others = {slot: mark for slot, mark in slots.items() if mark in (5003, 5004)}
        assert others.items() <= mesh.guarded.slots().items()
        assert "down" in mesh.said(1)
        mesh.mend()
        await until(lambda: mesh.guarded.slots() == slots, "everything as it was")
        assert mesh.guarded.states() == dict.fromkeys((1, 2, 3, 4), "active")


async def test_one_family_that_is_cut_degrades(mesh: Mesh) -> None:
    with mesh.guarded.service(mesh.settings()):
        mesh.start_monitor()
        await until(lambda: mesh.said(1) == ["up"])
        mesh.cut("nse-a", "meta protocol ip6")
        await until(lambda: mesh.said(1) == ["degraded"])
        assert mesh.guarded.states() == dict.fromkeys((1, 2, 3, 4), "active")
        assert mesh.actions_of(1) == ["admit"]


async def test_a_mesh_that_heals_is_waited_for_past_the_window(mesh: Mesh) -> None:
    with mesh.guarded.service(mesh.settings()):
        mesh.start_monitor()
        await until(lambda: mesh.said(1) == ["up"])
        slots = mesh.guarded.slots()
        mesh.nsmgr.update(mesh.told("nse-a", nsm_pb.DOWN))
        mesh.guarded.delete_link("nse-a")
        await until(lambda: mesh.said(1) == ["healing"], "HEALING for as long as the link is away")
        [extended] = [d for d in mesh.decisions_of(1) if d.action.value in ("hold", "revise")][-1:]
        hold = next(d for d in mesh.decisions_of(1) if d.action.value == "hold")
        assert extended.deadline is not None
        assert extended.deadline > hold.at + 5.0, "far past the window of 0.4 s"
        # Well past the plain window by the service's own clock.
        await until(lambda: _now(mesh) > hold.at + 1.5)
        assert mesh.guarded.states()[1] == "held"
        assert mesh.guarded.slots() == slots
        mesh.guarded.make_link("nse-a")
        mesh.address_proxy("nse-a")
        mesh.nsmgr.update(mesh.told("nse-a"))
        await until(lambda: mesh.guarded.states() == dict.fromkeys((1, 2, 3, 4), "active"))
        await until(lambda: mesh.said(1) == ["up"])
        assert mesh.guarded.slots() == slots
        assert "withdraw" not in mesh.actions_of(1)


def _now(mesh: Mesh) -> float:
    with mesh.guarded.client() as client:
        return client.status().now


async def test_a_closed_connection_has_no_say_any_more(mesh: Mesh) -> None:
    with mesh.guarded.service(mesh.settings()) as service:
        mesh.start_monitor()
        await until(lambda: mesh.said(1) == ["up"])
        mesh.nsmgr.delete("conn-a")
        await until(lambda: mesh.said(1) == [], "ENDED leaves nothing")
        before = mesh.guarded.data_path()
        # What was under way when it was closed: the same reporter, the same generation, a later sequence.
        response = await mesh.report("proxy", *(_down("conn-a", generation=1, sequence=n) for n in (10**6, 10**6 + 1)))
        assert response.accepted == 0
        assert [(ignored.index, ignored.reason) for ignored in response.ignored] == [(0, "ended"), (1, "ended")]
        mesh.cut()
        await until(lambda: mesh.said(3) == ["up"])
        mesh.stop_monitor(signal.SIGKILL)
        await until(lambda: mesh.said(3) == [], "the leases of a monitor that was killed run out")
        assert mesh.said(1) == []
        assert mesh.guarded.data_path() == before
        assert [line["action"] for line in service.log("decision")] == ["admit"] * 4


def _down(id: str, *, generation: int, sequence: int) -> pb.Verdict:
    number = LINKS["nse-a"]
    lb_ips = [f"172.16.{number}.1", f"fd00:{number}::1"]
    subject = pb.Subject(connection=pb.ConnectionSubject(id=id, lb_ips=lb_ips))
    return pb.Verdict(
        subject=subject,
        state=pb.VERDICT_STATE_DOWN,
        generation=generation,
        sequence=sequence,
        lease_s=30.0,
    )


async def test_a_reporter_that_lies_is_vetoed_by_neighbors_that_answer(mesh: Mesh) -> None:
    settings = mesh.settings({"LBGUARD_EVIDENCE__VETO_WINDOW": "10s", "LBGUARD_NEIGHBORS__PROBE_INTERVAL": "200ms"})
    with mesh.guarded.service(settings):
        await until(lambda: mesh.target(1).paths[0].neighbor == "reachable")
        await until(lambda: mesh.target(1).paths[1].neighbor == "reachable")
        response = await mesh.report("proxy", _down("conn-a", generation=1, sequence=1))
        assert response.accepted == 1
        await until(lambda: [path.verdict for path in mesh.target(1).paths] == ["down_vetoed", "down_vetoed"])
        assert [verdict.weight for verdict in mesh.verdicts(1)] == ["vetoed"]
        assert mesh.actions_of(1) == ["admit"]


async def test_who_may_not_speak_of_a_subnet_is_refused_and_changes_nothing(mesh: Mesh) -> None:
    with mesh.guarded.service(mesh.settings()):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await mesh.report("stranger", _down("conn-a", generation=1, sequence=1))
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
        assert mesh.said(1) == []


async def test_a_flood_of_one_reporter_does_not_delay_what_the_kernel_says(mesh: Mesh) -> None:
    """Order, not time: the flood goes on until the hold is there, and is not over before."""
    settings = mesh.settings(PATIENT)
    with mesh.guarded.service(settings):
        held = asyncio.Event()
        flooded = [0]

        async def flood(number: int) -> None:
            sequence = 0
            while not held.is_set():
                sequence += 1
                verdicts = [_up(f"flood-{number}-{n}", sequence) for n in range(250)]
                try:
                    flooded[0] += (await mesh.report("proxy", *verdicts, name=f"flood-{number}")).accepted
                except grpc.aio.AioRpcError as error:
                    if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                        raise
                    await asyncio.sleep(0.05)

        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            floods = [group.create_task(flood(number)) for number in range(4)]
            await until(lambda: flooded[0] >= 2000)
            mesh.guarded.delete_link("nse-a")
            await asyncio.to_thread(wait_until, lambda: mesh.guarded.states()[1] == "held")
            assert not any(task.done() for task in floods)
            held.set()
        assert mesh.guarded.states() == {1: "held", 2: "held", 3: "active", 4: "active"}


def _up(id: str, sequence: int) -> pb.Verdict:
    subject = pb.Subject(connection=pb.ConnectionSubject(id=id, peer_ips=["172.16.1.77"]))
    return pb.Verdict(subject=subject, state=pb.VERDICT_STATE_UP, generation=1, sequence=sequence, lease_s=5.0)


async def test_a_new_mac_replaces_exactly_the_entry_of_its_subject(mesh: Mesh) -> None:
    # Nobody else looks after the entries here: no probes, and nothing is held.
    with mesh.guarded.service(mesh.settings({"LBGUARD_NEIGHBORS__PROBE_INTERVAL": "0"})):
        number = LINKS["nse-a"]
        one, other = f"172.16.{number}.11", f"172.16.{number}.12"
        for ip in (one, other):
            mesh.guarded.lb.replace_neighbor(ip, "nse-a", OUTDATED, state="stale")
        await until(lambda: mesh.target(1).paths[0].mac == mesh.target(2).paths[0].mac == OUTDATED)
        mac = mesh.mac_of(f"lb-{number}")
        verdict = pb.Verdict(
            subject=pb.Subject(target_ip=one),
            state=pb.VERDICT_STATE_UP,
            generation=1,
            sequence=1,
            lease_s=30.0,
            new_mac=bytes.fromhex(mac.replace(":", "")),
        )
        assert (await mesh.report("proxy", verdict)).accepted == 1
        await until(lambda: mesh.target(1).paths[0].mac == mac, "the entry has the new address")
        assert mesh.target(2).paths[0].mac == OUTDATED
        assert mesh.actions_of(1) == ["admit"]
