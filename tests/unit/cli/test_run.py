import gc
import json
import re
from pathlib import Path

import pytest

from tests.unit.shell import Shell


def test_check_config_explains_every_value(shell: Shell, targets_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LBGUARD_GRACE__MAX", "20s")
    outcome = shell("check-config", "--set", "grace.window=5s", "--targets-file", str(targets_file))
    assert outcome.status == 0
    rows = {line.split()[0]: line.split() for line in outcome.out.splitlines() if "." in line.split(" ")[0]}
    assert rows["grace.max"][1:2] + rows["grace.max"][3:5] == ["20s", "environment", "LBGUARD_GRACE__MAX"]
    assert rows["grace.window"][1:4] == ["5s", "3s", "flag"]
    assert "freeze.threshold" not in rows, "what is left at its default is not listed"
    assert re.search(r"^\d+ other settings have their default: --all shows them\.$", outcome.out, re.MULTILINE)
    assert outcome.out.startswith("Nothing to warn of.")
    assert len(outcome.out.splitlines()) < 20


def test_check_config_shows_every_setting_on_demand(shell: Shell, targets_file: Path) -> None:
    outcome = shell("check-config", "--all", "--set", "grace.window=5s", "--targets-file", str(targets_file))
    rows = {line.split()[0]: line.split() for line in outcome.out.splitlines() if "." in line.split(" ")[0]}
    assert rows["freeze.threshold"][1:4] == ["0.5", "0.5", "default"]
    assert rows["grace.window"][3] == "flag"
    assert len(rows) > 100


def test_check_config_of_defaults_alone(shell: Shell) -> None:
    out = shell("check-config").out
    assert "SETTING" not in out
    assert re.search(r"^\d+ settings have their default", out, re.MULTILINE)


def test_problems_come_before_the_settings(shell: Shell, targets_file: Path) -> None:
    outcome = shell("check-config", "--targets-file", str(targets_file), "--set", "freeze.threshold=1")
    assert outcome.out.startswith("warning freeze-off")
    assert outcome.out.index("->") < outcome.out.index("SETTING")


def test_check_config_in_json(shell: Shell, targets_file: Path) -> None:
    outcome = shell("check-config", "--json", "--mode", "observe", "--targets-file", str(targets_file))
    settings = {row["name"]: row for row in json.loads(outcome.out)["settings"]}
    assert settings["mode"]["value"] == "observe"
    assert settings["mode"]["origin"] == "flag"
    assert settings["grace.window"]["variable"] == "LBGUARD_GRACE__WINDOW"


def test_warnings_fail_only_when_strict(shell: Shell, targets_file: Path) -> None:
    argv = ("check-config", "--targets-file", str(targets_file), "--set", "freeze.threshold=1")
    assert "warning freeze-off" in shell(*argv).out
    assert shell(*argv).status == 0
    assert shell(*argv, "--strict").status == 1


def test_problems_of_the_targets_file_are_warnings(shell: Shell, tmp_path: Path) -> None:
    outcome = shell("check-config", "--targets-file", str(tmp_path / "none.yaml"), "--strict")
    assert outcome.status == 1
    assert "warning targets-file" in outcome.out


def test_only_files_that_are_read_are_looked_at(shell: Shell, tmp_path: Path) -> None:
    place = ("--set", f"targets_file={tmp_path}/none.yaml")
    registry = ("--set", "source=nsp", "--set", "nsp.trench=a", "--set", "nsp.conduit=b")
    outcome = shell("check-config", *place, *registry)
    assert "warning targets-file:" not in outcome.out
    assert "warning targets-file-not-read" in outcome.out
    connections = tmp_path / "connections.yaml"
    connections.write_text("connections: []\nconnections: []\n")
    outcome = shell("check-config", "--set", f"probe.connections_file={connections}")
    assert "warning connections-file:" in outcome.out
    assert "line 2, column 1: the key connections is given twice" in " ".join(outcome.out.split())


def test_a_second_stream_at_the_default_offset_is_told_a_free_one(shell: Shell, tmp_path: Path) -> None:
    targets = tmp_path / "targets.yaml"
    targets.write_text("streams: [{name: a}, {name: b}]")
    outcome = shell("check-config", "--targets-file", str(targets))
    assert "set identifier_offset of 'b' to 5100" in " ".join(outcome.out.split())


def test_refused_settings_are_one_line_each(shell: Shell) -> None:
    outcome = shell("check-config", "--set", "grace.window=soon", "--set", "grace.windw=1s", "--mode", "off")
    assert outcome.status == 2
    lines = outcome.err.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("lbguard: ") for line in lines)
    assert "Traceback" not in outcome.err


def test_a_flag_without_a_value_is_a_usage_error(shell: Shell) -> None:
    outcome = shell("run", "--set", "grace.window")
    assert outcome.status == 2
    assert "NAME=VALUE" in outcome.err


def test_the_service_does_not_start_where_it_could_not_work(shell: Shell, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    outcome = shell("run", "--mode", "observe", "--set", f"socket={blocked}/x.sock", "--set", "freeze.threshold=1")
    assert outcome.status == 1
    records = {record["id"]: record for record in map(json.loads, outcome.err.splitlines())}
    assert records["freeze-off"]["level"] == "warning"
    assert records["socket_directory"]["level"] == "error"
    assert str(blocked) in records["socket_directory"]["what"]
    assert records["socket_directory"]["remedy"]


def test_garbage_is_collected_again_when_the_service_did_not_start(shell: Shell) -> None:
    assert shell("run", "--mode", "off").status == 2
    assert gc.isenabled()


def test_check_config_names_targets_that_cannot_drain(shell: Shell, tmp_path: Path) -> None:
    targets = tmp_path / "targets.yaml"
    targets.write_text("streams: [{name: a, targets: [{identifier: 7, ips: [10.0.0.1], draining: true}]}]")
    outcome = shell("check-config", "--targets-file", str(targets), "--set", "affinity.mode=off")
    assert "warning draining-without-affinity: flow affinity is off" in " ".join(outcome.out.split())
    outcome = shell("check-config", "--targets-file", str(targets))
    assert "draining-without-affinity" not in outcome.out
