"""The program that stands before nfqlb in Meridio's container, under busybox ash: whatever happens, nfqlb is run."""

import contextlib
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import pytest

from lbguard.sources.interposer.files import MISSED_MAX, SharedFiles
from tests.fakes.interposed import MISSING, PROGRAM, Interposed, make_teller, told

pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)

ACTIVATE = ("activate", "--index=3", "--shm=tshm-a", "5004")
TOLD = "[activate][--index=3][--shm=tshm-a][5004]"
LINE = re.compile(rb"1 ([0-9a-f-]{36}) (.*)")
LIMIT_S = 60.0


class Guard:
    """Answers what it is asked as a test says: with a text, or (None) not at all."""

    def __init__(self, shared: Path, answer: Callable[[str], str | None]) -> None:
        self.asked: list[str] = []
        self._answer = answer
        self.shared = SharedFiles(shared)
        self._answers, self.missed, self.fifo = self.shared.answers, self.shared.missed, self.shared.requests
        assert self.shared.put_right(self.fifo.open)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stall()
        self.fifo.close()
        self.shared.close()

    def stall(self) -> None:
        """Stop reading; the FIFO stays open."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _work(self) -> None:
        while not self._stop.wait(0.001):
            for line in self.fifo.read():
                match = LINE.fullmatch(line)
                assert match is not None, line
                way_back = self._answers.open(match[1].decode())
                text = self._answer(match[2].decode())
                self.asked.append(match[2].decode())
                if way_back is not None and text is not None:
                    self._answers.send(way_back, text.encode() + b"\n")
                elif way_back is not None:
                    os.close(way_back)

    def take_missed(self) -> list[str]:
        lines: list[bytes] = []
        assert self.missed.read(lines.append)
        return [line.decode() for line in lines]


@pytest.fixture
def container(tmp_path: Path) -> Interposed:
    return Interposed(tmp_path, make_teller(tmp_path / "real"))


@pytest.fixture
def obliging(container: Interposed) -> Iterator[Guard]:
    with Guard(container.shared, lambda _: "1 done") as guard:
        yield guard


def missed(container: Interposed) -> list[str]:
    return (container.shared / "missed").read_text().splitlines()


def fill(descriptor: int) -> None:
    """Write until the pipe takes no more."""
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(descriptor, b"x" * 4096)


def left_behind(container: Interposed) -> list[str]:
    """Return the FIFOs of callers, and their claims of offers."""
    claims = [path.name for path in (container.shared / "offers").iterdir() if path.name.startswith(".")]
    return claims + [path.name for path in (container.shared / "answers").iterdir()]


def offered(container: Interposed) -> int:
    return sum(not path.name.startswith(".") for path in (container.shared / "offers").iterdir())


def test_it_is_plain_posix_shell_without_eval() -> None:
    text = PROGRAM.read_text()
    assert text.startswith("#!/bin/sh\n")
    assert PROGRAM.stat().st_mode & 0o777 == 0o755
    code = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    assert not any(re.search(r"\beval\b|\[\[|\bfunction\b|\blocal\b|`|<\(|\bsource\b", line) for line in code)


def test_answers(container: Interposed) -> None:
    answers = {"init": "1 pass", "activate": "1 done", "deactivate": "1 fail no $(route) * here", "delete": "1 pass"}
    with Guard(container.shared, lambda line: answers[line.split()[0]]) as guard:
        assert container.run(*ACTIVATE) == (0, "")
        assert container.run("deactivate", "--index=3", "--shm=tshm-a") == (1, "no $(route) * here\n")
        assert container.run("init", "--ownfw=0", "--shm=tshm-a", "--M=10000", "--N=100") == (0, "real init\n")
        assert container.run("delete", "--shm=tshm-a") == (0, "real delete\n")
        assert guard.asked == [
            "activate --index=3 --shm=tshm-a 5004",
            "deactivate --index=3 --shm=tshm-a",
            "init --ownfw=0 --shm=tshm-a --M=10000 --N=100",
            "delete --shm=tshm-a",
        ]
    assert told(container.real) == ["[init][--ownfw=0][--shm=tshm-a][--M=10000][--N=100]", "[delete][--shm=tshm-a]"]
    assert missed(container) == []
    assert left_behind(container) == []


def test_offers_are_used_first(container: Interposed, obliging: Guard) -> None:
    ready = offered(container)
    assert ready == 8
    for number in range(1, ready + 3):
        assert container.run(*ACTIVATE) == (0, "")
        assert offered(container) == max(0, ready - number)
        assert left_behind(container) == []
    assert len(obliging.asked) == ready + 2


@pytest.mark.parametrize("taken", ["file", "link", "fifo", "directory"])
def test_an_offer_that_another_caller_has_claimed_is_left_to_it(
    container: Interposed, obliging: Guard, taken: str
) -> None:
    first = min((container.shared / "offers").iterdir())
    claim = first.with_name(f".{first.name}")
    if taken == "link":
        claim.symlink_to("/nowhere")
    elif taken == "fifo":
        os.mkfifo(claim)
    elif taken == "directory":
        claim.mkdir()
    else:
        claim.touch()
    assert container.run(*ACTIVATE) == (0, "")
    assert first.exists()
    assert os.path.lexists(claim)
    assert offered(container) == 7


@pytest.mark.parametrize("answer", ["", "1", "2 done", "1 donee", "done", "1 fail", "1 done; echo hello"])
def test_what_is_no_answer_is_none(container: Interposed, answer: str) -> None:
    with Guard(container.shared, lambda _: answer):
        assert container.run(*ACTIVATE) == (0, "real activate\n")
    assert missed(container) == ["1 activate --index=3 --shm=tshm-a 5004"]
    assert left_behind(container) == []


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("flowlb", "--queue=0:3", "--promiscuous_ping"),
        ("show", "--shm=tshm-a"),
        ("flow-set", "--name=a-b", "--dsts=20.0.0.1/32,2000::1/128", "--match=tcp[2:2]&0xff00 = 0x5000"),
        ("lose",),
        ("ACTIVATE",),
        ("activate ",),
        ("",),
        ("--help", "activate"),
    ],
)
def test_other_commands_go_straight_through(container: Interposed, obliging: Guard, arguments: tuple[str, ...]) -> None:
    status, _ = container.run(*arguments)
    assert status == (7 if arguments == ("lose",) else 0)
    assert told(container.real) == ["".join(f"[{word}]" for word in arguments)]
    assert obliging.asked == []


HOSTILE = [
    "$(touch {bad})",
    "`touch {bad}`",
    "; touch {bad} ;",
    "a\ntouch {bad}",
    "a\n1 00000000-0000-0000-0000-000000000000 delete --shm=tshm-a",
    "../../../{bad}",
    "--shm=tshm-../../x",
    "--shm=tshm-a b",
    "*",
    "~root",
    "'\"\\'",
    "\t",
    "",
    "\x01\x7f",
    "tshm-ä",
    "${{IFS}}",
    "--shm=" + "a" * 401,
    "x" * 120_000,
]


@pytest.mark.parametrize("word", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_arguments_reach_the_real_program_as_they_are_and_nobody_else(
    container: Interposed, obliging: Guard, tmp_path: Path, word: str
) -> None:
    bad = tmp_path / "bad"
    arguments = ("activate", "--index=3", word.format(bad=bad), "5004")
    assert container.run(*arguments) == (0, "real activate\n")
    assert told(container.real) == ["".join(f"[{each}]" for each in arguments)]
    assert obliging.asked == []
    assert not bad.exists()
    assert missed(container) == []


def test_no_directory(container: Interposed, tmp_path: Path) -> None:
    for directory in ("", "/nowhere", str(tmp_path / "a b $(x)"), str(container.real)):
        assert container.run(*ACTIVATE, LBGUARD_NFQLB_DIR=directory) == (0, "real activate\n")
    assert told(container.real) == [TOLD] * 4


def make_regular(path: Path) -> None:
    path.unlink()
    path.write_text("")


def make_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def make_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def remove_directory(path: Path) -> None:
    path.rmdir()


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("requests", make_regular),
        ("requests", make_directory),
        ("missed", make_directory),
        ("missed", make_fifo),
        ("missed", Path.unlink),
        ("answers", remove_directory),
    ],
)
def test_a_directory_that_is_not_as_it_should_be(
    container: Interposed, name: str, spoil: Callable[[Path], None]
) -> None:
    with Guard(container.shared, lambda _: None) as guard:
        guard.stall()
        spoil(container.shared / name)
        assert container.run(*ACTIVATE) == (0, "real activate\n")
        assert told(container.real) == [TOLD]
        if name == "requests" and (container.shared / name).is_dir():
            (container.shared / name).rmdir()


@pytest.mark.parametrize("name", ["requests", "answers", "missed"])
def test_a_link_in_the_directory_is_not_followed(container: Interposed, tmp_path: Path, name: str) -> None:
    victim = tmp_path / "victim"
    with Guard(container.shared, lambda _: "1 done") as guard:
        if name == "missed":
            guard.stall()
            guard.fifo.close()
        (container.shared / name).rename(victim)
        (container.shared / name).symlink_to(victim)
        before = victim.stat().st_mtime_ns
        assert container.run(*ACTIVATE) == (0, "real activate\n")
        assert told(container.real) == [TOLD]
        assert guard.asked == []
        assert victim.stat().st_mtime_ns == before


def test_a_guard_that_is_gone(container: Interposed, obliging: Guard) -> None:
    obliging.stall()
    os.close(obliging.fifo.descriptor)
    obliging.fifo.descriptor = -1
    assert container.run(*ACTIVATE) == (0, "real activate\n")
    assert container.run(*ACTIVATE) == (0, "real activate\n")
    assert told(container.real) == [TOLD] * 2
    assert obliging.take_missed() == ["1 activate --index=3 --shm=tshm-a 5004"] * 2
    assert left_behind(container) == []


def test_a_guard_that_hangs_is_asked_once_until_it_has_caught_up(container: Interposed, obliging: Guard) -> None:
    obliging.stall()
    for _ in range(3):
        assert container.run(*ACTIVATE) == (0, "real activate\n")
    assert len([line for line in obliging.fifo.read() if LINE.fullmatch(line)]) == 1
    assert len(obliging.take_missed()) == 3
    assert container.run(*ACTIVATE) == (0, "real activate\n")
    assert len([line for line in obliging.fifo.read() if LINE.fullmatch(line)]) == 1


def set_limits(container: Interposed, gone_s: float, busy_s: float) -> None:
    """Change how long the program waits to see that the guard runs, and then for its answer."""
    text = container.program.read_text()
    for now, then in (("-t 2 ", f"-t {busy_s} "), ("-t 0.5 ", f"-t {gone_s} ")):
        assert text.count(now) == 1
        text = text.replace(now, then)
    container.program.write_text(text)


def test_a_guard_that_is_busy_is_waited_for(container: Interposed) -> None:
    """It has the pipe open, and reads it later than the time that shows whether it runs."""
    set_limits(container, gone_s=2, busy_s=300)
    guard = Guard(container.shared, lambda _: "1 done")
    process = container.start(*ACTIVATE)
    time.sleep(2.5)
    with guard:
        assert process.communicate(timeout=LIMIT_S)[0] == ""
    assert process.returncode == 0
    assert missed(container) == []


def test_a_guard_that_is_gone_is_not_waited_for(container: Interposed, obliging: Guard) -> None:
    set_limits(container, gone_s=0.5, busy_s=300)
    obliging.stall()
    os.close(obliging.fifo.descriptor)
    obliging.fifo.descriptor = -1
    assert container.run(*ACTIVATE) == (0, "real activate\n")


def test_a_guard_that_dies_in_the_middle_of_a_call(container: Interposed) -> None:
    guard = Guard(container.shared, lambda _: None)
    with guard:
        process = container.start(*ACTIVATE)
        deadline = time.monotonic() + LIMIT_S
        while not guard.asked and time.monotonic() < deadline:
            time.sleep(0.001)
    assert guard.asked
    assert process.communicate(timeout=LIMIT_S)[0] == "real activate\n"
    assert missed(container) == ["1 activate --index=3 --shm=tshm-a 5004"]


def test_a_full_pipe(container: Interposed, obliging: Guard) -> None:
    obliging.stall()
    fill(obliging.fifo.descriptor)
    assert container.run(*ACTIVATE) == (0, "real activate\n")
    assert missed(container) == ["1 activate --index=3 --shm=tshm-a 5004"]
    while obliging.fifo.read() or obliging.take_missed():
        pass
    with Guard(container.shared, lambda _: "1 done") as guard:
        assert container.run(*ACTIVATE) == (0, "")
        assert len(guard.asked) == 1


def test_half_a_line_in_the_pipe_spoils_no_other(container: Interposed, obliging: Guard) -> None:
    obliging.stall()
    os.write(obliging.fifo.descriptor, b"1 half a li")
    container.run(*ACTIVATE)
    lines = obliging.fifo.read()
    assert lines[0] == b"1 half a li"
    assert LINE.fullmatch(lines[1])
    assert len(lines) == 2


def test_killed_callers_leave_nothing_that_matters(container: Interposed, obliging: Guard) -> None:
    obliging.stall()
    callers = [container.start(*ACTIVATE) for _ in range(20)]
    deadline = time.monotonic() + LIMIT_S
    while len(left_behind(container)) < 3 and not missed(container) and time.monotonic() < deadline:
        time.sleep(0.001)
    for caller in callers:
        caller.kill()
        caller.communicate(timeout=LIMIT_S)
    obliging.take_missed()
    with Guard(container.shared, lambda _: "1 done") as guard:
        assert container.run(*ACTIVATE) == (0, "")
        for directory in ("answers", "offers"):
            for path in (container.shared / directory).iterdir():
                os.utime(path, (0, 0))
        guard.shared.answers.sweep()
    assert left_behind(container) == []


def test_hundreds_of_calls_at_once(container: Interposed) -> None:
    """Each is either answered or run by the real program, and told of as missed; none is lost, none is both."""
    count = 400
    with Guard(container.shared, lambda line: "1 pass" if "--index=7 " in line else "1 done") as guard:
        callers = [
            container.start("activate", f"--index={number % 40}", f"--shm=tshm-{number}", "5004")
            for number in range(count)
        ]
        outcomes = [caller.communicate(timeout=LIMIT_S)[0] for caller in callers]
        assert [caller.returncode for caller in callers] == [0] * count
        skipped = {line.split()[3].removeprefix("--shm=tshm-") for line in missed(container)}
    for number, printed in enumerate(outcomes):
        expected = "real activate\n" if number % 40 == 7 or str(number) in skipped else ""
        assert printed == expected, number
    real = {re.findall(r"tshm-(\d+)", call)[0] for call in told(container.real)}
    assert real == skipped | {str(number) for number in range(count) if number % 40 == 7}
    assert len(told(container.real)) == len(real)
    asked = {line.split()[2].removeprefix("--shm=tshm-") for line in guard.asked}
    assert asked | skipped == {str(number) for number in range(count)}
    assert left_behind(container) == []


def test_no_child_is_left_to_process_1(container: Interposed, obliging: Guard) -> None:
    """Process 1 of Meridio's container waits for no orphan: each would stay as a zombie."""
    script = (
        "import ctypes, os, subprocess, sys\n"
        "assert ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) == 0\n"  # PR_SET_CHILD_SUBREAPER
        "subprocess.run(sys.argv[1:], check=True)\n"
        "try:\n    print('orphan', os.waitpid(-1, os.WNOHANG))\nexcept ChildProcessError:\n    print('none')\n"
    )

    def orphans() -> str:
        command = [sys.executable, "-c", script, str(container.program), *ACTIVATE]
        done = subprocess.run(command, env=container.environment, check=True, capture_output=True, text=True)
        return done.stdout.splitlines()[-1]

    assert orphans() == "none"
    obliging.stall()
    assert orphans() == "none"
    obliging.take_missed()
    fill(obliging.fifo.descriptor)
    assert orphans() == "none"


def test_missed_calls_are_bounded(container: Interposed, obliging: Guard) -> None:
    obliging.stall()
    (container.shared / "missed").write_bytes(b"\n" * MISSED_MAX)
    assert container.run(*ACTIVATE) == (0, "real activate\n")
    assert (container.shared / "missed").stat().st_size == MISSED_MAX


def test_where_the_real_program_is(container: Interposed, tmp_path: Path) -> None:
    path = container.environment["PATH"]
    assert container.run("show", LBGUARD_NFQLB_REAL=str(container.real), PATH="/nowhere") == (0, "real show\n")
    # Itself, by another name of the directory: that would go on for ever.
    other = tmp_path / "other"
    other.symlink_to(container.program.parent)
    assert container.run("show", LBGUARD_NFQLB_REAL=str(other / "nfqlb"), PATH=f"{other}:{path}") == (0, "real show\n")
    directory = tmp_path / "a *$(x) b"
    directory.mkdir()
    (directory / "nfqlb").mkdir()
    assert container.run("show", PATH=f"{directory}::{path}") == (0, "real show\n")
    status, printed = container.run("show", PATH=str(container.program.parent))
    assert (status, "not on PATH" in printed) == (127, True)


def test_a_shell_whose_read_cannot_time_out(container: Interposed, obliging: Guard, tmp_path: Path) -> None:
    """Such as Debian's dash: the load balancer works, without the guard."""
    shell = "/bin/dash"
    if not Path(shell).exists():
        pytest.skip("no dash here")
    container.program.write_text(f"#!{shell}\n{PROGRAM.read_text().partition(chr(10))[2]}")
    assert container.run(*ACTIVATE) == (0, "real activate\n")
    assert told(container.real) == [TOLD]
