"""The program that takes the place of nfqlb: its calls, and that a change is carried out in place."""

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lbguard.core.model import StreamSpec, StreamTable
from lbguard.distributor.maglev import TableKind
from lbguard.distributor.nfqlb.shm import NfqlbShmDistributor
from lbguard.lab.nfqlb import NfqlbKind, install_stand_in, kind_here, missing, search_path
from lbguard.lab.nfqlb_stand_in import Memory, make_memory
from lbguard.lab.stock_nfqlb import StockCommands

SHM = Path("/dev/shm")
SLOTS, TARGETS = 97, 5
LOOKED_AT_STORES = 300
LOOK = """
import sys
from pathlib import Path
from lbguard.lab.nfqlb_stand_in import Memory
memory = Memory(Path(sys.argv[1]))
print("looks", flush=True)
lookup, end, seen = memory.fields[4:4 + 9973], memory.active_from + 4, set()
while memory.fields[end] < 0:
    seen.update(lookup[::100])
print(*seen)
"""
NO_REAL = missing()


@pytest.fixture
def name() -> Iterator[str]:
    """A name for a memory, which is removed after the test."""
    chosen = f"lbguard-test-stand-in-{os.getpid()}"
    yield chosen
    (SHM / chosen).unlink(missing_ok=True)


@pytest.fixture(
    params=[
        NfqlbKind.STAND_IN,
        pytest.param(NfqlbKind.REAL, marks=[pytest.mark.nfqlb, pytest.mark.skipif(bool(NO_REAL), reason=NO_REAL)]),
    ]
)
def search(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The PATH on which the program is found."""
    return search_path(request.param, tmp_path)


def _call(search: str, *arguments: str) -> tuple[int, str, str]:
    # env looks for it on the PATH that it is given, as Meridio does.
    done = subprocess.run(
        ["/usr/bin/env", f"PATH={search}", "nfqlb", *arguments], check=False, capture_output=True, text=True
    )
    return done.returncode, done.stdout, done.stderr


def test_a_stream_from_init_to_delete(search: str, name: str) -> None:
    shm, path = f"--shm={name}", SHM / name
    assert _call(search, "init", "--ownfw=0", shm, "--M=100", "--N=5") == (0, "M adjusted; 100 -> 97\n", "")
    assert path.stat().st_mode & 0o777 == 0o600
    assert _call(search, "activate", "--index=1", shm, "5002") == (0, "", "")
    assert _call(search, "activate", "--index=4", shm, "5005") == (0, "", "")
    made = Memory(path)
    assert (made.slots, made.targets, made.active) == (97, 5, [-1, 5002, -1, -1, 5005])
    # Two targets take their slots by turns, the lower index first.
    assert [made.lookup.count(index) for index in range(5)] == [0, 49, 0, 0, 48]
    status, shown, _ = _call(search, "show", shm)
    assert status == 0
    assert shown.splitlines()[:3] == [f"Shm: {name}", "  Fw: own=0", "  Maglev: M=97, N=5"]
    assert shown.splitlines()[4] == "   Active: 5002(1) 5005(4)"
    assert _call(search, "deactivate", "--index=4", shm) == (0, "", "")
    assert set(Memory(path).lookup) == {1}
    assert _call(search, "deactivate", "--index=1", shm) == (0, "", "")
    assert set(Memory(path).lookup) == {-1}
    assert _call(search, "delete", shm) == (0, "", "")
    assert not path.exists()


@pytest.mark.parametrize(
    ("line", "status", "said"),
    [
        ("init --M=5 --N=10", 1, "N can't be larger than M"),
        ("init --M=x --N=10", 1, "N can't be larger than M"),
        ("init --magic=1", 1, "init: unrecognized option '--magic=1'"),
        ("activate --index=5 5001", 1, "Lookup index too large"),
        ("activate --index=-1 5001", 1, "Lookup index too large"),
        ("activate --index=x 5001", 0, ""),
        ("deactivate --index=5", 1, "Lookup index too large"),
        ("deactivate --index=0 --shm=lbguard-absent", 1, "FAILED mapSharedData: lbguard-absent"),
        ("activate --index=0 --shm=lbguard-absent 5001", 1, "FAILED mapSharedData: lbguard-absent"),
        ("show --shm=lbguard-absent", 1, "FAILED mapSharedData: lbguard-absent"),
        ("delete --shm=lbguard-absent", 0, ""),
        ("magic", 1, "Unknown command [magic]"),
    ],
)
def test_what_is_refused_and_with_which_words(search: str, name: str, line: str, status: int, said: str) -> None:
    make_memory(SHM / name, SLOTS, TARGETS)
    command, *arguments = line.split()
    if "activate" in command and "--shm" not in line:
        arguments.append(f"--shm={name}")
    code, _, errors = _call(search, command, *arguments)
    assert (code, errors.strip()) == (status, said)


def test_delete_needs_a_name(search: str) -> None:
    assert _call(search, "delete") == (1, "", "Missing option [--shm]\n")


def test_packets_meet_an_empty_table_while_a_target_changes(tmp_path: Path) -> None:
    stored: list[set[int]] = []

    class Watched(Memory):
        def store(self) -> None:
            super().store()
            stored.append({self.mark_of(number) for number in range(self.slots)})

    make_memory(tmp_path / "memory", SLOTS, TARGETS)
    memory = Watched(tmp_path / "memory")
    memory.change(0, 5001)
    memory.change(1, 5002)
    memory.change(0, -1)
    assert stored == [{-1}, {5001}, {-1}, {5001, 5002}, {-1}, {5002}]


def test_another_process_never_meets_a_target_that_was_not_active(name: str) -> None:
    # The one that looks is a process: threads of this one stand still while a table is stored.
    path = SHM / name
    make_memory(path, 9973, TARGETS)
    memory = Memory(path)
    memory.change(1, 5002)
    with subprocess.Popen([sys.executable, "-c", LOOK, str(path)], stdout=subprocess.PIPE, text=True) as looking:
        assert looking.stdout is not None
        assert looking.stdout.readline() == "looks\n"
        for index in [2, 1] * LOOKED_AT_STORES:
            memory.lookup = [index] * 9973
            memory.store()
        memory.active[4] = 1
        memory.store()
        assert set(looking.stdout.readline().split()) <= {"1", "2"}


def test_the_real_one_is_played_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert kind_here() is NfqlbKind.STAND_IN
    assert search_path(NfqlbKind.REAL, tmp_path / "work") == str(tmp_path)
    assert search_path(NfqlbKind.STAND_IN, tmp_path / "work") == f"{tmp_path / 'work' / 'stand-in'}:{tmp_path}"
    install_stand_in(tmp_path)
    assert kind_here() is NfqlbKind.REAL


async def test_the_commands_and_the_memory_writer_agree(search: str, name: str) -> None:
    """Switch back and forth between the two writers: neither finds anything to change in the other's table."""
    make_memory(SHM / name, 997, 20)
    stream = StreamSpec(name="s", max_targets=20, identifier_offset=5000, shm_name=name)
    commands = StockCommands(shutil.which("nfqlb", path=search) or "")
    writer = NfqlbShmDistributor(TableKind.MAGLEV)
    chance = random.Random(7)
    for turn in range(4):
        active = frozenset(chance.sample(range(1, 21), chance.randint(0, 20)))
        table = StreamTable(stream=stream, registered=active, active=active)
        first, second = (commands, writer) if turn % 2 else (writer, commands)
        assert (await first.commit([table]))[0].error == ""
        content = (SHM / name).read_bytes()
        assert (await second.commit([table]))[0].error == ""
        assert (SHM / name).read_bytes() == content
        assert await commands.read_active(stream) == await writer.read_active(stream) == active
    await commands.close()
    await writer.close()


async def test_a_command_that_fails_is_told(name: str) -> None:
    make_memory(SHM / name, 997, 20)
    stream = StreamSpec(name="s", max_targets=20, identifier_offset=5000, shm_name=name)
    commands = StockCommands(shutil.which("false") or "")
    table = StreamTable(stream=stream, registered=frozenset({3}), active=frozenset({3}))
    (result,) = await commands.commit([table])
    await commands.close()
    assert f"activate --index=2 --shm={name} 5003" in result.error
