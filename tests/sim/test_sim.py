"""A short campaign, the same runs every time. `python -m tests.sim` plays as many more as wanted."""

import pytest

from tests.sim.campaign import report

RUNS = 160
CHUNK = 20


@pytest.mark.parametrize("first", range(1, RUNS + 1, CHUNK))
def test_everything_holds_whatever_goes_wrong(first: int) -> None:
    for seed in range(first, first + CHUNK):
        failure = report(seed)
        assert not failure, failure
