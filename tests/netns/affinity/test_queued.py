"""Changes and removals of the affinity table, the counters and the distributor lose no packet of another's queue."""

import contextlib
import os
import shutil
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from lbguard.affinity.names import AffinityOptions
from lbguard.affinity.table import AffinityTable, remove_left_over
from lbguard.affinity.trial import refusal
from lbguard.distributor.base import DistributorError
from lbguard.distributor.maglev import TableKind
from lbguard.distributor.nftables.counters import FallbackCounters
from lbguard.distributor.nftables.distributor import NftDistributor
from lbguard.distributor.nftables.nfnetlink import NetfilterSocket
from lbguard.distributor.nftables.queueing import FILTER, MANGLE
from lbguard.distributor.nftables.removal import Removal, has_foreign_socket, queue_possible
from lbguard.lab.queueing import send_to_queues
from tests.netns.affinity import segments
from tests.netns.affinity.conftest import FAMILIES, OPTIONS, AffinityLab, flows
from tests.netns.distributor.conftest import OTHER_VIP4, VIP4, VIP6, spec
from tests.netns.distributor.conftest import table as stream_table
from tests.netns.distributor.packets import TCP
from tests.netns.packet_queue import PacketQueue
from tests.steering import steering

pytestmark = pytest.mark.netns

WAIT_S = 90.0
VIPS = {"ip": VIP4, "ip6": VIP6}
TABLE = "inet lbguard-affinity"


class Queued:
    """Packets of ten flows that wait while something changes."""

    def __init__(self, lab: AffinityLab) -> None:
        self.lab = lab
        self.queue = PacketQueue(lab.balancer, VIPS, priority=MANGLE)
        self._waiting = 0
        self._flows = [flow for family in FAMILIES for flow in flows(family, TCP, 5)]

    def send(self) -> None:
        """Send until ten packets wait: the machine's neighbour table may be full for a moment."""
        deadline = time.monotonic() + WAIT_S
        while self.queue.waiting() < 10:
            assert time.monotonic() < deadline
            self.lab.send([segments.go_on(flow) for flow in self._flows])
            time.sleep(0.05)
        self._waiting = self.queue.waiting()

    def nothing_lost(self) -> None:
        assert self.queue.waiting() >= self._waiting, "the kernel dropped packets that were queued"
        # A hook that was added before the queue's has the kernel queue a packet once more.
        while self.queue.waiting():
            self.queue.release(5001)
        assert {target for target, _ in self.lab.received(self._waiting)} == {1}


@pytest.fixture
def queued(lab: AffinityLab) -> Iterator[Queued]:
    made = Queued(lab)
    with contextlib.closing(made.queue):
        yield made


@pytest.fixture
async def counters(lab: AffinityLab) -> AsyncIterator[FallbackCounters]:
    with lab.balancer.entered():
        made = FallbackCounters()
    yield made
    await made.close()


def shown(lab: AffinityLab, table: str) -> str:
    return lab.balancer.run("nft", "-y", "list", "table", *table.split())


def hooks(lab: AffinityLab, table: str) -> int:
    return shown(lab, table).count("type filter hook")


def has_no_effect(lab: AffinityLab, table: str) -> bool:
    """Tell whether only hooks without rules are left, and the chain that no packet reaches."""
    lines = [line.strip() for line in shown(lab, table).splitlines()]
    first = [line.split()[0] for line in lines if line and line != "}"]
    rules = [line for line in lines if line.startswith("meta l4proto tcp tproxy")]
    return set(first) <= {"table", "comment", "chain", "type", "meta"} and first.count("meta") == len(rules)


async def test_the_table_is_emptied_while_packets_are_queued(
    lab: AffinityLab, table: AffinityTable, queued: Queued
) -> None:
    await table.apply([steering(learning=True)])
    queued.send()
    await table.remove()
    assert has_no_effect(lab, TABLE)
    queued.nothing_lost()
    assert hooks(lab, TABLE) == 1


async def test_what_is_left_is_used_again_and_removed_when_no_queue_is_left(
    lab: AffinityLab, table: AffinityTable, queued: Queued
) -> None:
    await table.apply([steering()])
    await table.remove()
    queued.send()
    await table.apply([steering()])
    assert await table.look()
    assert hooks(lab, TABLE) == 1
    queued.nothing_lost()
    with lab.balancer.entered():
        assert remove_left_over() is Removal.EMPTIED
    queued.queue.close()
    with lab.balancer.entered():
        assert remove_left_over() is Removal.REMOVED
        assert remove_left_over() is Removal.ABSENT
    assert "lbguard" not in lab.balancer.run("nft", "list", "tables")


async def test_a_hook_that_is_left_at_a_later_priority_is_no_place(
    lab: AffinityLab, table: AffinityTable, queued: Queued
) -> None:
    """An earlier run came after a queue at another priority, which is there no more."""
    add = f"add table {TABLE}; add chain {TABLE} prerouting_10 {{ type filter hook prerouting priority 10; }}"
    lab.balancer.run("nft", add)
    queued.send()
    await table.apply([steering()])
    assert await table.look()
    assert "prerouting {\n\t\ttype filter hook prerouting priority -140; policy accept;\n\t\tmeta mark" in shown(
        lab, TABLE
    )
    second = lab.keeper()
    await second.apply([steering()])
    assert await second.look()
    assert hooks(lab, TABLE) == 2
    await second.close()
    queued.nothing_lost()


async def test_other_options_replace_the_table_while_packets_are_queued(
    lab: AffinityLab, table: AffinityTable, queued: Queued
) -> None:
    await table.apply([steering()])
    queued.send()
    second = lab.keeper(AffinityOptions(udp=True, max_flows=10))
    await second.apply([steering()])
    assert await second.look()
    queued.nothing_lost()
    await second.close()


async def test_refused_rules_lose_no_queued_packet(lab: AffinityLab, queued: Queued) -> None:
    queued.send()
    failing = lab.keeper(AffinityOptions(idle_s=-1))
    for _ in range(2):
        with pytest.raises(DistributorError, match="nftables: "):
            await failing.apply([steering()])
    await failing.close()
    assert has_no_effect(lab, TABLE)
    queued.nothing_lost()


async def test_a_move_loses_no_queued_packet(lab: AffinityLab, table: AffinityTable, queued: Queued) -> None:
    await table.apply([steering()])
    queued.send()
    send_to_queues(lab.balancer, {"ip": "30.0.0.1", "ip6": "3000::1"}, 0, 0, priority=FILTER, table="later")
    assert await table.look()
    assert hooks(lab, TABLE) == 2
    queued.nothing_lost()


def test_a_trial_loses_no_queued_packet(lab: AffinityLab, queued: Queued) -> None:
    before = lab.balancer.run("nft", "list", "tables")
    queued.send()
    with lab.balancer.entered():
        assert refusal(OPTIONS) == ""
    queued.nothing_lost()
    assert lab.balancer.run("nft", "list", "tables") == before


async def test_counters_come_move_and_go_while_packets_are_queued(
    lab: AffinityLab, counters: FallbackCounters, queued: Queued
) -> None:
    queued.send()
    await counters.ensure([5001])
    send_to_queues(lab.balancer, {"ip": "30.0.0.1", "ip6": "3000::1"}, 0, 0, priority=FILTER, table="later")
    await counters.read()
    await counters.remove()
    assert has_no_effect(lab, "inet lbguard-counters")
    await counters.ensure([5001])
    queued.nothing_lost()
    assert (await counters.read_hits())[5001].packets >= 10
    queued.queue.close()
    await counters.remove()
    assert "lbguard" not in lab.balancer.run("nft", "list", "tables")


async def test_streams_come_and_go_while_packets_are_queued(lab: AffinityLab, queued: Queued) -> None:
    with lab.balancer.entered():
        distributor = NftDistributor(TableKind.ANCHORED)
    one, two = spec("one", vips=(OTHER_VIP4,)), spec("two", vips=("20.0.0.99",))
    queued.send()
    for stream in (one, two):
        await distributor.attach(stream)
        assert [each.error for each in await distributor.commit([stream_table(stream)])] == [""]
    await distributor.detach(one, withdraw=True)
    assert await distributor.present_streams() == {"two"}
    assert "20.0.0.77" not in shown(lab, "inet lbguard")
    assert await distributor.lost_streams() == {}
    await distributor.attach(one)
    await distributor.commit([stream_table(one)])
    for stream in (one, two):
        await distributor.detach(stream, withdraw=True)
    assert has_no_effect(lab, "inet lbguard")
    assert await distributor.prune(()) == []
    queued.nothing_lost()
    queued.queue.close()
    assert await distributor.prune(()) == []
    assert "lbguard" not in lab.balancer.run("nft", "list", "tables")
    await distributor.close()


@contextlib.contextmanager
def real_nfqlb(lab: AffinityLab) -> Iterator["subprocess.Popen[bytes]"]:
    """Run the real nfqlb, which works on packets without a pause."""
    program = shutil.which("nfqlb")
    if program is None:
        pytest.skip("no nfqlb on PATH (github.com/Nordix/nfqueue-loadbalancer)")
    shm = f"test-queued-{os.getpid()}"

    def call(*words: str) -> int:
        return subprocess.run(lab.balancer.command(program, *words), capture_output=True).returncode

    assert call("init", "--ownfw=0", f"--shm={shm}", "--M=100", "--N=10") == 0
    assert call("activate", "--index=1", f"--shm={shm}", "5001") == 0
    done = threading.Event()

    def send() -> None:
        packets = [segments.go_on(flow) for flow in flows("ipv4", TCP, 50)]
        while not done.is_set():
            lab.send(packets)
            time.sleep(0.001)

    sender = threading.Thread(target=send)
    sender.start()
    with subprocess.Popen(lab.balancer.command(program, "flowlb", "--queue=0:3", "--qlength=1024")) as nfqlb:
        try:
            declare = ("flow-set", f"--target={shm}", "--name=all", "--prio=1", "--protocols=tcp", f"--dsts={VIP4}/32")
            deadline = time.monotonic() + WAIT_S
            while call(*declare) != 0:
                assert time.monotonic() < deadline, "nfqlb takes no flow"
                time.sleep(0.05)
            send_to_queues(lab.balancer, {"ip": VIP4}, 0, 3)
            lab.received(1)
            yield nfqlb
        finally:
            done.set()
            sender.join()
            nfqlb.kill()
            Path("/dev/shm", shm).unlink(missing_ok=True)


@pytest.mark.nfqlb
async def test_the_real_nfqlb_outlives_what_comes_and_goes(
    lab: AffinityLab, table: AffinityTable, counters: FallbackCounters
) -> None:
    """It ends at a verdict on a packet that the kernel dropped meanwhile."""
    with real_nfqlb(lab) as nfqlb:
        for _ in range(30):
            await table.apply([steering()])
            await counters.ensure([5001])
            await table.remove()
            await counters.remove()
            assert nfqlb.poll() is None, "nfqlb ended"


async def test_without_a_queue_nothing_is_left(lab: AffinityLab, table: AffinityTable) -> None:
    with lab.balancer.entered():
        assert not queue_possible()
    await table.apply([steering()])
    await table.remove()
    assert "lbguard" not in lab.balancer.run("nft", "list", "tables")


def test_without_root_the_sockets_of_other_processes_tell(lab: AffinityLab, queued: Queued) -> None:
    with lab.balancer.entered(), contextlib.closing(NetfilterSocket()):
        sockets = Path("/proc/thread-self/net/netlink").read_text()
        own = [str(each.readlink()) for each in Path("/proc/self/fd").iterdir() if each.is_symlink()]
    assert not has_foreign_socket(sockets, own)
    assert has_foreign_socket(sockets, own[:1])
    assert not has_foreign_socket("sk Eth Pid\n", own)


def test_a_queue_is_seen_from_its_own_namespace_alone(
    lab: AffinityLab, make_namespace: Callable[[str], object], queued: Queued
) -> None:
    with lab.balancer.entered():
        assert queue_possible()
    with lab.router.entered():
        assert not queue_possible()


async def test_a_table_with_what_another_program_added_is_not_removed(lab: AffinityLab) -> None:
    with lab.balancer.entered():
        distributor = NftDistributor(TableKind.ANCHORED)
    await distributor.attach(spec())
    await distributor.commit([stream_table(spec())])
    lab.balancer.run("nft", "add chain inet lbguard theirs; add rule inet lbguard theirs counter")
    await distributor.detach(spec(), withdraw=True)
    assert await distributor.prune(()) == []
    assert "theirs" in shown(lab, "inet lbguard")
    assert "stream-a" not in shown(lab, "inet lbguard")
    lab.balancer.run("nft", "delete chain inet lbguard theirs")
    assert await distributor.prune(()) == []
    assert "lbguard" not in lab.balancer.run("nft", "list", "tables")
    await distributor.close()
