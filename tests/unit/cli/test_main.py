import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from lbguard.cli.main import COMPLETION_VARIABLE, app
from tests.unit.shell import Shell


def test_version(shell: Shell) -> None:
    assert shell("version").out == "lbguard 0.1.0\n"


def test_the_version_is_an_option_too(shell: Shell) -> None:
    assert shell("--version").out == shell("version").out


def test_without_a_command_the_help_is_shown(shell: Shell) -> None:
    outcome = shell()
    assert "Usage: lbguard" in outcome.out + outcome.err


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_a_shell_gets_its_completions(shell: Shell, name: str) -> None:
    script = shell("completion", name)
    assert script.status == 0
    assert COMPLETION_VARIABLE in script.out
    refused = shell("completion", "tcsh")
    assert (refused.status, "there are bash, zsh, fish" in refused.err) == (2, True)


@pytest.mark.parametrize(("words", "wanted"), [("lbguard che", "check-config"), ("lbguard run --ta", "--targets-file")])
def test_the_script_of_bash_completes(tmp_path: Path, words: str, wanted: str) -> None:
    binaries = Path(sys.executable).parent
    script = subprocess.run([binaries / "lbguard", "completion", "bash"], capture_output=True, text=True, check=True)
    (tmp_path / "completion").write_text(script.stdout)
    ask = f"source {tmp_path}/completion; COMP_WORDS=({words}); COMP_CWORD={len(words.split()) - 1}"
    ask += "; _lbguard_completion lbguard; echo ${COMPREPLY[@]}"
    env = {"PATH": f"{binaries}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, env=env, timeout=60, check=True)
    assert wanted in done.stdout.split(), done.stderr


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
    assert re.search(rf"lbguard {command} (-h|--help)", outcome.err)  # by the version of the library
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
