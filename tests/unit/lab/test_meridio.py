import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from lbguard.lab.controller import Column
from lbguard.lab.meridio import LbFacts, MeridioLb, gather_facts, install_program, missing, shell_for_program
from lbguard.lab.target_list import TargetList
from lbguard.lab.traffic import TrafficResult

needs_shell = pytest.mark.skipif(bool(missing()), reason=missing())

LB = """
import json, signal, sys, time, yaml
before = {1, 2}
def say(**r): print(json.dumps({"ts": time.time(), **r}), file=sys.stderr, flush=True)
def reread(*_):
    global before
    with open(sys.argv[1]) as file:
        now = {t["identifier"] for t in yaml.safe_load(file)["streams"][0]["targets"]}
    for i in before - now:
        say(event="removed", identifier=i, out=True, took_s=0.25)
        say(event="decision", action="remove", identifier=i, state_to=None)
    for i in now - before:
        say(event="decision", action="admit", identifier=i, state_to="active")
    before = now
signal.signal(signal.SIGHUP, reread)
for i in before: say(event="decision", action="admit", identifier=i, state_to="active")
say(event="ready")
while True: time.sleep(600)
"""


class HereNamespace:
    """Stands for a namespace: another program takes the load balancer's place, and it runs where the test runs."""

    def __init__(self, targets_file: Path) -> None:
        self.targets_file = targets_file
        self.wanted: list[str] = []

    def command(self, *argv: str) -> list[str]:
        self.wanted = list(argv)
        return [sys.executable, "-c", LB, str(self.targets_file)]


class QuietNfqlb:
    """A packet process without packets."""

    served = False
    search = os.environ["PATH"]

    async def serve(self) -> None:
        self.served = True


def _shell_without_timeout(directory: Path) -> None:
    shell = directory / "sh"
    shell.write_text("#!/bin/false\n")
    shell.chmod(0o755)


def test_busybox_is_preferred_and_a_shell_that_cannot_wait_is_not_taken(tmp_path: Path) -> None:
    _shell_without_timeout(tmp_path)
    assert shell_for_program(str(tmp_path)) == []
    busybox = shutil.which("busybox")
    if busybox is None:
        pytest.skip("busybox is missing: apt-get install busybox")
    (tmp_path / "busybox").symlink_to(busybox)
    assert shell_for_program(str(tmp_path)) == [str(tmp_path / "busybox"), "ash"]


@needs_shell
def test_the_installed_program_passes_other_commands_to_the_next_one_on_the_path(tmp_path: Path) -> None:
    program = install_program(tmp_path / "front")
    real = tmp_path / "real"
    real.mkdir()
    (real / "nfqlb").write_text('#!/bin/sh\necho "real $*"\n')
    (real / "nfqlb").chmod(0o755)
    path = os.pathsep.join([str(program.parent), str(real), os.environ["PATH"]])
    environment = {"PATH": path, "LBGUARD_NFQLB_DIR": str(tmp_path)}
    done = subprocess.run(["nfqlb", "show", "--shm=x"], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "real show --shm=x\n"


def test_facts_are_read_from_the_log_and_from_who_answered_last() -> None:
    records: list[dict[str, Any]] = [
        {"event": "removed", "identifier": 1, "out": True, "took_s": 0.25},
        {"event": "removed", "identifier": 1, "out": False, "took_s": 5.0},
        {"event": "decision", "action": "withdraw", "identifier": 2},
        {"event": "refused", "call": "activate"},
    ]
    early, late = [5] * 20 + [0] * 11, [0] * 25 + [1] * 6
    traffic = TrafficResult(
        started=0.0, ended=3.1, connections=[], flows=[], tcp_bins={"1": early, "2": late}, udp_bins={"3": late}
    )
    assert gather_facts(records, traffic, frozenset({1, 2, 3, 4})) == LbFacts(
        removals_s=(0.25,), stayed=1, withdrawals=1, refused=1, silent=(1, 4)
    )


async def test_the_registry_changes_and_the_load_balancer_follows(tmp_path: Path) -> None:
    targets_file = tmp_path / "targets.yaml"
    targets_file.write_text(yaml.safe_dump({"streams": [{"targets": [{"identifier": 1}, {"identifier": 2}]}]}))
    namespace, nfqlb = HereNamespace(targets_file), QuietNfqlb()
    lb = MeridioLb(Column.WITHDRAW, nfqlb, namespace, targets_file, tmp_path / "m", settings={})  # type: ignore[arg-type]
    await lb.start()
    try:
        assert nfqlb.served
        assert namespace.wanted[1:] == ["-m", "lbguard.lab.stateless_lb", "--targets", str(targets_file)]
        await lb.wait_active(frozenset({1, 2}))
        targets = TargetList(targets_file)
        await targets.remove(1)
        await lb.reread_without(1)
        await targets.add(1)
        await lb.reread_with(1)
        # There is no guard to kill in this column, and the load balancer goes on.
        await lb.kill()
        await lb.check_alive()
    finally:
        await lb.stop()
    changes = [record["event"] for record in lb.records if record["event"] != "ready"]
    assert changes == ["decision", "decision", "removed", "decision", "decision"]
