"""Parts that fail: the service goes on without them, or ends and says so; it is never half dead."""

import os
import sys
from pathlib import Path

import pytest

from tests.netns.service.guarded import PATIENT, Guarded, Process, ips_of, stream, targets_yaml, wait_until

pytestmark = pytest.mark.netns


def faulty(guarded: Guarded, fault: str, settings: dict[str, str]) -> Process:
    process = guarded.process(settings)
    process.command = (sys.executable, "-m", "tests.netns.service.faulty", fault)
    return process


def test_a_part_that_fails_unexpectedly_ends_the_service(guarded: Guarded) -> None:
    process = faulty(guarded, "unexpected", {"LBGUARD_WITHDRAW_ON_EXIT": "true"})
    process.start()
    assert process.wait_for_end() == 1
    [line] = process.log("a part of the service failed")
    assert line["level"] == "critical"
    assert "ValueError: a fault of the program" in line["exception"]
    assert process.log("stopped")
    assert not guarded.socket.exists()
    # Fail static: what was programmed stays, whatever withdraw_on_exit says of an orderly end.
    assert len(guarded.rules()) == 8
    assert guarded.gateways(1) == set(ips_of(1))


@pytest.mark.parametrize("fault", ["hang", "stuck"])
def test_a_distributor_that_hangs_delays_no_repair_and_no_stop(guarded: Guarded, fault: str) -> None:
    with faulty(guarded, fault, PATIENT) as service:
        service.wait_until_ready()
        guarded.wait_for(t1="active", t2="active", t3="active", t4="active")
        for _ in range(2):
            guarded.delete_link("nse-a")
            guarded.wait_for(t1="held", t2="held")
            guarded.make_link("nse-a")
            guarded.wait_for(t1="active", t2="active")
            assert guarded.gateways(1) == set(ips_of(1))
        assert guarded.http("/healthz")[0] == 200
        assert service.terminate() == 0
        assert service.log("stopped")


def test_a_refused_commit_is_tried_again(guarded: Guarded) -> None:
    with faulty(guarded, "commit", {}) as service:
        service.wait_until_ready()
        guarded.delete_link("nse-a")
        service.wait_for_log("distributor failed", reason="commit refused")
        guarded.wait_for(t1="withdrawn", t2="withdrawn")
        guarded.make_link("nse-a")
        guarded.wait_for(t1="active", t2="active")
        wait_until(
            lambda: guarded.metric('lbguard_commit_errors_total{stream="stream-a"}') == 1, "the refused commit counted"
        )


def test_no_rule_of_a_leftover_goes_while_packets_may_still_get_its_mark(guarded: Guarded) -> None:
    other = stream("stream-b", 1, 3, identifier_offset=6000, vips=["20.0.0.2/32"])
    with guarded.service(targets=targets_yaml(stream("stream-a", 1, 2, 3, 4), other)) as service:
        service.wait_until_admitted(6)
        wait_until(lambda: len(guarded.rules()) == 12, "all rules")
        service.kill()
    guarded.write_targets(targets_yaml())
    with faulty(guarded, "prune-first", {"LBGUARD_KERNEL__RECONCILE_INTERVAL": "0s"}) as service:
        service.wait_for_log("leftovers not removed", reason="prune refused")
        service.wait_until_ready()
        guarded.wait_for(t1="active", t2="active", t3="active", t4="active")
        assert len(guarded.rules()) == 12
        assert {route.table for route in guarded.routes()} > {6001, 6003}
        # The next full view of the kernel asks for it again.
        service.hang_up()
        wait_until(lambda: len(guarded.rules()) == 8, "the rules of stream-b gone")
        wait_until(lambda: not {6001, 6003} & {route.table for route in guarded.routes()}, "its routes gone")


def test_stopped_before_it_was_ready(guarded: Guarded) -> None:
    process = guarded.process(targets="")
    guarded.targets_path.unlink()
    process.start()
    process.wait_for_log("started")
    assert process.terminate() == 0
    assert process.log("stopped")
    assert not guarded.socket.exists()


def with_standard_error(guarded: Guarded, where: str) -> Process:
    process = guarded.process(PATIENT)
    process.command = ("sh", "-c", f'exec "$0" -m lbguard run 2>{where}', sys.executable)
    return process


def test_a_closed_standard_error_keeps_nothing_from_being_served(guarded: Guarded) -> None:
    with with_standard_error(guarded, "&-") as service:
        wait_until(guarded.socket.exists, "the socket")
        guarded.wait_for(t1="active", t2="active", t3="active", t4="active")
        assert service.terminate() == 0


def test_a_log_that_nobody_reads_delays_no_reaction_and_no_stop(guarded: Guarded, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    held_open = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)
    for piece in (b"x" * 4096, b"x"):
        while True:
            try:
                os.write(held_open, piece)
            except BlockingIOError:
                break
    with with_standard_error(guarded, str(pipe)) as service:
        wait_until(guarded.socket.exists, "the socket")
        guarded.wait_for(t1="active", t2="active", t3="active", t4="active")
        guarded.delete_link("nse-a")
        guarded.wait_for(t1="held", t2="held")
        assert service.terminate() == 0
    os.close(held_open)


def test_a_socket_that_is_taken_away_comes_back_and_what_is_in_its_way_is_named(guarded: Guarded) -> None:
    with guarded.service() as service:
        guarded.socket.unlink()
        service.wait_for_log("socket was taken away: served anew")
        guarded.wait_for(t1="active")
        guarded.socket.unlink()
        guarded.socket.write_text("somebody's file")
        line = service.wait_for_log("socket not served; trying again")
        assert str(guarded.socket) in line["reason"]
        wait_until(lambda: "socket_not_served" in guarded.http("/readyz")[1], "readiness says so")
        assert guarded.http("/readyz")[0] == 503
        assert guarded.http("/healthz")[0] == 200
        assert guarded.socket.read_text() == "somebody's file"
        guarded.socket.unlink()
        wait_until(lambda: guarded.http("/readyz")[0] == 200, "ready again")
        guarded.wait_for(t1="active")
        wait_until(lambda: guarded.metric('lbguard_not_ready{reason="socket_not_served"}') == 0, "the metric follows")


def test_what_is_in_the_way_of_the_frontends_socket_keeps_nothing_else_from_being_served(
    guarded: Guarded, tmp_path: Path
) -> None:
    path = tmp_path / "meridio" / "lb.sock"
    path.mkdir(parents=True)
    with guarded.process({"LBGUARD_AVAILABILITY__SOCKET": str(path)}) as service:
        service.wait_for_log("socket not served; trying again")
        guarded.wait_for(t1="active", t2="active", t3="active", t4="active")
        wait_until(lambda: f"availability.socket = {path}" in guarded.http("/readyz")[1], "readiness says so")
        path.rmdir()
        wait_until(lambda: guarded.http("/readyz")[0] == 200, "ready")
        assert path.is_socket()
