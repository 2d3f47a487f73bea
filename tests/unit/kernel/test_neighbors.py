import errno

from lbguard.core.effects import FlushNeighbors, ProbeNeighbors
from lbguard.kernel.channel import NetlinkChannel
from lbguard.kernel.neighbors import NeighborFailure, Neighbors
from tests.unit.kernel.fake_kernel import FakeKernel

ENTRIES = tuple((3, bytes([10, 0, 0, n])) for n in range(4))


async def test_flushing_what_is_absent_succeeds() -> None:
    kernel = FakeKernel()
    kernel.refusals = {0: (errno.ENOENT, ""), 1: (errno.ENODEV, ""), 2: (errno.EPERM, "")}
    failures = await Neighbors(NetlinkChannel(kernel)).flush(FlushNeighbors(entries=ENTRIES))
    assert failures == [NeighborFailure(ifindex=3, ip=ENTRIES[2][1], reason="EPERM: Operation not permitted")]
    kernel.close()


async def test_probing_what_is_unresolved_resolves_it() -> None:
    kernel = FakeKernel()
    kernel.refusals = {0: (errno.ENOENT, ""), 2: (errno.EINVAL, ""), 3: (errno.ENODEV, "")}
    failures = await Neighbors(NetlinkChannel(kernel)).probe(ProbeNeighbors(entries=ENTRIES))
    assert [len(batch) for batch in kernel.batches] == [4, 2]
    assert failures == [NeighborFailure(ifindex=3, ip=ENTRIES[3][1], reason="ENODEV: No such device")]
    kernel.close()
