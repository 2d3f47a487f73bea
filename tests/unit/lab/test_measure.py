from lbguard.lab.measure import (
    WAITED_FOR_SYN_S,
    Decided,
    Scope,
    count_decisions,
    is_moved,
    is_stalled,
    longest_gap,
    measure,
)
from lbguard.lab.traffic import RESET, Channel, TrafficResult

START = 100.0
END = 110.0


def _channel(
    target: int, *, family: int = 4, last_at: float = END, gaps: list[tuple[float, float]] | None = None
) -> Channel:
    return Channel(0, family, target=target, sent=200, answered=200, first_at=95.0, last_at=last_at, gaps=gaps or [])


def _reset(target: int) -> Channel:
    channel = _channel(target, last_at=100.0)
    channel.end(100.5, RESET)
    return channel


def _result(connections: list[Channel], flows: list[Channel] | None = None) -> TrafficResult:
    return TrafficResult(started=95.0, ended=END, connections=connections, flows=flows or [], tcp_bins={}, udp_bins={})


def test_an_undisturbed_run_has_nothing_broken() -> None:
    measured = measure(_result([_channel(1), _channel(2)]), START, Scope(disturbed=frozenset({1})))
    assert (measured.opened, measured.disturbed, measured.broken, measured.moved) == (2, 1, 0, 0)
    assert measured.longest_gap_s == 0.05
    assert measured.median_gap_s == 0.05


def test_a_reset_is_broken_and_moved() -> None:
    measured = measure(_result([_reset(1), _channel(2)]), START, Scope(disturbed=frozenset({1})))
    assert (measured.broken, measured.reset, measured.stalled, measured.moved) == (1, 1, 0, 1)


def test_none_is_broken_or_moved_that_is_not_disturbed() -> None:
    """Withdrawing target 1 moves a slot of target 3 as well, whose path is whole."""
    silent, wrong = _channel(3, last_at=END - 5), _channel(3)
    wrong.wrong = 1
    measured = measure(
        _result([_reset(1), _reset(3), silent, wrong, _channel(3), _channel(1, gaps=[(100.0, 0.4)])]),
        START,
        Scope(disturbed=frozenset({1})),
    )
    assert (measured.disturbed, measured.broken, measured.moved) == (5, 3, 3)
    assert measured.median_gap_s == 0.4, "of those whose path was broken"


def test_a_connection_that_is_silent_to_the_end_is_stalled_but_not_moved() -> None:
    silent = _channel(1, last_at=END - 5)
    measured = measure(_result([silent]), START, Scope(disturbed=frozenset({1})))
    assert (measured.broken, measured.stalled, measured.moved) == (1, 1, 0)
    assert is_stalled(silent, END)
    assert not is_stalled(_channel(1, last_at=END - 1), END)


def test_an_answer_of_another_target_is_moved_but_not_broken() -> None:
    wrong = _channel(1)
    wrong.wrong = 1
    assert is_moved(wrong)
    measured = measure(_result([wrong]), START, Scope(disturbed=frozenset({1})))
    assert (measured.broken, measured.moved) == (0, 1)


def test_connections_of_lost_targets_are_counted_apart() -> None:
    scope = Scope(disturbed=frozenset({1, 2}), lost=frozenset({1}))
    measured = measure(_result([_reset(1), _channel(1, last_at=101.0), _channel(1), _channel(2)]), START, scope)
    assert (measured.broken, measured.moved, measured.lost_connections, measured.lost_broken) == (0, 0, 3, 2)


def test_a_target_lost_in_one_family_is_counted_apart_in_that_family_alone() -> None:
    scope = Scope(disturbed=frozenset({1}), lost=frozenset({1}), family=6)
    six = _channel(1, family=6, last_at=END - 5)
    measured = measure(_result([six, _reset(1), _channel(2, family=6)]), START, scope)
    assert (measured.broken, measured.lost_connections, measured.lost_broken) == (1, 1, 1)


def test_a_lost_target_keeps_its_connections_until_its_drain_ends() -> None:
    scope = Scope(disturbed=frozenset({1}), lost=frozenset({1}), lost_from=START + 5)
    early, late, silent = _reset(1), _channel(1, last_at=END - 4), _channel(1, last_at=START)
    late.end(START + 5.1, RESET)
    measured = measure(_result([early, late, silent, _channel(1)]), START, scope)
    assert (measured.broken, measured.moved) == (1, 1), "the early one"
    assert (measured.lost_connections, measured.lost_broken, measured.lost_silent) == (3, 2, 1)


def test_gaps_from_before_the_start_do_not_count() -> None:
    channel = _channel(1, gaps=[(96.0, 3.0), (99.8, 0.5), (103.0, 0.3)])
    assert longest_gap(channel, START) == (0.5, 100.3)


def test_the_median_is_over_the_disturbed_survivors_and_the_longest_over_all() -> None:
    connections = [
        _channel(1, gaps=[(100.0, 0.6)]),
        _channel(1, gaps=[(100.0, 0.8)]),
        _channel(1, gaps=[(100.0, 1.0)]),
        _channel(2, gaps=[(100.0, 4.0)]),
        _reset(1),
    ]
    measured = measure(_result(connections), START, Scope(disturbed=frozenset({1})))
    assert measured.median_gap_s == 0.8
    assert measured.longest_gap_s == 4.0
    assert measured.recovered_s == 1.0


def test_a_scope_of_one_family_disturbs_only_that_family() -> None:
    connections = [_channel(1, family=6), _channel(1, family=4), _channel(2, family=6)]
    assert measure(_result(connections), START, Scope(disturbed=frozenset({1}), family=6)).disturbed == 1


def _newcomer(opened_at: float, connect_s: float | None = 0.01, **fields: float) -> Channel:
    channel = Channel(0, 4, target=1, answered=9, last_at=END, opened_at=opened_at, connect_s=connect_s)
    for name, value in fields.items():
        setattr(channel, name, value)
    return channel


def _of_newcomers(*channels: Channel) -> tuple[int, int, int]:
    result = _result([])
    result.newcomers = list(channels)
    measured = measure(result, START, Scope(disturbed=frozenset({1}), lost=frozenset({1}), stepped=START + 0.5))
    return measured.new_opened, measured.new_waited, measured.new_broken


def test_new_connections_count_from_the_first_step_on_whatever_their_target() -> None:
    early, fine, slow = _newcomer(START + 0.4, 3.0), _newcomer(START + 0.6), _newcomer(START + 1, 0.301)
    late = _newcomer(START + 1, 0.299)
    assert _of_newcomers(early, fine, slow, late) == (3, 1, 0)


def test_where_packets_queue_only_a_repeated_syn_is_a_wait() -> None:
    result = _result([])
    result.newcomers = [_newcomer(START + 1, 0.9), _newcomer(START + 1, 1.01)]
    scope = Scope(disturbed=frozenset({1}), waited_over_s=WAITED_FOR_SYN_S)
    assert measure(result, START, scope).new_waited == 1


def test_a_new_connection_that_never_was_connected_waits_and_is_not_broken() -> None:
    waiting = _newcomer(END - 6, None, target=0, answered=0, last_at=0.0)
    assert _of_newcomers(waiting, _newcomer(END - 0.05, None, target=0, answered=0, last_at=0.0)) == (2, 1, 0)
    result = _result([])
    result.newcomers = [waiting]
    assert measure(result, START, Scope(disturbed=frozenset({1}))).new_longest_connect_s == 6.0


def test_a_new_connection_is_broken_that_is_reset_silent_or_answered_by_two_targets() -> None:
    reset = _newcomer(START + 1)
    reset.end(START + 2, RESET)
    wrong = _newcomer(START + 1, wrong=1)
    silent = _newcomer(START + 1, last_at=END - 3)
    mute = _newcomer(START + 1, answered=0, target=0, last_at=0.0)
    fresh = _newcomer(END - 0.5, answered=0, target=0, last_at=0.0)
    assert _of_newcomers(reset, wrong, silent, mute, fresh) == (5, 0, 4)


def test_new_connections_of_a_target_that_left_or_joined_the_list_are_counted_a_moment_later() -> None:
    result = _result([])
    result.newcomers = [_newcomer(START + 0.69), _newcomer(START + 0.71), _newcomer(START + 2, target=2)]
    scope = Scope(disturbed=frozenset(), relisted=frozenset({1}), stepped=START + 0.5)
    assert measure(result, START, scope).new_on_relisted == 1


def test_udp_is_lost_when_it_is_not_answered() -> None:
    flow = Channel(0, 4, target=1, sent=100, answered=90, wrong=4)
    measured = measure(_result([], [flow]), START, Scope(disturbed=frozenset({1})))
    assert (measured.udp_sent, measured.udp_lost, measured.udp_moved) == (100, 10, 4)


def test_a_late_client_is_told() -> None:
    result = _result([_channel(1)])
    result.late_s = 0.7
    assert measure(result, START, Scope(disturbed=frozenset({1}))).client_late_s == 0.7


def test_decisions_are_counted_apart_for_targets_that_are_lost() -> None:
    def decision(ts: float, identifier: int, action: str) -> dict[str, object]:
        return {"ts": ts, "event": "decision", "identifier": identifier, "action": action}

    records = [
        decision(99.0, 3, "withdraw"),
        {"ts": 100.0, "event": "ready"},
        decision(100.5, 1, "hold"),
        decision(100.5, 3, "hold"),
        decision(103.5, 1, "withdraw"),
        decision(104.0, 3, "withdraw"),
        decision(104.0, 2, "withdraw"),
    ]
    assert count_decisions(records, 100.0, frozenset()) == Decided(holds=2, withdrawals=3)
    assert count_decisions(records, 100.0, frozenset({1, 2}), 7) == Decided(
        holds=1, withdrawals=1, lost_after_s=4.0, dropped=7
    )
    assert count_decisions(records, 100.0, frozenset({1, 4})).lost_after_s is None
    others = [decision(101.0, 1, "withdraw_family"), decision(106.0, 2, "remove")]
    assert count_decisions(others, 100.0, frozenset({1})).lost_after_s == 1.0
    assert count_decisions(others, 100.0, frozenset({1, 2})).lost_after_s == 6.0
