import json

from lbguard.lab.traffic import BIN_S, CLOSED, OPEN, RESET, AnswerCounts, Channel, TrafficResult, paused_s


def test_the_first_answer_names_the_target_of_a_channel() -> None:
    channel = Channel(0, 4)
    channel.answer(10.0, 3)
    channel.answer(10.05, 3)
    assert (channel.target, channel.answered, channel.wrong, channel.first_at, channel.gaps) == (3, 2, 0, 10.0, [])


def test_answers_of_another_target_are_counted_as_wrong() -> None:
    channel = Channel(0, 6)
    channel.answer(10.0, 3)
    channel.answer(10.05, 1, count=2)
    assert (channel.target, channel.answered, channel.wrong) == (3, 3, 2)


def test_a_pause_is_noted_and_a_hiccup_is_not() -> None:
    channel = Channel(0, 4)
    for now in (10.0, 10.1, 11.0):
        channel.answer(now, 1)
    assert channel.gaps == [(10.1, 0.9000000000000004)]


def test_only_the_first_ending_counts() -> None:
    channel = Channel(0, 4)
    assert channel.ending == OPEN
    channel.end(12.0, RESET)
    channel.end(13.0, CLOSED)
    assert (channel.ending, channel.ended_at) == (RESET, 12.0)


def test_answers_fall_into_bins_of_a_tenth_of_a_second() -> None:
    counts = AnswerCounts(100.0)
    counts.add(100.05, 1)
    counts.add(100.06, 1, count=2)
    counts.add(100.25, 2)
    assert BIN_S == 0.1
    assert counts.series(100.35) == {"1": [3, 0, 0, 0], "2": [0, 0, 1, 0]}


def test_a_result_survives_json() -> None:
    channel = Channel(0, 4)
    for now in (1.0, 2.0):
        channel.answer(now, 1)
    waiting = Channel(1, 6, interval_s=0.2, opened_at=3.0)
    connected = Channel(2, 4, interval_s=0.2, opened_at=3.0, connect_s=0.01)
    result = TrafficResult(
        started=1.0,
        ended=9.0,
        connections=[channel],
        flows=[],
        tcp_bins={"1": [1, 2]},
        udp_bins={},
        late_s=0.5,
        newcomers=[waiting, connected],
    )
    assert TrafficResult.from_json(json.loads(json.dumps(result.to_json()))) == result


def test_a_channel_that_sends_seldom_has_longer_hiccups() -> None:
    channel = Channel(0, 4, interval_s=0.2)
    for now in (10.0, 10.5, 11.2):
        channel.answer(now, 1)
    assert [start for start, _ in channel.gaps] == [10.5]


def test_a_wait_is_without_the_pauses_of_the_client() -> None:
    pauses = [(1.0, 1.5), (2.0, 2.25), (7.0, 9.0)]
    assert paused_s(pauses, 1.25, 3.0) == 0.5
    assert paused_s(pauses, 3.0, 7.0) == 0.0
    assert paused_s(pauses, 7.5, 8.0) == 0.5
