from lbguard.lab.controller import Column, Distribution
from lbguard.lab.play import Run
from lbguard.lab.scenario_model import Do, Step
from lbguard.lab.timeline import BEFORE_S, answer_series, answers_top, channel_marks, draw, link_lanes, state_lanes
from lbguard.lab.traffic import RESET, Channel, TrafficResult


def _run(**fields: object) -> Run:
    run = Run(scenario="lb-link", column=Column.LBGUARD, distribution=Distribution.NFTABLES, started=100.0)
    for name, value in fields.items():
        setattr(run, name, value)
    return run


def test_a_link_is_away_between_its_delete_and_its_return() -> None:
    steps = [(100.25, Step(0.25, Do.DELETE_LB_LINK, 2)), (100.75, Step(0.75, Do.CREATE_LB_LINK, 2))]
    assert link_lanes(steps, 100.0, 9.0) == {
        "LB link to proxy 2": [(-BEFORE_S, 0.25, "up"), (0.25, 0.75, "away"), (0.75, 9.0, "up")]
    }


def test_a_datapath_that_is_cut_and_monitors_without_cpu_have_lanes_too() -> None:
    steps = [
        (100.0, Step(0, Do.LOSE_PACKETS, 1)),
        (100.5, Step(0.5, Do.STARVE_MONITORS)),
        (101.0, Step(1, Do.REPORT_LATE, 1)),
        (102.0, Step(2, Do.MEND_DATAPATH, 1)),
        (103.0, Step(3, Do.FEED_MONITORS)),
    ]
    assert link_lanes(steps, 100.0, 9.0) == {
        "datapath of proxy 1": [(-BEFORE_S, 0.0, "up"), (0.0, 2.0, "away"), (2.0, 9.0, "up")],
        "CPU of the monitors": [(-BEFORE_S, 0.5, "up"), (0.5, 3.0, "away"), (3.0, 9.0, "up")],
    }


def test_every_step_can_be_drawn() -> None:
    for do in Do:
        if do is not Do.DELETE_SUPERSEDED_LINK:
            link_lanes([(100.0, Step(0, do, 1))], 100.0, 9.0)


def test_two_links_of_one_subnet_have_a_lane_each() -> None:
    steps = [(100.0, Step(0, Do.CREATE_LB_LINK, 1)), (100.5, Step(0.5, Do.DELETE_SUPERSEDED_LINK, 1))]
    lanes = link_lanes(steps, 100.0, 9.0)
    assert lanes["LB link to proxy 1"] == [(-BEFORE_S, 0.5, "up"), (0.5, 9.0, "none")]
    assert lanes["its new link to proxy 1"] == [(-BEFORE_S, 0.0, "none"), (0.0, 9.0, "up")]


def test_states_follow_the_decisions_of_each_target() -> None:
    def decision(ts: float, identifier: int, state: str) -> dict[str, object]:
        return {"ts": ts, "event": "decision", "identifier": identifier, "state_to": state}

    records = [
        decision(95.0, 1, "active"),
        decision(95.0, 2, "active"),
        {"ts": 96.0, "event": "ready"},
        decision(100.5, 1, "held"),
        decision(101.0, 1, "active"),
    ]
    lanes = state_lanes(_run(records=records), (1, 2), 5.0)
    assert lanes[1] == [(-BEFORE_S, 0.5, "active"), (0.5, 1.0, "held"), (1.0, 5.0, "active")]
    assert lanes[2] == [(-BEFORE_S, 5.0, "active")]


def test_answers_add_up_over_the_protocols() -> None:
    traffic = TrafficResult(
        started=1, ended=2, connections=[], flows=[], tcp_bins={"2": [1, 2], "1": [5]}, udp_bins={"2": [1, 1, 1]}
    )
    assert answer_series(traffic) == {1: [5], 2: [2, 3, 1]}


def test_the_marks_of_a_connection_are_its_pauses_and_how_it_broke() -> None:
    fine = Channel(0, 4, target=1, last_at=109.9, gaps=[(100.0, 0.5)])
    reset = Channel(1, 4, target=1, last_at=100.0, ending=RESET, ended_at=100.4)
    silent = Channel(2, 4, target=1, last_at=101.0)
    assert channel_marks(fine, 110.0) == [(100.0, 100.5, "gap")]
    assert channel_marks(reset, 110.0) == [(100.0, 100.4, "gap"), (100.4, 110.0, "broken")]
    assert channel_marks(silent, 110.0) == [(101.0, 110.0, "stalled")]


def test_the_marks_of_a_new_connection_are_its_wait_too() -> None:
    slow = Channel(0, 4, target=1, answered=5, last_at=109.9, opened_at=101.0, connect_s=3.0)
    waiting = Channel(1, 4, opened_at=107.0)
    mute = Channel(2, 4, opened_at=101.0, connect_s=0.5)
    refused = Channel(3, 4, opened_at=101.0, ending=RESET, ended_at=104.0)
    quick = Channel(4, 4, target=1, answered=5, last_at=109.9, opened_at=101.0, connect_s=0.1)
    assert channel_marks(slow, 110.0) == [(101.0, 104.0, "wait")]
    assert channel_marks(waiting, 110.0) == [(107.0, 110.0, "wait")]
    assert channel_marks(mute, 110.0) == [(101.0, 101.5, "wait"), (101.5, 110.0, "stalled")]
    assert channel_marks(refused, 110.0) == [(101.0, 104.0, "wait"), (104.0, 110.0, "broken")]
    assert channel_marks(quick, 110.0) == []


def test_a_controller_that_stands_still_has_a_lane() -> None:
    steps = [(100.0, Step(0, Do.STOP_CONTROLLER)), (105.0, Step(5, Do.CONTINUE_CONTROLLER))]
    assert link_lanes(steps, 100.0, 9.0) == {
        "controller": [(-BEFORE_S, 0.0, "up"), (0.0, 5.0, "away"), (5.0, 9.0, "up")]
    }


def test_a_target_that_joins_the_list_was_not_in_it_before() -> None:
    assert link_lanes([(101.0, Step(1, Do.ADD_TARGET, 4))], 100.0, 9.0) == {
        "registration of target 4": [(-BEFORE_S, 1.0, "away"), (1.0, 9.0, "up")]
    }


def test_a_run_that_failed_has_no_picture() -> None:
    assert draw(_run(error="it did not start")) == ""


def test_the_scale_of_answers_follows_what_was_before_and_not_the_peak_of_a_backlog() -> None:
    traffic = TrafficResult(started=97.0, ended=105.0, connections=[], flows=[], tcp_bins={}, udp_bins={})
    opening = [0] * 20
    series = {1: opening + [10] * 10 + [0] * 5 + [500], 2: opening + [5] * 16}
    assert answers_top(series, traffic, 100.0) == 16.0
    assert answers_top({}, traffic, 100.0) == 1.0


def test_every_axis_has_a_scale_with_its_unit() -> None:
    fine = [Channel(number, 4, target=1, answered=5, first_at=99.0, last_at=104.9) for number in range(3)]
    traffic = TrafficResult(
        started=99.0, ended=105.0, connections=fine, flows=[], tcp_bins={"1": [2] * 60}, udp_bins={}
    )
    steps = [(100.0, Step(0, Do.DELETE_LB_LINK, 1)), (103.0, Step(3, Do.CREATE_LB_LINK, 1))]
    picture = draw(_run(traffic=traffic, steps=steps))
    assert "time since the scenario began (seconds)" in picture
    assert ">0 s</text>" in picture
    assert ">32/s</text>" in picture, "1.6 times 2 answers in a tenth of a second"
    assert ">0/s</text>" in picture
    assert ">3 of target 1</text>" in picture


def test_states_are_written_into_their_lanes_where_they_fit() -> None:
    steps = [(100.0, Step(0, Do.DELETE_LB_LINK, 1)), (100.05, Step(0.05, Do.CREATE_LB_LINK, 1))]
    traffic = TrafficResult(started=99.0, ended=105.0, connections=[], flows=[], tcp_bins={"1": [2] * 60}, udp_bins={})
    picture = draw(_run(traffic=traffic, steps=steps))
    assert ">up</text>" in picture
    assert ">away</text>" not in picture, "a twentieth of a second has no room for a word"
