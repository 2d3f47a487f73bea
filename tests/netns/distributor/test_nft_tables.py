"""The embedded distributor's table in the kernel: adoption, differences, loss, removal."""

import contextlib
import ctypes
import json
import os
import re
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from lbguard.core.model import StreamTable
from lbguard.distributor.base import DistributorError
from lbguard.distributor.maglev import ImplicitPermutations, TableCalculator, TableKind
from lbguard.distributor.nftables.distributor import NftDistributor
from lbguard.lab.netns import Namespace
from tests.netns.distributor import packets
from tests.netns.distributor.conftest import CLIENT4, OTHER_VIP4, VIP4, VIP6, Lab, spec, table
from tests.netns.distributor.packets import UDP, Flow

pytestmark = pytest.mark.netns

M = 997  # The largest prime below 100 slots for each of the 10 targets of the tests' streams.
HOSTILE = (
    "a } ; flush ruleset ; #",
    "x\nflush ruleset",
    'quote " and \\ backslash',
    "ünïcödé 负载",
    "_61",
    "a",
    "A",
    "-",
    "drop",
    "../../etc",
)


class Kernel:
    """What the `nft` command sees and does in a namespace; independent of the code under test."""

    def __init__(self, namespace: Namespace) -> None:
        self.namespace = namespace

    def nft(self, *words: str) -> str:
        return self.namespace.run("nft", *words)

    def ruleset(self) -> str:
        return self.nft("list", "ruleset")

    def objects(self, kind: str) -> list[dict[str, Any]]:
        listing = json.loads(self.nft("-j", "list", "ruleset"))["nftables"]
        return [thing[kind] for thing in listing if kind in thing]

    def slots(self, encoded: str = "stream-a") -> dict[int, int]:
        """Return the elements of the stream's map, by whichever of its two names."""
        (found,) = [m for m in self.objects("map") if m["name"] in (f"slots_{encoded}", f"spare_{encoded}")]
        return dict(found.get("elem", ()))

    @contextlib.contextmanager
    def watched(self) -> Iterator[list[str]]:
        """Collect what `nft monitor` prints of the transactions made meanwhile."""
        lines: list[str] = []
        command = self.namespace.command("stdbuf", "-oL", "nft", "monitor")
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as monitor:
            assert monitor.stdout is not None
            try:
                # It subscribes at some time after its start, so make noise until it hears.
                heard = threading.Event()
                noise = threading.Thread(target=self._make_noise, args=(heard,))
                noise.start()
                monitor.stdout.readline()
                heard.set()
                noise.join()
                self.nft("add", "table", "ip", "begin")
                for line in monitor.stdout:
                    if line == "add table ip begin\n":
                        break
                monitor.stdout.readline()  # The generation of that.
                yield lines
                self.nft("add", "table", "ip", "end")
                for line in monitor.stdout:
                    if line == "add table ip end\n":
                        break
                    lines.append(line)
            finally:
                monitor.kill()

    def _make_noise(self, heard: threading.Event) -> None:
        while not heard.wait(0.05):
            self.nft("add", "table", "ip", "noise")
            self.nft("delete", "table", "ip", "noise")


@pytest.fixture
def kernel(namespace: Namespace) -> Kernel:
    return Kernel(namespace)


Make = Callable[..., NftDistributor]


@pytest.fixture
async def make(namespace: Namespace) -> AsyncIterator[Make]:
    """Make distributors in the namespace; all are closed after the test."""
    made: list[NftDistributor] = []

    def distributor(kind: TableKind = TableKind.ANCHORED, **options: Any) -> NftDistributor:
        with namespace.entered():
            made.append(NftDistributor(kind, **options))
        return made[-1]

    yield distributor
    for each in made:
        await each.close()


async def commit(distributor: NftDistributor, *tables: StreamTable) -> list[int]:
    """Commit tables that must succeed and return the number of changed slots of each."""
    results = await distributor.commit(tables)
    assert [result.error for result in results] == [""] * len(tables)
    assert [result.stream for result in results] == [each.stream.name for each in tables]
    return [result.slots_changed for result in results]


@pytest.mark.parametrize("kind", list(TableKind))
async def test_slots_equal_the_calculated_table(make: Make, kernel: Kernel, kind: TableKind) -> None:
    distributor = make(kind)
    await distributor.attach(spec())
    await commit(distributor, table(spec(), active=(1, 3), registered=(1, 2, 3, 4)))
    rows = ImplicitPermutations("stream-a", M)
    indexes = TableCalculator(rows, kind).table({0, 1, 2, 3}, {0, 2})
    assert kernel.slots() == {slot: 5001 + index for slot, index in enumerate(indexes)}


async def test_only_differing_slots_are_touched(make: Make, kernel: Kernel, namespace: Namespace) -> None:
    distributor = make()
    await distributor.attach(spec())
    assert await commit(distributor, table(spec())) == [M]
    before = kernel.slots()
    with kernel.watched() as lines:
        (changed,) = await commit(distributor, table(spec(), active=(1, 2, 4)))
    after = kernel.slots()
    differing = {slot for slot in range(M) if before[slot] != after[slot]}
    assert {before[slot] for slot in differing} == {5003}
    assert changed == len(differing)
    touched = [re.findall(r"element inet lbguard slots_stream-a \{ (\d+) :", line) for line in lines]
    assert {int(slot) for found in touched for slot in found} == differing


async def test_committing_the_same_table_again_changes_nothing(make: Make, kernel: Kernel) -> None:
    distributor = make()
    await distributor.attach(spec())
    await commit(distributor, table(spec()))
    before = kernel.ruleset()
    assert await commit(distributor, table(spec())) == [0]
    assert kernel.ruleset() == before


async def test_a_crashed_service_is_followed_by_one_that_adopts(make: Make, kernel: Kernel) -> None:
    first = make()
    await first.attach(spec())
    await commit(first, table(spec(), active=(1, 2, 4)))
    before = kernel.ruleset()
    second = make()
    await second.attach(spec())
    assert await second.read_active(spec()) == {1, 2, 4}
    assert kernel.ruleset() == before
    assert await commit(second, table(spec(), active=(1, 2, 4))) == [0]
    assert kernel.ruleset() == before
    (moved,) = await commit(second, table(spec()))
    assert 0 < moved < M


async def test_streams_of_an_earlier_run_are_adopted_without_a_transaction(make: Make, kernel: Kernel) -> None:
    """Until all are adopted nothing holds their targets: whatever takes time comes with the first commit."""
    streams = [spec(f"s{i}", vips=(f"20.0.{i}.1",)) for i in range(3)]
    first = make()
    for stream in streams:
        await first.attach(stream)
    await commit(first, *map(table, streams))
    second = make()
    with kernel.watched() as lines:
        for stream in streams:
            await second.attach(stream)
            assert await second.read_active(stream) == {1, 2, 3, 4}
        assert await second.lost_streams() == {}
    assert not any("new generation" in line for line in lines)
    before = kernel.ruleset()
    assert await commit(second, *map(table, streams)) == [0, 0, 0]
    assert kernel.ruleset() == before
    assert await second.lost_streams() == {}
    kernel.nft("delete element inet lbguard slots_s1 { 7 }")
    assert list(await second.lost_streams()) == ["s1"]


async def test_an_adopted_stream_gets_its_new_vips_with_the_first_commit(make: Make, kernel: Kernel) -> None:
    first = make()
    await first.attach(spec())
    await commit(first, table(spec()))
    before = kernel.slots()
    second, moved = make(), spec(vips=(OTHER_VIP4,))
    await second.attach(moved)
    assert await commit(second, table(moved)) == [0]
    assert OTHER_VIP4 in kernel.ruleset()
    assert VIP6 not in kernel.ruleset()
    assert kernel.slots() == before
    assert await second.lost_streams() == {}


async def test_an_active_target_without_slots_is_known_as_active(make: Make, kernel: Kernel) -> None:
    """With fewer slots than targets some own none."""
    stream = spec(max_targets=3)
    first = make(slots_per_target=1)
    await first.attach(stream)
    await commit(first, table(stream, active=(1, 2), registered=(1, 2)))
    kernel.nft("flush", "map", "inet", "lbguard", "slots_stream-a")
    second = make(slots_per_target=1)
    await second.attach(stream)
    assert await second.read_active(stream) == {1, 2}


async def test_new_vips_change_rules_and_no_slot(lab: Lab, distributor: NftDistributor) -> None:
    kernel = Kernel(lab.balancer)
    before = kernel.slots()
    flow = Flow(CLIENT4, OTHER_VIP4, UDP, 1234, 443)
    await distributor.attach(spec(vips=("20.0.0.64/26", OTHER_VIP4, VIP4, VIP6)))
    lab.deliver([packets.flow_packet(flow)])
    assert kernel.slots() == before
    assert await distributor.lost_streams() == {}
    await commit(distributor, table(spec(vips=(VIP6,))))
    assert "20.0.0" not in kernel.ruleset()
    assert VIP6 in kernel.ruleset()
    assert kernel.slots() == before


async def test_another_max_targets_replaces_the_map_at_the_next_commit(make: Make, kernel: Kernel) -> None:
    distributor = make()
    await distributor.attach(spec())
    await commit(distributor, table(spec()))
    before = kernel.ruleset()
    larger = spec(max_targets=20)
    other = make()
    await other.attach(larger)
    assert kernel.ruleset() == before
    assert await other.read_active(larger) == {1, 2, 3, 4}
    assert await other.lost_streams() == {}
    assert await commit(other, table(larger, active=(1, 20), registered=(1, 20))) == [1999]
    assert len(kernel.slots()) == 1999
    assert set(kernel.slots().values()) == {5001, 5020}
    assert "mod 997" not in kernel.ruleset()
    assert await other.lost_streams() == {}


async def test_hostile_names_stay_names(make: Make, kernel: Kernel) -> None:
    kernel.nft("add", "table", "ip", "foreign")
    distributor = make()
    streams = [spec(name, vips=(f"20.0.{i}.1",)) for i, name in enumerate(HOSTILE)]
    for stream in streams:
        await distributor.attach(stream)
    await commit(distributor, *(table(s, active=(i % 4 + 1,)) for i, s in enumerate(streams)))
    assert await distributor.present_streams() == set(HOSTILE)
    for i, stream in enumerate(streams):
        assert await distributor.read_active(stream) == {i % 4 + 1}
    assert {found["name"] for found in kernel.objects("table")} == {"foreign", "lbguard"}
    for stream in streams:
        await distributor.detach(stream, withdraw=True)
    assert kernel.ruleset() == "table ip foreign {\n}\n"


@pytest.mark.parametrize("name", ["", "x" * 300])
async def test_impossible_names_are_refused(make: Make, kernel: Kernel, name: str) -> None:
    with pytest.raises(DistributorError, match=r"name"):
        await make().attach(spec(name))
    assert kernel.ruleset() == ""


DAMAGE = {
    "ruleset flushed": ("flush ruleset", "removed"),
    "table deleted": ("delete table inet lbguard", "removed"),
    "slots flushed": ("flush map inet lbguard slots_stream-a", "slots"),
    "rules flushed": ("flush chain inet lbguard vips_stream-a", "rules"),
    "rule added": ("insert rule inet lbguard vips_stream-a accept", "rules"),
    "one slot deleted": ("delete element inet lbguard slots_stream-a { 7 }", "slots"),
    "no defragmentation": ("flush chain inet lbguard defragment", "defragmentation"),
}


@pytest.mark.parametrize("damage", list(DAMAGE))
async def test_damage_is_noticed_and_mended(make: Make, kernel: Kernel, damage: str) -> None:
    distributor = make()
    await distributor.attach(spec())
    await commit(distributor, table(spec()))
    whole = kernel.ruleset()
    assert await distributor.lost_streams() == {}
    command, reason = DAMAGE[damage]
    kernel.nft(command)
    lost = await distributor.lost_streams()
    assert list(lost) == ["stream-a"]
    assert reason in lost["stream-a"]
    assert await distributor.lost_streams() == lost
    await commit(distributor, table(spec()))
    assert kernel.ruleset() == whole
    assert await distributor.lost_streams() == {}


@pytest.mark.parametrize("moment", ["before it is adopted", "before the first commit"])
@pytest.mark.parametrize("damage", [*DAMAGE, "wrong mark"])
async def test_damage_to_what_an_earlier_run_left_is_mended_by_the_first_commit(
    make: Make, kernel: Kernel, damage: str, moment: str
) -> None:
    first = make()
    await first.attach(spec())
    await commit(first, table(spec()))
    whole = kernel.ruleset()
    mark = kernel.slots()[7]
    changed = "element inet lbguard slots_stream-a"
    wrong_mark = f"delete {changed} {{ 7 }}; add {changed} {{ 7 : {5001 if mark == 5002 else 5002} }}"
    command = DAMAGE[damage][0] if damage in DAMAGE else wrong_mark
    second = make()
    if moment == "before it is adopted":
        kernel.nft(command)
    await second.attach(spec())
    if moment == "before the first commit":
        kernel.nft(command)
        assert await second.lost_streams() == {}
    await commit(second, table(spec()))
    assert kernel.ruleset() == whole
    assert await second.lost_streams() == {}


async def test_a_stranger_next_door_is_no_loss(make: Make, kernel: Kernel) -> None:
    distributor = make()
    await distributor.attach(spec())
    await commit(distributor, table(spec()))
    kernel.nft("add", "table", "ip", "foreign")
    assert await distributor.lost_streams() == {}
    await commit(distributor, table(spec(), active=(1,)))
    kernel.nft("add", "table", "ip", "another")
    await commit(distributor, table(spec(), active=(1, 2)))
    assert await distributor.lost_streams() == {}


async def test_an_unnoticed_loss_is_mended_by_the_commit_that_meets_it(make: Make, kernel: Kernel) -> None:
    distributor = make()
    await distributor.attach(spec())
    await commit(distributor, table(spec()))
    kernel.nft("flush ruleset")
    await commit(distributor, table(spec(), active=(1, 2)))
    assert set(kernel.slots().values()) == {5001, 5002}
    assert "goto ipv4_stream-a" in kernel.ruleset()


async def test_one_bad_stream_stops_no_other(make: Make, kernel: Kernel) -> None:
    distributor = make()
    good, bad, unknown = spec("good"), spec("bad", vips=()), spec("unknown")
    await distributor.attach(good)
    await distributor.attach(bad)
    results = await distributor.commit(
        [table(bad, active=(11,), registered=(11,)), table(good), table(unknown, active=())]
    )
    assert [bool(result.error) for result in results] == [True, False, True]
    assert "1..10" in results[0].error
    assert "not attached" in results[2].error
    assert len(kernel.slots("good")) == M


async def test_all_streams_of_a_commit_are_one_transaction(make: Make, kernel: Kernel) -> None:
    distributor = make()
    streams = [spec(f"s{i}", vips=(f"20.0.{i}.1",)) for i in range(3)]
    for stream in streams:
        await distributor.attach(stream)
    with kernel.watched() as lines:
        await commit(distributor, *map(table, streams))
    assert len([line for line in lines if "slots_" in line]) >= 3 * M
    assert sum("new generation" in line for line in lines) == 1


async def test_detach_without_withdrawal_leaves_everything(make: Make, kernel: Kernel) -> None:
    distributor = make()
    await distributor.attach(spec())
    await commit(distributor, table(spec()))
    before = kernel.ruleset()
    await distributor.detach(spec(), withdraw=False)
    await distributor.close()
    assert kernel.ruleset() == before


async def test_withdrawal_removes_one_stream_and_the_table_with_the_last(make: Make, kernel: Kernel) -> None:
    distributor = make()
    one, two = spec("one"), spec("two", vips=())
    for stream in (one, two):
        await distributor.attach(stream)
    await commit(distributor, table(one), table(two))
    await distributor.detach(one, withdraw=True)
    assert await distributor.present_streams() == {"two"}
    assert "_one" not in kernel.ruleset()
    assert await distributor.lost_streams() == {}
    await distributor.detach(one, withdraw=True)
    await distributor.detach(two, withdraw=True)
    assert kernel.ruleset() == ""
    await distributor.detach(two, withdraw=True)
    await distributor.remove()


async def test_removal_takes_what_an_earlier_run_left(make: Make, kernel: Kernel) -> None:
    first = make()
    await first.attach(spec("left behind"))
    await first.close()
    second = make()
    assert await second.present_streams() == {"left behind"}
    await second.remove()
    assert kernel.ruleset() == ""


async def test_reading_a_table_that_is_gone_is_an_error(make: Make, kernel: Kernel) -> None:
    distributor = make()
    with pytest.raises(DistributorError, match="stream-a"):
        await distributor.read_active(spec())


async def test_a_missing_library_is_named_with_its_remedy(make: Make) -> None:
    with pytest.raises(DistributorError, match="apt-get install libnftables1"):
        await make(library="libnftables-absent.so").attach(spec())


async def test_missing_permission_is_named_with_its_remedy(namespace: Namespace) -> None:
    """A thread that gives up its user id (and so its capabilities) makes a distributor, whose thread inherits that."""
    made: list[NftDistributor] = []

    def unprivileged() -> None:
        with contextlib.suppress(OSError), namespace.entered():  # Without permission there is no way back out.
            # The raw call changes this thread alone; libc's wrapper would change all of the process.
            assert ctypes.CDLL(None).syscall(117, 65534, 65534, 65534) == 0  # setresuid
            made.append(NftDistributor(TableKind.ANCHORED))

    thread = threading.Thread(target=unprivileged)
    thread.start()
    thread.join()
    with pytest.raises(DistributorError, match="NET_ADMIN"):
        await made[0].attach(spec())
    await made[0].close()
    assert os.geteuid() == 0


async def test_overlapping_vips_are_reported(make: Make, kernel: Kernel, caplog: pytest.LogCaptureFixture) -> None:
    distributor = make()
    await distributor.attach(spec("one"))
    await distributor.attach(spec("two", vips=("20.0.0.0/24",)))
    assert "VIP 20.0.0.0/24 of stream two overlaps 20.0.0.1/32 of stream one" in caplog.text


def test_hash_seed_is_checked() -> None:
    with pytest.raises(ValueError, match="hash_seed"):
        NftDistributor(TableKind.ANCHORED, hash_seed=2**32)
