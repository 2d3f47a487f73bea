"""The unmodified load balancer of Meridio-2 beside the real service: its calls, its sweep, its changes of addresses."""

import time
from pathlib import Path

import pytest

from lbguard.core.model import StreamSpec
from lbguard.lab.meridio_2_lb import Targets
from lbguard.lab.netns import Namespace
from lbguard.lab.nfqlb_calls import NfqlbCalls
from tests.fakes.interposed import Interposed
from tests.netns.interposer.balancer import OURS, PATIENT, Balancer, ips_of, wait_until

pytestmark = pytest.mark.netns

BACK_WITHIN_S = 0.5
ROOM = 10
AFFINITY = {"LBGUARD_AFFINITY__MODE": "incident", "LBGUARD_AFFINITY__LEARN": "0s"}


class Balancer2(Balancer):
    """The load balancer of Meridio-2; `give` returns whether every step of its reconcile succeeded."""

    shm_prefix = ""
    first = 0

    def __init__(
        self, lb: Namespace, proxies: Namespace, nfqlb: Interposed, stream: str, shm_dir: Path, directory: Path
    ) -> None:
        super().__init__(lb, proxies, nfqlb, stream, shm_dir, directory)
        program, environment = str(nfqlb.program), nfqlb.environment
        spec = StreamSpec(name=stream, max_targets=ROOM)
        self.calls = NfqlbCalls(spec, stream, shm_dir, first=0, program=program, environment=environment)
        self.targets = Targets(lb, self.calls)

    def start(self) -> None:
        """Start the process: sweep and make the table."""
        self.targets = Targets(self.lb, self.calls)
        self.targets.sweep()
        assert self.calls.init()

    def serve(self, *identifiers: int) -> None:
        self.start()
        assert self.give_them(*identifiers)
        self.wait_for_slots(*identifiers)

    def give_them(self, *identifiers: int, **moved: tuple[str, str]) -> bool:
        """Reconcile with these targets; `t1=(IPV4, IPV6)` has other addresses."""
        listed = {identifier: moved.get(f"t{identifier}", ips_of(identifier)) for identifier in identifiers}
        done, _ = self.targets.reconcile(listed)
        return done

    def has_ours(self, *identifiers: int) -> bool:
        """Return whether our rule and routes of these targets exist."""
        return all(
            self.rules(identifier)[0] == [3000] and [p for p, _ in self.routes(identifier)].count(OURS) == 2
            for identifier in identifiers
        )


@pytest.fixture
def kind() -> type[Balancer]:
    return Balancer2


@pytest.fixture
def lb(balancer: Balancer) -> Balancer2:
    assert isinstance(balancer, Balancer2)
    return balancer


def test_targets_have_the_identifiers_of_the_load_balancer(lb: Balancer2) -> None:
    with lb.service():
        lb.serve(0, 1, 5)
        assert lb.active() == {0, 1, 5}
        assert lb.states() == {0: "active", 1: "active", 5: "active"}
        assert set(lb.table()) == {0, 1, 5}
        wait_until(lambda: lb.has_ours(0, 1, 5), "our rules and routes")


def test_the_sweep_at_its_start_takes_nothing_for_long(lb: Balancer2) -> None:
    with lb.service():
        lb.serve(0, 1, 5)
        wait_until(lambda: lb.has_ours(0, 1, 5), "our rules and routes")
        took = []
        for _ in range(5):
            lb.targets.sweep()
            began = time.monotonic()
            wait_until(lambda: lb.has_ours(0, 1, 5), "our rules and routes again")
            took.append(time.monotonic() - began)
            assert lb.next_hop(0) == ips_of(0)[0]
        # The others may have waited for the processor.
        assert min(took) < BACK_WITHIN_S


@pytest.mark.parametrize("drains", [False, True])
def test_a_restart_finds_the_same_table(lb: Balancer2, drains: bool) -> None:
    drain = {"LBGUARD_DRAIN__WINDOW": "1h", "LBGUARD_DRAIN__IDLE": "1h"}
    with lb.service(**(AFFINITY | drain if drains else {})):
        lb.serve(0, 1, 5)
        table = lb.table()
        lb.start()
        assert lb.active() == set()
        assert lb.give_them(0)
        wait_until(lambda: lb.table() == table, "the targets of before, with the first of them")
        assert lb.give_them(0, 1, 5)
        assert lb.table() == table
        assert lb.registered() == {0: True, 1: True, 5: True}


def test_the_path_is_verified_by_lbguard_alone_and_every_call_succeeds(lb: Balancer2) -> None:
    with lb.service(LBGUARD_GRACE__WINDOW="300ms"):
        lb.serve(0, 1, 5)
        table = lb.table()
        lb.cut(1)
        wait_until(lambda: lb.active() == {5}, "0 and 1 are withdrawn")
        # A step fails, so that the next success activates: of a target that stands as active for it.
        assert not lb.give_them(0, 1, 5)
        assert lb.calls.deactivate(1), "it is out already"
        assert lb.registered() == {0: True, 5: True}
        lb.make_link(1)
        wait_until(lambda: lb.active() == {0, 5}, "0 is back without a word of the load balancer")
        assert lb.next_hop(0) == ips_of(0)[0]
        wait_until(lambda: lb.give_them(0, 1, 5), "its link has its addresses")
        wait_until(lambda: lb.active() == {0, 1, 5}, "all are back")
        assert lb.table() == table


def test_a_pod_that_is_not_ready_leaves_at_once_also_where_its_link_is_away(lb: Balancer2) -> None:
    with lb.service(**PATIENT):
        lb.serve(0, 1, 5)
        assert lb.give_them(0, 5)
        assert lb.active() == {0, 5}
        lb.cut(1)
        lb.wait_for(t0="held", t5="active")
        assert lb.give_them(5)
        assert lb.active() == {5}
        assert lb.registered() == {5: True}


def test_a_pod_that_is_not_ready_drains_with_affinity(lb: Balancer2) -> None:
    drain = {"LBGUARD_DRAIN__WINDOW": "1h", "LBGUARD_DRAIN__IDLE": "1h"}
    with lb.service(**PATIENT, **AFFINITY, **drain):
        lb.serve(0, 1, 5)
        table = lb.table()
        assert lb.give_them(0, 5)
        lb.wait_for(t0="active", t1="draining", t5="active")
        wait_until(lambda: lb.has_ours(1), "our rule and route stay for its connections")
        assert lb.table() == table
        assert lb.give_them(0, 1, 5)
        lb.wait_for(t0="active", t1="active", t5="active")


def test_changed_addresses_are_followed_without_a_call(lb: Balancer2) -> None:
    with lb.service():
        lb.serve(0, 5)
        lb.proxies.add_addresses("lb-1", "172.16.1.200/24", "fd00:1::c8/64")
        assert lb.give_them(0, 5, t0=("172.16.1.200", "fd00:1::c8"))
        assert lb.next_hop(0) == "172.16.1.200"

        def ours() -> list[str]:
            return [r.gateway for r in lb.lb.routes(5000) if r.protocol == OURS and r.gateway]

        wait_until(lambda: ours() == ["172.16.1.200", "fd00:1::c8"], "our routes lead to the new addresses")
        assert lb.active() == {0, 5}
        assert lb.states() == {0: "active", 5: "active"}


def test_a_stream_that_ends_and_a_call_after_its_end(lb: Balancer2) -> None:
    with lb.service():
        lb.serve(0, 1)
        assert lb.nfqlb.run("delete", f"--shm={lb.stream}")[0] == 0
        # As stock: the memory is gone, so the real program refuses.
        assert not lb.calls.deactivate(0)
        wait_until(lambda: not lb.states(), "nobody is served")
