# ruff: noqa: ASYNC240 (the files here are memory: they do not block)
import asyncio
import os
import random
from pathlib import Path

import pytest

from lbguard.core.model import StreamSpec, StreamTable
from lbguard.distributor.base import DistributorError
from lbguard.distributor.maglev import TableKind
from lbguard.distributor.nfqlb.cli import NfqlbCliDistributor, parse_show
from lbguard.distributor.nfqlb.shm import NfqlbShmDistributor
from tests.fakes.nfqlb import FakeNfqlb, Fault, Memory, make_memory
from tests.unit.distributor.conftest import RealNfqlb

SLOTS, TARGETS = 101, 8
STREAM = StreamSpec(name="a", max_targets=TARGETS, identifier_offset=5000)


def table(active: set[int], stream: StreamSpec = STREAM) -> StreamTable:
    return StreamTable(stream=stream, registered=frozenset(active), active=frozenset(active))


@pytest.fixture
def memory(shm_dir: Path) -> Path:
    path = shm_dir / "tshm-a"
    make_memory(path, SLOTS, TARGETS)
    return path


@pytest.fixture
def distributor(fake: FakeNfqlb) -> NfqlbCliDistributor:
    return NfqlbCliDistributor(binary=str(fake.binary), shm_dir=fake.shm_dir, call_timeout_s=60)


# The text is what nfqlb 1.2 printed for a memory with M=9973 and N=10.
SHOWN = """\
Shm: tshm-stream-a
  Fw: own=0
  Maglev: M=9973, N=10
   Lookup: 2 0 0 2 2 0 0 0 0 0 0 2 2 2 0 2 2 2 0 0 2 2 0 0 0...
   Active: 5001(0) 5003(2)
"""


def test_show_is_read() -> None:
    shown = parse_show(SHOWN)
    assert (shown.slots, shown.targets, shown.marks) == (9973, 10, {0: 5001, 2: 5003})


def test_show_with_nobody_active_is_read() -> None:
    shown = parse_show("Shm: x\n  Fw: own=0\n  Maglev: M=97, N=10\n   Lookup: -1 -1...\n   Active:\n")
    assert (shown.slots, shown.targets, shown.marks) == (97, 10, {})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "lp0 on fire\n",
        SHOWN.replace("Active", "Passive"),
        SHOWN.replace("M=9973", "M=many"),
        SHOWN.replace("5003(2)", "5003[2]"),
        SHOWN.replace("5003(2)", "-5003(2)"),
    ],
)
def test_a_show_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(DistributorError, match="not understood"):
        parse_show(text)


def test_anchored_is_refused_by_the_name_of_the_setting() -> None:
    with pytest.raises(DistributorError, match=r"distributor\.table=anchored"):
        NfqlbCliDistributor(TableKind.ANCHORED)


async def test_commit_uses_one_call_for_each_change(
    distributor: NfqlbCliDistributor, fake: FakeNfqlb, memory: Path
) -> None:
    await distributor.attach(STREAM)
    assert await distributor.read_active(STREAM) == frozenset()
    [result] = await distributor.commit([table({1, 3})])
    assert (result.slots_changed, result.slots_total, result.error) == (SLOTS, SLOTS, "")
    assert await distributor.read_active(STREAM) == {1, 3}
    await distributor.commit([table({1, 8})])
    assert [call for call in fake.calls() if not call.startswith("show")] == [
        "activate --index=0 --shm=tshm-a 5001",
        "activate --index=2 --shm=tshm-a 5003",
        "activate --index=7 --shm=tshm-a 5008",
        "deactivate --index=2 --shm=tshm-a",
    ]
    assert Memory(memory).active == [5001, -1, -1, -1, -1, -1, -1, 5008]


async def test_nothing_is_called_when_nothing_changes(
    distributor: NfqlbCliDistributor, fake: FakeNfqlb, memory: Path
) -> None:
    await distributor.commit([table({1, 3})])
    before = len(fake.calls())
    [result] = await distributor.commit([table({1, 3})])
    assert (result.slots_changed, result.slots_total, result.error) == (0, SLOTS, "")
    assert fake.calls()[before:] == ["show --shm=tshm-a"]


async def test_strangers_and_wrong_marks_are_put_right(distributor: NfqlbCliDistributor, memory: Path) -> None:
    other = Memory(memory)
    other.active[5] = 9999
    other.active[0] = 6001
    other.populate()
    other.store()
    assert await distributor.read_active(STREAM) == {1, 6}
    await distributor.commit([table({1, 2})])
    assert Memory(memory).active == [5001, 5002, -1, -1, -1, -1, -1, -1]


async def test_one_stream_that_fails_does_not_stop_the_others(distributor: NfqlbCliDistributor, memory: Path) -> None:
    results = await distributor.commit([table({1}, StreamSpec(name="missing")), table({2})])
    assert [result.stream for result in results] == ["missing", "a"]
    assert "FAILED mapSharedData: tshm-missing" in results[0].error
    assert results[1].error == ""
    assert await distributor.read_active(STREAM) == {2}


@pytest.mark.parametrize(
    ("command", "fault", "reason"),
    [
        ("show", Fault.REFUSE, "failed with status 1: refused on purpose"),
        ("show", Fault.GARBLE, "not understood"),
        ("activate", Fault.REFUSE, "failed with status 1: refused on purpose"),
        ("activate", Fault.GARBLE, "another process changed"),
        ("activate", Fault.DIE_HALFWAY, "failed with status -9"),
        ("deactivate", Fault.REFUSE, "refused on purpose"),
    ],
)
async def test_a_fault_is_reported_and_the_next_commit_succeeds(
    distributor: NfqlbCliDistributor, fake: FakeNfqlb, memory: Path, command: str, fault: Fault, reason: str
) -> None:
    await distributor.commit([table({4})])
    fake.arm(command, fault)
    [result] = await distributor.commit([table({1, 2, 3})])
    assert reason in result.error
    [result] = await distributor.commit([table({1, 2, 3})])
    assert result.error == ""
    assert await distributor.read_active(STREAM) == {1, 2, 3}
    assert set(Memory(memory).lookup) == {0, 1, 2}


async def test_a_call_that_hangs_is_killed(fake: FakeNfqlb, memory: Path) -> None:
    # The fault strikes the first call only, so the time limit is met by that one alone, however slow the machine is.
    hasty = NfqlbCliDistributor(binary=str(fake.binary), shm_dir=fake.shm_dir, call_timeout_s=0.2)
    fake.arm("show", Fault.HANG)
    with pytest.raises(DistributorError, match=r"show --shm=tshm-a did not end within 0\.2 s"):
        await hasty.read_active(STREAM)


async def test_a_cancelled_call_leaves_no_process(fake: FakeNfqlb, distributor: NfqlbCliDistributor) -> None:
    fake.arm("show", Fault.HANG)
    call = asyncio.create_task(distributor.read_active(STREAM))
    async with asyncio.timeout(60):
        while not fake.calls():  # noqa: ASYNC110 (another process makes it true)
            await asyncio.sleep(0.01)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    commands = [Path(f"/proc/{child}/cmdline").read_text() for child in children]
    assert not [command for command in commands if "nfqlb" in command]


async def test_a_missing_program_and_one_that_cannot_run(tmp_path: Path, shm_dir: Path) -> None:
    with pytest.raises(DistributorError, match="was not found"):
        await NfqlbCliDistributor(binary="nfqlb-that-is-not-there", shm_dir=shm_dir).attach(STREAM)
    (tmp_path / "plain").write_text("")
    with pytest.raises(DistributorError, match="cannot be run: Permission denied"):
        await NfqlbCliDistributor(binary=str(tmp_path / "plain"), shm_dir=shm_dir).attach(STREAM)


async def test_refusals_before_any_change(distributor: NfqlbCliDistributor, fake: FakeNfqlb, memory: Path) -> None:
    with pytest.raises(DistributorError, match="not a valid shared memory name"):
        await distributor.attach(StreamSpec(name="a", shm_name="../a"))
    assert fake.calls() == []
    with pytest.raises(DistributorError, match="N=8"):
        await distributor.attach(StreamSpec(name="a", max_targets=9))
    [result] = await distributor.commit([table({9})])
    assert "identifiers 1 to 8" in result.error
    assert Memory(memory).active == [-1] * TARGETS


async def test_loss_is_noticed(distributor: NfqlbCliDistributor, memory: Path) -> None:
    await distributor.attach(STREAM)
    await distributor.commit([table({1})])
    assert await distributor.lost_streams() == {}
    memory.unlink()
    assert "removed" in (await distributor.lost_streams())["a"]
    make_memory(memory, SLOTS, TARGETS)
    assert await distributor.lost_streams() != {}
    [result] = await distributor.commit([table({1})])
    assert result.error == ""
    assert await distributor.lost_streams() == {}


@pytest.mark.parametrize("withdraw", [False, True])
async def test_detach(distributor: NfqlbCliDistributor, memory: Path, withdraw: bool) -> None:
    await distributor.commit([table({1, 2})])
    await distributor.detach(STREAM, withdraw=withdraw)
    assert Memory(memory).active[:2] == ([-1, -1] if withdraw else [5001, 5002])
    memory.unlink()
    assert await distributor.lost_streams() == {}
    await distributor.detach(STREAM, withdraw=withdraw)
    await distributor.close()


async def test_detach_says_when_it_could_not_withdraw(
    distributor: NfqlbCliDistributor, fake: FakeNfqlb, memory: Path
) -> None:
    await distributor.commit([table({1})])
    fake.arm("deactivate", Fault.REFUSE)
    with pytest.raises(DistributorError, match="refused on purpose"):
        await distributor.detach(STREAM, withdraw=True)


@pytest.mark.parametrize("program", ["fake", pytest.param("real", marks=pytest.mark.nfqlb)])
async def test_the_commands_and_the_memory_writer_agree(program: str, request: pytest.FixtureRequest) -> None:
    """Switch back and forth between the two distributors: neither finds anything to change in the other's table."""
    if program == "real":
        real: RealNfqlb = request.getfixturevalue("real")
        real("init", "--ownfw=0", "--M=1000", "--N=20")
        shm_dir, binary, name = Path("/dev/shm"), "nfqlb", real.name
    else:
        fake: FakeNfqlb = request.getfixturevalue("fake")
        shm_dir, binary, name = fake.shm_dir, str(fake.binary), "shared"
        make_memory(shm_dir / name, 997, 20)
    stream = StreamSpec(name="s", max_targets=20, identifier_offset=5000, shm_name=name)
    commands = NfqlbCliDistributor(binary=binary, shm_dir=shm_dir, call_timeout_s=60)
    writer = NfqlbShmDistributor(TableKind.MAGLEV, shm_dir)
    chance = random.Random(7)
    for turn in range(6):
        active = set(chance.sample(range(1, 21), chance.randint(0, 20)))
        first, second = (commands, writer) if turn % 2 else (writer, commands)
        assert (await first.commit([table(active, stream)]))[0].error == ""
        content = (shm_dir / name).read_bytes()
        [result] = await second.commit([table(active, stream)])
        assert (result.slots_changed, result.slots_total, result.error) == (0, 997, "")
        assert (shm_dir / name).read_bytes() == content
        assert await commands.read_active(stream) == await writer.read_active(stream) == active
    await writer.close()


@pytest.mark.nfqlb
async def test_the_real_program_complains_as_the_stand_in_does(real: RealNfqlb, fake: FakeNfqlb) -> None:
    real("init", "--ownfw=0", "--M=1000", "--N=20")
    make_memory(fake.shm_dir / real.name, 997, 20)
    lines = [["show", "--shm=absent"], ["activate", "--index=20", f"--shm={real.name}", "5"], ["unheard-of"]]
    lines += [["show", f"--shm={real.name}"], ["deactivate", "--index=3", f"--shm={real.name}"]]
    for line in lines:
        outcomes = []
        for binary in ("nfqlb", str(fake.binary)):
            process = await asyncio.create_subprocess_exec(
                binary, *line, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
            )
            outcomes.append((*await process.communicate(), process.returncode))
        assert outcomes[0] == outcomes[1]
