"""What is predicted of a target is what becomes of it, as long as nothing else happens."""

from hypothesis import given
from hypothesis import strategies as st

from lbguard.core import events as ev
from lbguard.core.config import DampingConfig, EngineConfig, FreezeConfig, GraceConfig
from lbguard.core.fsm import Input
from lbguard.core.lifecycle import Lifecycle
from lbguard.core.model import Action, Condition, NeighborState, StreamSpec, TargetSpec, TargetState
from lbguard.core.observation import LOOK_S
from lbguard.core.state import Stream
from lbguard.core.status import Prediction
from lbguard.core.status_view import predict
from tests.effort import examples
from tests.unit.core.harness import STREAM, Guard, ipv4_of, ipv6_of

CONFIG = EngineConfig(
    grace=GraceConfig(window_s=3.0, max_s=30.0),
    freeze=FreezeConfig(threshold=0.5, limit_s=20.0),
    damping=DampingConfig(half_life_s=1e18, step_s=2.0, max_s=30.0),
    soft_budget=0.5,
    neighbor_probe_interval_s=0.0,
    solicit_neighbors=False,
)


def expected(guard: Guard, identifier: int) -> Prediction | None:
    [prediction] = [
        target.prediction for target in guard.engine.status(guard.now).targets if target.identifier == identifier
    ]
    return prediction


def behind(identifier: int) -> int:
    """Return the proxy of a target."""
    return int(identifier > 1)


def behind_two_links(*, spare: int, ipv6: bool = False) -> Guard:
    """Target 1 behind link 1, targets 2 to 1 + spare behind link 2."""
    guard = Guard(CONFIG, targets=0)
    guard.link(1, ipv6=ipv6)
    guard.link(2, proxy=1, ipv6=ipv6)
    targets = tuple(
        TargetSpec(
            identifier=i, ips=(ipv4_of(i, behind(i)), ipv6_of(i, behind(i))) if ipv6 else (ipv4_of(i, behind(i)),)
        )
        for i in range(1, spare + 2)
    )
    guard.source(StreamSpec(name=STREAM, targets=targets))
    assert set(guard.states().values()) == {"active"}
    return guard


def fail(guard: Guard, identifier: int) -> None:
    """A target answers no neighbour solicitation any more."""
    for _ in range(2):
        guard.neighbor(ipv4_of(identifier, behind(identifier)), NeighborState.FAILED, link=1 + behind(identifier))


@st.composite
def streams(draw: st.DrawFn) -> tuple[Lifecycle, Stream]:
    """A stream whose targets are anywhere in their lives, for any causes, with deadlines in any order."""
    life, stream = Lifecycle(CONFIG, lambda target: ()), Stream(StreamSpec(name="s"))
    for identifier in range(1, draw(st.integers(1, 8)) + 1):
        target = stream.add(TargetSpec(identifier=identifier, ips=(bytes((10, 0, 0, identifier)),)), 0.0)
        cause = draw(st.sampled_from([Condition.NO_LINK, Condition.NEIGHBOR_FAILED]))
        target.penalty.value = draw(st.sampled_from([0.0, 3.0]))
        life.apply(stream, target, Input.PATH_OK, 1.0)
        lost_at = draw(st.floats(2.0, 4.0))
        match draw(st.sampled_from(list(TargetState))):
            case TargetState.HELD:
                life.apply(stream, target, Input.PATH_BROKEN, lost_at, cause)
            case TargetState.FROZEN:
                life.apply(stream, target, Input.PATH_BROKEN, lost_at, cause)
                life.apply(stream, target, Input.DEADLINE_MASS, lost_at + 3.0, cause)
            case TargetState.WITHDRAWN:
                life.apply(stream, target, Input.PATH_BROKEN, lost_at, cause)
                life.apply(stream, target, Input.DEADLINE, lost_at + 3.0, cause)
                if draw(st.booleans()):
                    life.apply(stream, target, Input.PATH_OK, lost_at + 4.0)
    life.take_records()
    return life, stream


@examples(300)
@given(streams(), st.floats(4.0, 40.0))
def test_what_is_due_becomes_what_was_predicted(made: tuple[Lifecycle, Stream], now: float) -> None:
    life, stream = made
    counts = dict(stream.counts)
    found = predict(CONFIG, life, [stream], now, "", lambda _target, at: at)
    assert dict(stream.counts) == counts, "a prediction changes nothing"

    due = life.deadlines.pop_due(now)
    for key in due:
        life.expire(stream, stream.targets[key.identifier], now)

    done = {record.decision.target: record.decision for record in life.take_records()}
    for key in due:
        what = found[key]
        assert what.action is (done[key].action if key in done else Action.STAY)
        assert what.at is not None
        assert what.at <= now
        if what.action is Action.FREEZE:
            assert what.until == life.deadlines.get(key)
        if what.action is Action.PARDON:
            assert what.until == life.pardons.get(key)


def test_a_loss_of_one_of_many_is_withdrawn() -> None:
    guard = behind_two_links(spare=3)
    guard.unlink(1)
    assert expected(guard, 1) == Prediction(action=Action.WITHDRAW, at=guard.now + 3.0)
    assert expected(guard, 2) is None


def test_a_mass_failure_is_foreseen_with_its_end() -> None:
    guard = behind_two_links(spare=2)
    guard.unlink(1)
    guard.wait(1.0)
    guard.unlink(2)
    frozen_at, why = guard.now + 2.0, "3 of 3 targets are broken"
    assert expected(guard, 1) == Prediction(action=Action.FREEZE, at=frozen_at, until=frozen_at + 20.0, why=why)
    guard.wait(10.0)
    assert expected(guard, 1) == Prediction(action=Action.WITHDRAW, at=frozen_at + 20.0, why=why)
    guard.wait(frozen_at + 20.0 - guard.now)
    assert guard.state(1) is TargetState.WITHDRAWN


def test_the_withdrawals_before_it_use_the_budget_up_and_a_pardon_ends_with_a_hold() -> None:
    guard = behind_two_links(spare=5)  # of six targets three may be withdrawn on soft evidence, of which none is yet
    began = guard.now
    for identifier in (1, 2, 3):
        fail(guard, identifier)
    guard.wait(2.0)
    fail(guard, 4)
    assert {expected(guard, i).action for i in (1, 2, 3)} == {Action.FREEZE}  # type: ignore[union-attr]
    guard.neighbor(ipv4_of(4, 1), NeighborState.REACHABLE, link=2)
    assert {expected(guard, i).action for i in (1, 2, 3)} == {Action.WITHDRAW}  # type: ignore[union-attr]
    guard.wait(1.0)
    assert guard.active() == {4, 5, 6}
    fail(guard, 4)
    veto = "soft evidence would withdraw too much of the stream"
    pardon = Prediction(action=Action.PARDON, at=began + 6.0, until=began + 26.0, why=veto)
    assert expected(guard, 4) == pardon
    guard.wait(3.0)
    assert guard.actions() == [(4, "pardon")]
    assert expected(guard, 4) == Prediction(action=Action.HOLD, at=began + 26.0)
    guard.wait(20.0)
    assert guard.actions() == [(4, "hold")]


def test_out_of_sync_nothing_is_promised_until_it_was_repaired() -> None:
    guard = behind_two_links(spare=3)
    guard.unlink(1)
    guard.tell(ev.KernelOutOfSync(reason="overrun"))
    held_up = Prediction(action=Action.STAY, why="the view of the kernel is not in sync (overrun)")
    assert expected(guard, 1) == held_up
    guard.wait(100.0)
    guard.tell(
        ev.KernelSnapshot(
            links=(guard.link_seen(2),),
            addresses=(guard.address(2, "172.16.1.2/24"),),
            routes=tuple(guard.routes),
            rules=tuple(guard.rules),
        )
    )
    # What was not seen does not count: of the window, the time of one look is over.
    assert expected(guard, 1) == Prediction(action=Action.WITHDRAW, at=guard.now + 3.0 - LOOK_S)


def test_one_familys_loss_has_no_end_of_its_own() -> None:
    guard = behind_two_links(spare=3, ipv6=True)
    guard.tell(guard.address_gone(1, "fd00:0::1/64"))
    assert expected(guard, 1) == Prediction(action=Action.HOLD, why="IPv6 is lost, IPv4 is ok")
    guard.tell(guard.address(1, "fd00:0::1/64"), guard.address_gone(1, "172.16.0.1/24"))
    assert expected(guard, 1) == Prediction(action=Action.HOLD, why="IPv4 is lost, IPv6 is ok")
    guard.cut(1)
    assert expected(guard, 1) == Prediction(action=Action.WITHDRAW, at=guard.now + 3.0)


def test_who_is_out_is_told_how_long_its_return_waits() -> None:
    guard = behind_two_links(spare=3)
    guard.target(1).penalty.value, guard.target(1).penalty.at = 2.0, guard.now
    guard.unlink(1)
    guard.wait(3.1)
    assert expected(guard, 1) == Prediction(action=Action.READMIT, wait_s=4.0)
    guard.link(5)
    assert expected(guard, 1) == Prediction(action=Action.READMIT, at=guard.now + 4.0)


def test_nothing_follows_for_who_is_well_and_the_paths_decide_for_who_is_new() -> None:
    guard = behind_two_links(spare=1)
    guard.register(1, 2, 3, proxy=0)
    assert expected(guard, 1) is None
    guard.register(1, 9, proxy=0)
    assert expected(guard, 9) is None
    new = TargetSpec(identifier=8, ips=(ipv4_of(8, 7),))
    guard.source(StreamSpec(name=STREAM, targets=(TargetSpec(identifier=1, ips=(ipv4_of(1),)), new)))
    assert expected(guard, 8) == Prediction(action=Action.ADMIT)


def test_a_status_is_built_in_parts_and_tells_nothing_outdated() -> None:
    guard = Guard(CONFIG, targets=90)
    guard.unlink(1)
    parts = guard.engine.status_in_parts(guard.now)
    assert next(parts) is None
    guard.now += 1.0
    guard.link(5)
    guard.register(*range(1, 81))
    *more, status = parts
    assert len(more) >= 2
    assert status is not None
    told = {target.identifier: (target.state, target.prediction is None) for target in status.targets}
    assert told[1] == (TargetState.HELD, False), "as it was when its turn came"
    assert told[80] == (TargetState.ACTIVE, True), "what was predicted of it is not true any more"
    assert told.keys() == set(range(1, 81)), "what is gone is not told"
