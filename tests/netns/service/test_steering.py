"""Commands of operators to the real service: drain, hold, withdraw, release, by the command line."""

import json
import os
import subprocess
import sys
import time

import pytest

from lbguard.core.model import Action
from tests.netns.service.guarded import PATIENT, Guarded, wait_until
from tests.netns.service.test_affinity import marks

pytestmark = pytest.mark.netns

ON = {"LBGUARD_AFFINITY__MODE": "incident", "LBGUARD_AFFINITY__LEARN": "0s"}


def lbguard(guarded: Guarded, *argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lbguard", *argv, "--socket", str(guarded.socket)],
        env={**os.environ, "SUDO_USER": "anna"},
        capture_output=True,
        text=True,
        check=False,
    )


def done(guarded: Guarded, *argv: str) -> str:
    ended = lbguard(guarded, *argv)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def refused(guarded: Guarded, *argv: str) -> str:
    ended = lbguard(guarded, *argv)
    assert (ended.returncode, ended.stdout) == (1, "")
    return ended.stderr


def overridden(guarded: Guarded, action: str) -> float | None:
    return guarded.metric(f'lbguard_overrides{{action="{action}",stream="stream-a"}}')


def test_every_target_behind_a_link_is_drained_and_released(guarded: Guarded) -> None:
    with guarded.service(ON) as service:
        table = guarded.slots()
        said = done(guarded, "drain", "--link", "nse-a", "--for", "30m", "--reason", "kernel update")
        assert "stream-a/1 gets no new connections for 30m" in said
        assert "stream-a/2 gets no new connections for 30m" in said
        guarded.wait_for(t1="draining", t2="draining", t3="active", t4="active")
        wait_until(lambda: marks(guarded, "avoid_4") == marks(guarded, "avoid_6") == {5001, 5002})
        assert guarded.slots() == table
        wait_until(lambda: overridden(guarded, "drain") == 2, "the gauge")
        shown = json.loads(done(guarded, "status", "--json"))
        [override] = [t["override"] for t in shown["targets"] if t["identifier"] == 1]
        assert (override["action"], override["who"], override["reason"]) == ("drain", "anna", "kernel update")
        assert 1700 < override["ends_in_s"] <= 1800
        assert "drain until" in done(guarded, "status")
        story = done(guarded, "explain", "stream-a/1")
        assert "anna drains it by hand" in story
        assert "kernel update" in story
        line = service.wait_for_log("decision", action="override", identifier=1)
        assert line["override"]["who"] == "anna"
        assert "override stream-a/1: manual_drain for 30m by anna (kernel update)" in done(guarded, "events")
        done(guarded, "release", "--link", "nse-a")
        guarded.wait_for(t1="active", t2="active")
        wait_until(lambda: not marks(guarded, "avoid_4"))
        wait_until(lambda: overridden(guarded, "drain") == 0, "the gauge")
        assert "No target is under a command." in done(guarded, "release", "--all")


def test_a_hold_outlasts_a_lost_link_that_is_away_for_longer_than_the_window(guarded: Guarded) -> None:
    with guarded.service() as service:
        slots = guarded.slots()
        done(guarded, "hold", "stream-a/1", "172.16.1.12", "--for", "1h")
        guarded.delete_link("nse-a")
        service.wait_for_log("decision", action="keep", identifier=1)
        service.wait_for_log("decision", action="keep", identifier=2)
        time.sleep(1.0)  # three more windows
        assert guarded.slots() == slots
        assert guarded.states()[1] == "held"
        guarded.make_link("nse-a")
        guarded.wait_for(t1="active", t2="active")
        assert not [d for d in guarded.decisions() if d.action is Action.WITHDRAW]


def test_a_hold_ends_with_its_time(guarded: Guarded) -> None:
    with guarded.service():
        done(guarded, "hold", "1", "--for", "3s")
        guarded.delete_link("nse-a")
        guarded.wait_for(t1="held", t2="withdrawn")
        guarded.wait_for(t1="withdrawn")
        last = [d for d in guarded.decisions() if d.target.identifier == 1][-2:]
        assert [(d.action, d.cause) for d in last] == [
            (Action.RELEASE, "manual_expired"),
            (Action.WITHDRAW, "no_link"),
        ]


def test_a_withdrawn_target_is_out_of_the_table_until_it_is_released_over_a_kill(guarded: Guarded) -> None:
    kept = guarded.socket.with_name(f"{guarded.socket.name}.overrides")
    with guarded.service(PATIENT) as service:
        slots = guarded.slots()
        done(guarded, "withdraw", "172.16.1.11", "--for", "1h", "--by", "bert")
        service.kill()
        assert kept.exists(), "it is written before the command is answered"
        assert kept.stat().st_mode & 0o777 == 0o600
    with guarded.service(PATIENT, admitted=3) as service:
        service.wait_for_log("overrides of an earlier run go on", targets=1)
        wait_until(lambda: set(guarded.active()) == {2, 3, 4}, "it is out of the table")
        assert "bert withdrew it by hand" in done(guarded, "explain", "1")
        assert "is released" in done(guarded, "release", "1")
        service.kill()
        assert not kept.exists(), "the release is written before the command is answered"
    with guarded.service(PATIENT, admitted=4):
        assert guarded.slots() == slots


def test_a_drain_goes_on_after_a_kill(guarded: Guarded) -> None:
    with guarded.service(ON) as service:
        done(guarded, "drain", "1")
        service.kill()
    with guarded.service(ON, admitted=4):
        guarded.wait_for(t1="draining")
        wait_until(lambda: marks(guarded, "avoid_4") == {5001})
        done(guarded, "release", "1")
        guarded.wait_for(t1="active")


def test_with_commands_off_an_earlier_runs_end_and_new_ones_are_refused(guarded: Guarded) -> None:
    with guarded.service() as service:
        done(guarded, "withdraw", "1")
        wait_until(lambda: set(guarded.active()) == {2, 3, 4}, "it is out of the table")
        service.kill()
    with guarded.service({"LBGUARD_CONTROL__ENABLED": "false"}, admitted=4):
        assert "control.enabled" in refused(guarded, "withdraw", "1")


def test_no_command_empties_a_stream_without_force(guarded: Guarded) -> None:
    with guarded.service():
        slots = guarded.slots()
        said = refused(guarded, "withdraw", "--stream", "stream-a")
        assert "stream-a: left no target" in said
        assert "--force" in said
        assert guarded.slots() == slots
        done(guarded, "withdraw", "1", "2", "3")
        assert "left 3 withdrawn" in refused(guarded, "withdraw", "4")
        done(guarded, "withdraw", "4", "--force")
        wait_until(lambda: not guarded.active(), "the table is empty")
        wait_until(lambda: guarded.metric('lbguard_stream_available{stream="stream-a"}') == 0)
        done(guarded, "release", "--all")
        wait_until(lambda: guarded.slots() == slots, "the table as it was")


@pytest.mark.parametrize("mode", ["observe", "companion"])
def test_where_nothing_is_carried_out_commands_are_refused(guarded: Guarded, mode: str) -> None:
    process = guarded.process({"LBGUARD_MODE": mode})
    with process:
        process.wait_until_ready()
        assert "mode=enforce" in refused(guarded, "withdraw", "1")


def test_a_drain_without_affinity_is_refused(guarded: Guarded) -> None:
    with guarded.service({"LBGUARD_AFFINITY__MODE": "off"}):
        assert "affinity.mode=incident" in refused(guarded, "drain", "1")
