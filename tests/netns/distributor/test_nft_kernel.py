"""The kernel's side of the embedded distributor: sizes, splits, interruptions, what others do meanwhile."""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lbguard.distributor.nftables.elements import list_request, mark_changes, read_keys
from lbguard.distributor.nftables.inventory import Kind, read_inventory
from lbguard.distributor.nftables.nfnetlink import GET_ELEMENTS, NetfilterSocket, Nfnetlink, NftError, Request
from lbguard.distributor.nftables.session import LIBRARY, NftContext
from lbguard.lab.netns import Namespace
from tests.netns.distributor.conftest import spec, table
from tests.netns.distributor.test_nft_tables import Kernel, Make, commit, kernel, make

__all__ = ["kernel", "make"]

pytestmark = pytest.mark.netns

LARGE = spec("large", max_targets=100)
SLOTS = 9973
ROOT = Path(__file__).parents[3]


def open_kernel(namespace: Namespace) -> Nfnetlink:
    with namespace.entered():
        return Nfnetlink(NetfilterSocket())


async def test_what_does_not_fit_is_split_between_slots(make: Make, kernel: Kernel) -> None:
    """The kernel grants twice what is asked: 128 KiB, when a first fill takes 273 KiB and a swap of all 430."""
    distributor = make(send_buffer_bytes=65536)
    await distributor.attach(LARGE)
    with kernel.watched() as lines:
        assert await commit(distributor, table(LARGE, active=(1, 2), registered=(1, 2, 3, 4))) == [SLOTS]
        assert set(kernel.slots("large").values()) == {5001, 5002}
        assert await commit(distributor, table(LARGE, active=(3, 4), registered=(1, 2, 3, 4))) == [SLOTS]
    replacing = 0
    for transaction in transactions(lines):
        changed = [line.split() for line in transaction if "slots_large" in line]
        deleted = {words[6] for words in changed if words[0] == "delete"}
        # Whatever is deleted is added again before anybody can look.
        assert not deleted or deleted == {words[6] for words in changed if words[0] != "delete"}
        replacing += bool(deleted)
    assert replacing > 1
    assert len(transactions(lines)) > replacing + 1
    assert set(kernel.slots("large").values()) == {5003, 5004}
    assert len(kernel.slots("large")) == SLOTS
    assert await distributor.read_active(LARGE) == {3, 4}
    assert await distributor.lost_streams() == {}


def transactions(lines: list[str]) -> list[list[str]]:
    """Return what `nft monitor` printed, by transaction."""
    found: list[list[str]] = [[]]
    for line in lines:
        found[-1].append(line)
        if "new generation" in line:
            found.append([])
    assert found.pop() == []
    return found


async def test_a_send_buffer_that_is_too_small_is_named(make: Make, kernel: Kernel) -> None:
    distributor = make(send_buffer_bytes=8192)
    await distributor.attach(LARGE)
    (result,) = await distributor.commit([table(LARGE)])
    assert "Message too long" in result.error
    assert "net.core.wmem_max" in result.error
    assert kernel.slots("large") == {}


IN_A_USER_NAMESPACE = """
import asyncio
from lbguard.core.model import StreamSpec, StreamTable
from lbguard.distributor.maglev import TableKind
from lbguard.distributor.nftables.distributor import NftDistributor

async def fill():
    made = NftDistributor(TableKind.ANCHORED)
    streams = [StreamSpec(name=f"s{i}", max_targets=100, identifier_offset=5000 + 100 * i) for i in range(3)]
    for stream in streams:
        await made.attach(stream)
    everyone = frozenset(range(1, 101))
    tables = [StreamTable(stream=s, registered=everyone, active=everyone) for s in streams]
    for result in await made.commit(tables):
        assert result.error == "", result.error
    assert await made.lost_streams() == {}
    await made.close()

asyncio.run(fill())
"""


def test_tables_are_filled_without_privilege_over_the_machine(sandbox: None) -> None:
    """In a user namespace the send buffer cannot be raised beyond what the machine allows everybody."""
    inside = f"{sys.executable} -c '{IN_A_USER_NAMESPACE}' && nft -j list ruleset"
    command = ["unshare", "--user", "--map-root-user", "--net", "sh", "-c", inside]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    maps: list[dict[str, Any]] = [thing["map"] for thing in json.loads(done.stdout)["nftables"] if "map" in thing]
    assert {each["name"]: len(each["elem"]) for each in maps} == {f"slots_s{i}": SLOTS for i in range(3)}


@pytest.mark.parametrize("elements", ["1 : 5001", "7 : 9999"])
async def test_an_interrupted_change_of_size_is_done_again(make: Make, kernel: Kernel, elements: str) -> None:
    """A service was killed when it had half filled the larger map, which no rule knows yet."""
    first = make()
    await first.attach(spec())
    await commit(first, table(spec(), active=(1, 2)))
    before = kernel.slots()
    declared = "{ typeof numgen inc mod 1999 : meta mark; size 1999; }"
    kernel.nft(f"add map inet lbguard spare_stream-a {declared}")
    kernel.nft(f"add element inet lbguard spare_stream-a {{ {elements} }}")
    second = make()
    larger = spec(max_targets=20)
    await second.attach(larger)
    assert {m["name"]: dict(m["elem"]) for m in kernel.objects("map")}["slots_stream-a"] == before
    assert await second.read_active(larger) == {1, 2}
    assert await commit(second, table(larger, active=(1, 2), registered=(1, 2))) == [1999]
    assert len(kernel.slots()) == 1999
    assert set(kernel.slots().values()) == {5001, 5002}
    assert await second.lost_streams() == {}
    third = make()
    await third.attach(spec())
    assert await commit(third, table(spec(), active=(1, 2))) == [997]
    assert kernel.slots() == before
    assert await second.lost_streams() != {}


@pytest.mark.parametrize("order", ["the old map was made first", "the new map was made first"])
async def test_a_change_of_size_that_was_interrupted_at_its_end_is_adopted(
    make: Make, kernel: Kernel, order: str
) -> None:
    """A service was killed when the rules knew the new map already and the old one was still there."""
    first, larger = make(), spec(max_targets=20)
    await first.attach(spec())
    await commit(first, table(larger, active=(1, 2)))
    after = kernel.ruleset()
    old_map = "add map inet lbguard slots_stream-a { typeof numgen inc mod 997 : meta mark; size 997; }"
    if order == "the old map was made first":
        comment = "made by lbguard: its rules are rewritten and removed by it"
        kernel.nft(f'flush ruleset; add table inet lbguard {{ comment "{comment}"; }}')
        kernel.nft(f"{old_map}; add element inet lbguard slots_stream-a {{ 1 : 5 }}")
        kernel.nft(after)
    else:
        kernel.nft(old_map)
    second = make()
    await second.attach(larger)
    assert await second.read_active(larger) == {1, 2}
    assert await commit(second, table(larger, active=(1, 2))) == [0]
    assert kernel.ruleset() == after
    assert await second.lost_streams() == {}


async def test_an_element_that_is_no_slot_is_removed(make: Make, kernel: Kernel) -> None:
    distributor = make()
    await distributor.attach(spec())
    await commit(distributor, table(spec()))
    before = kernel.slots()
    kernel.nft("delete element inet lbguard slots_stream-a { 7 }")
    kernel.nft("add element inet lbguard slots_stream-a { 99999 : 5001 }")
    assert "slots" in (await distributor.lost_streams())["stream-a"]
    await commit(distributor, table(spec()))
    assert kernel.slots() == before
    assert await distributor.lost_streams() == {}


async def test_a_slot_that_somebody_else_filled_is_replaced_by_the_commit_that_meets_it(
    make: Make, kernel: Kernel
) -> None:
    distributor = make()
    await distributor.attach(spec())
    await commit(distributor, table(spec(), active=()))
    kernel.nft('add element inet lbguard slots_stream-a { 7 comment "stranger" : 9999 }')
    assert await commit(distributor, table(spec())) == [997]
    assert set(kernel.slots().values()) == {5001, 5002, 5003, 5004}
    assert await distributor.lost_streams() == {}


async def test_commits_hold_their_own_against_somebody_who_flushes(make: Make, kernel: Kernel) -> None:
    """Whatever comes between reading and writing, the table is whole in the end and losses are told."""
    distributor = make()
    await distributor.attach(spec())
    flushing = True

    async def flush() -> int:
        flushes = 0
        while flushing:
            await asyncio.to_thread(kernel.nft, "flush ruleset")
            flushes += 1
        return flushes

    flusher = asyncio.create_task(flush())
    for round_number in range(60):
        for result in await distributor.commit([table(spec(), active=(1, 2, 3, 4)[: round_number % 4 + 1])]):
            assert result.error == "" or "No such file or directory" in result.error
    flushing = False
    assert await flusher > 0
    lost = await distributor.lost_streams()
    await commit(distributor, table(spec(), active=(1, 2)))
    assert set(kernel.slots().values()) == {5001, 5002}
    assert len(kernel.slots()) == 997
    if lost:
        assert "goto ipv4_stream-a" in kernel.ruleset()
    assert await distributor.lost_streams() == {}


async def test_a_table_is_read_whole_while_others_write(make: Make, kernel: Kernel) -> None:
    """A dump of several datagrams between which others work is not taken for a table."""
    distributor = make()
    await distributor.attach(LARGE)
    await commit(distributor, table(LARGE))
    busy = True

    async def disturb() -> None:
        while busy:
            await asyncio.to_thread(kernel.nft, "add table ip noise; delete table ip noise")

    disturber = asyncio.create_task(disturb())
    for _ in range(10):
        assert await distributor.lost_streams() == {}
        assert await commit(distributor, table(LARGE)) == [0]
    busy = False
    await disturber


async def test_rules_written_while_a_stranger_works_next_door_are_no_loss(
    make: Make, kernel: Kernel, namespace: Namespace
) -> None:
    """The generation counts everybody's transactions: one beside ours does not make our rules somebody else's."""
    kernel.nft("add table inet t; add set inet t s { type mark; }")
    distributor = make()
    await distributor.attach(spec())
    await commit(distributor, table(spec()))
    with contextlib.closing(open_kernel(namespace)) as raw:

        def work(after_ms: float, mark: int) -> None:
            time.sleep(after_ms / 1000)
            for part in mark_changes("t", "s", set(), {mark}):
                raw.transact(part)

        for turn in range(60):
            # Once a turn, at any moment of the writing.
            await asyncio.gather(asyncio.to_thread(work, turn % 12 / 2, turn), distributor.attach(spec()))
            assert await distributor.lost_streams() == {}


def test_an_element_that_cannot_be_changed_is_named_and_nothing_is_done(namespace: Namespace, kernel: Kernel) -> None:
    raw = open_kernel(namespace)
    kernel.nft("add table inet t; add set inet t s { type mark; }; add element inet t s { 5001 }")
    before = raw.generation()

    def changes(held: set[int], wanted: set[int]) -> list[Request]:
        return [request for part in mark_changes("t", "s", held, wanted) for request in part]

    with pytest.raises(NftError, match="delete element inet t s: No such file or directory"):
        raw.transact(changes(set(), {5002}) + changes({5003}, set()))
    with pytest.raises(NftError, match="add element inet t s: File exists"):
        raw.transact(changes({5001}, set()) + changes(set(), {5001}) + changes(set(), {5001}))
    assert raw.generation() == before
    raw.transact(changes({5001}, {5002, 2**32 - 1}))
    assert raw.generation() == before + 1
    found = raw.dump(GET_ELEMENTS, list_request("t", "s"))
    assert found is not None
    assert read_keys(found) == {5002, 2**32 - 1}
    assert raw.dump(GET_ELEMENTS, list_request("t", "absent")) is None
    assert raw.dump(GET_ELEMENTS, list_request("absent", "s")) is None
    raw.close()


async def test_the_inventory_is_what_nft_lists(make: Make, kernel: Kernel, namespace: Namespace) -> None:
    raw = open_kernel(namespace)
    assert read_inventory(raw, "lbguard") is None
    kernel.nft("add table ip lbguard; add chain ip lbguard foreign")
    kernel.nft("add table inet other; add set inet other active_stream-a { type mark; }; add counter inet other c")
    distributor = make()
    await distributor.attach(spec())
    things = read_inventory(raw, "lbguard")
    listed = {
        (kind, thing["chain" if kind is Kind.RULE else "name"], thing["handle"])
        for kind in Kind
        for thing in kernel.objects(kind)
        if (thing["family"], thing["table"]) == ("inet", "lbguard")
    }
    assert things is not None
    assert {(thing.kind, thing.name, thing.handle) for thing in things} == listed
    assert {thing.size for thing in things if thing.kind is Kind.MAP} == {997}
    raw.close()


@contextlib.contextmanager
def other_transactions(namespace: Namespace) -> Iterator[None]:
    """Change another table of the namespace again and again."""
    ended = threading.Event()

    def change() -> None:
        with namespace.entered():
            context = NftContext(LIBRARY)
        while not ended.wait(0.0005):
            context.run("add table ip other\ndelete table ip other")
        context.close()

    kernel = open_kernel(namespace)
    before = kernel.generation()
    thread = threading.Thread(target=change)
    thread.start()
    try:
        while kernel.generation() == before:
            time.sleep(0.001)
        yield
    finally:
        ended.set()
        thread.join()
        kernel.close()


async def test_transactions_of_other_tables_are_no_loss(make: Make, namespace: Namespace, kernel: Kernel) -> None:
    """At a start, flow affinity makes its table while the streams are attached."""
    for number in range(10):
        distributor = make()
        with other_transactions(namespace):
            await distributor.attach(spec())
            await commit(distributor, table(spec()))
        assert await distributor.lost_streams() == {}, number
        kernel.nft("add rule inet lbguard ports4_stream-a counter")
        assert "rules were changed" in (await distributor.lost_streams())["stream-a"], number
        await distributor.detach(spec(), withdraw=True)
