"""The real service takes another settings file over while it runs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.netns.service.guarded import Guarded, wait_until

pytestmark = pytest.mark.netns

PATIENT = "grace: {window: 1h, max: 1h}\nfreeze: {threshold: 1}\n"


def replace_file(path: Path, text: str) -> None:
    """Put another file in place, as an operator and a ConfigMap do."""
    beside = path.with_suffix(".new")
    beside.write_text(text)
    beside.rename(path)


def check_config(guarded: Guarded, path: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lbguard", "check-config", "--diff", "--config", str(path)]
    return subprocess.run(
        [*command, "--socket", str(guarded.socket), *more], capture_output=True, text=True, check=False
    )


def printed(guarded: Guarded, *command: str) -> str:
    """Return what a command prints, without the line breaks of a narrow terminal."""
    words = [sys.executable, "-m", "lbguard", *command, "--socket", str(guarded.socket)]
    return " ".join(subprocess.run(words, capture_output=True, text=True, check=True).stdout.split())


def test_a_shorter_window_ends_a_hold_that_runs(guarded: Guarded) -> None:
    with guarded.service(config=PATIENT) as service:
        guarded.delete_link("nse-a")
        guarded.wait_for(t1="held", t2="held")
        replace_file(guarded.config_path, "grace: {window: 300ms, max: 1h}\nfreeze: {threshold: 1}\n")
        guarded.wait_for(t1="withdrawn", t2="withdrawn", t3="active", t4="active")
        changed = service.wait_for_log("setting changed", setting="grace.window")
        assert (changed["before"], changed["value"]) == ("60m", "300ms")
        wait_until(lambda: guarded.metric('lbguard_config_reload_total{outcome="applied"}') == 1, "the metric")


def test_a_bad_file_changes_nothing_and_is_told(guarded: Guarded) -> None:
    with guarded.service(config=PATIENT) as service:
        good_at = guarded.metric("lbguard_config_last_good_timestamp_seconds")
        guarded.delete_link("nse-a")
        guarded.wait_for(t1="held")
        replace_file(guarded.config_path, "grace: {window: 300ms, max: 1h}\nfreeze: {threshold: 7}\n")
        refused = service.wait_for_log("settings file refused: the settings in force stay")
        assert "freeze.threshold = 7" in refused["reason"]
        assert guarded.metric("lbguard_config_refused") == 1
        assert guarded.states()[1] == "held"
        shown = printed(guarded, "status")
        assert "SETTINGS FILE REFUSED for " in shown
        assert "freeze.threshold = 7" in shown
        assert "A restart of lbguard would fail" in shown
        assert "SETTINGS FILE REFUSED for " in printed(guarded, "top", "--once")
        replace_file(guarded.config_path, PATIENT)
        wait_until(lambda: guarded.metric("lbguard_config_refused") == 0, "a valid file again")
        assert good_at is not None
        assert (guarded.metric("lbguard_config_last_good_timestamp_seconds") or 0.0) > good_at
        assert service.log("setting changed") == []


def test_what_needs_a_restart_is_named(guarded: Guarded) -> None:
    with guarded.service(config=PATIENT) as service:
        other = guarded.directory / "other.yaml"
        other.write_text(PATIENT + "log: {level: debug}\nmetrics: {listen: ':9999'}\nkernel: {inbox_limit: 70000}\n")
        answer = check_config(guarded, other)
        assert answer.returncode == 1, answer.stderr
        # The environment of the service is stronger than the file: metrics.listen does not change.
        assert [line.split() for line in answer.stdout.splitlines()] == [
            ["log.level", "info", "->", "debug", "live"],
            ["kernel.inbox_limit", "65536", "->", "70000", "restart"],
            ["1", "of", "2", "need", "a", "restart", "of", "lbguard"],
        ]
        replace_file(guarded.config_path, other.read_text())
        service.wait_for_log("setting changes with the next restart", setting="kernel.inbox_limit", value="70000")
        service.wait_for_log("setting changed", setting="log.level")
        assert guarded.metric("lbguard_config_restart_needed") == 1
        answer = check_config(guarded, other, "--json")
        assert [row["name"] for row in json.loads(answer.stdout)] == ["kernel.inbox_limit"]
        assert check_config(guarded, guarded.config_path).returncode == 1
        other.write_text(PATIENT + "log: {level: debug}\n")
        same = check_config(guarded, other)
        assert (same.returncode, same.stdout[:13]) == (0, "no difference")
        other.write_text("grace: {window: 2h}")
        refused = check_config(guarded, other)
        assert refused.returncode == 2
        assert "grace.window = '2h'" in refused.stderr


def test_a_hang_up_reads_the_file_at_once(guarded: Guarded) -> None:
    with guarded.service(config=PATIENT) as service:
        # Written in place a moment ago, a file is complete only after a pause.
        guarded.config_path.write_text("damping: {step: 5s}\n" + PATIENT)
        service.hang_up()
        service.wait_for_log("setting changed", setting="damping.step", value="5s")
