from typing import get_args

from lbguard.telemetry.metrics.targets import PerTarget
from tests.bench.series import made, scraped


def test_the_series_of_single_targets_can_be_left_out() -> None:
    counts = {per_target: scraped(made(per_target, 2, 100))[0] for per_target in get_args(PerTarget)}
    assert counts["all"] - counts["off"] == 6 * 200
    assert counts["active"] - counts["off"] == 6 * 2, "one of a hundred lost its path"
