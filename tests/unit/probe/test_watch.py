import pytest

from lbguard.core.addr import parse_ip
from lbguard.core.model import ConnectionSubject, VerdictState
from lbguard.probe.connections import Connection, Pair
from lbguard.probe.failure_detector import DetectorSettings, FamilyRound, RoundsDetector
from lbguard.probe.watch import PairWatch, Watch

PAIRS = (
    Pair(parse_ip("10.0.0.1"), parse_ip("10.0.0.2")),
    Pair(parse_ip("10.0.0.1"), parse_ip("10.0.0.3")),
    Pair(parse_ip("fd00::1"), parse_ip("fd00::2")),
)


@pytest.fixture
def watch() -> Watch:
    """A connection with two IPv4 pairs and one IPv6 pair, in a round of four pings in two seconds."""
    connection = Connection(id="c", subject=ConnectionSubject(id="c"), pairs=PAIRS)
    watch = Watch(connection, 1, RoundsDetector(DetectorSettings(), [True, False]))
    watch.set_pairs([PairWatch(watch, n, len(pair.source) == 4, n, None) for n, pair in enumerate(PAIRS)])
    watch.begin_round(100.0, 2.0, 4)
    return watch


def test_a_round_has_its_times(watch: Watch) -> None:
    assert (watch.started, watch.deadline, watch.spacing_s, watch.late_limit_s) == (100.0, 102.0, 0.5, 0.25)


def test_replies_to_the_round_before_are_told_apart(watch: Watch) -> None:
    watch.pairs[0].pending[7] = 100.5
    watch.begin_round(102.0, 2.0, 4)
    assert (watch.pairs[0].pending, watch.pairs[0].previous) == ({}, {7: 100.5})
    watch.begin_round(104.0, 2.0, 4)
    assert watch.pairs[0].previous == {}


def test_silent_until_any_pair_answers_its_latest_ping(watch: Watch) -> None:
    for pair in watch.pairs:
        pair.pending = {1: 100.0, 2: 100.5}
        pair.last_sequence = 2
    assert watch.silent()
    del watch.pairs[2].pending[1]
    assert watch.silent()
    del watch.pairs[2].pending[2]
    assert not watch.silent()


@pytest.mark.parametrize(
    ("answering", "fast", "measured", "ends"),
    [
        ({0, 1, 2}, False, None, True),
        ({0, 1}, False, None, False),
        ({0, 1}, True, VerdictState.UP, True),  # in doubt, one whole family settles it
        ({2}, False, VerdictState.DOWN, True),
        ({0}, False, VerdictState.DOWN, False),
        ({0, 1}, False, VerdictState.DEGRADED, False),
    ],
)
def test_when_a_round_can_end_early(
    watch: Watch, answering: set[int], fast: bool, measured: VerdictState | None, ends: bool
) -> None:
    watch.fast, watch.measured = fast, measured
    for place in answering:
        watch.pairs[place].rtts = [0.001]
    assert watch.answered() is ends


def test_silence_counts_only_in_a_whole_round_that_was_tested(watch: Watch) -> None:
    watch.pairs[0].rtts = [0.001]
    assert watch.family_rounds(complete=True) == [FamilyRound(True, 2, 1, True), FamilyRound(False, 1, 1, True)]
    assert not any(family.counts for family in watch.family_rounds(complete=False))
    watch.untested = True
    assert not any(family.counts for family in watch.family_rounds(complete=True))


def test_evidence_puts_the_pairs_of_a_family_together(watch: Watch) -> None:
    for pair, rtts, last in zip(watch.pairs, ([0.3, 0.1], [0.2, 0.8], []), (101.0, 101.5, None), strict=True):
        pair.sent, pair.rtts, pair.last_reply = 4, rtts, last
    ipv4, ipv6 = watch.evidence(102.0)
    assert (ipv4.sent, ipv4.received, ipv4.since_reply_s) == (8, 4, 0.5)
    assert (ipv4.rtt_min_s, ipv4.rtt_median_s, ipv4.rtt_max_s) == (0.1, 0.25, 0.8)
    assert (ipv6.sent, ipv6.received, ipv6.since_reply_s, ipv6.rtt_max_s) == (4, 0, None, 0.0)


def test_the_median_of_an_odd_number_of_replies(watch: Watch) -> None:
    watch.pairs[2].rtts = [0.9, 0.1, 0.2]
    assert watch.evidence(102.0)[1].rtt_median_s == 0.2
