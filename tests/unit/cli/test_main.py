import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from lbguard.cli.main import app
from tests.unit.shell import Shell


def test_version(shell: Shell) -> None:
    assert shell("version").out == "lbguard 0.1.0\n"


COMMANDS = list(typer.main.get_group(app).commands)


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)])
def test_help_teaches_by_examples_and_exit_statuses(shell: Shell, command: list[str]) -> None:
    outcome = shell(*command, "--help")
    assert outcome.status == 0
    assert re.search(rf"(?m)^    (?:\w+=\S+ )*lbguard {' '.join(command)}", outcome.out), "an example on its own line"
    assert re.search(r"(?m)^  Exit status: 0[ .]", outcome.out)
    assert "\\b" not in outcome.out
    assert all(len(line) <= 100 for line in outcome.out.splitlines())


def test_the_list_of_commands_says_whole_sentences(shell: Shell) -> None:
    listed = shell("--help").out.partition("Commands:\n")[2].splitlines()
    assert [line.split()[0] for line in listed] == COMMANDS
    assert all(line.endswith(".") and not line.endswith("...") for line in listed)


@pytest.mark.parametrize("command", COMMANDS)
def test_wrong_usage_ends_with_2_and_points_at_the_help(shell: Shell, command: str) -> None:
    outcome = shell(command, "--no-such-option")
    assert outcome.status == 2
    assert f"lbguard {command} -h" in outcome.err
    assert "Traceback" not in outcome.err


def test_asking_for_the_status_loads_no_service(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from lbguard.cli.main import app, main\n"
        "try:\n"
        f"    main(['status', '--socket', {str(tmp_path / 'none')!r}])\n"
        "except SystemExit:\n"
        "    print('\\n'.join(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "lbguard.api.client" in loaded
    assert not loaded & {
        "lbguard.settings.model",
        "lbguard.service.daemon",
        "lbguard.telemetry.metrics.guard",
        "nftables",
        "yaml",
    }


def test_output_into_a_closed_pipe_is_no_traceback(targets_file: Path) -> None:
    done = subprocess.run(
        f"{sys.executable} -m lbguard check-config --targets-file {targets_file} | true",
        shell=True,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr


def test_a_wrong_outage_is_refused(shell: Shell) -> None:
    outcome = shell("demo", "--outage", "soon")
    assert outcome.status == 2
    assert "500ms, 3s, 2m" in outcome.err


def test_the_scenarios_are_listed(shell: Shell) -> None:
    outcome = shell("demo", "--list")
    assert outcome.status == 0
    assert "lb-link " in outcome.out
