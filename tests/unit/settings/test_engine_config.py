from lbguard.core.model import Condition
from lbguard.settings.engine_config import engine_config
from lbguard.settings.model import load


def test_the_engine_gets_what_was_set() -> None:
    settings = load(
        flags={
            "mode": "observe",
            "grace.window": "2s",
            "grace.verdict_window": "4s",
            "freeze.limit": "90s",
            "damping.half_life": "7s",
            "availability.grace": "1500ms",
            "links.superseded": "ignore",
            "links.exclude": "eth0",
            "neighbors.probe_interval": "0",
            "neighbors.tune": "false",
            "evidence.soft_budget": "0.25",
            "evidence.neighbor_failures": "5",
        }
    ).settings
    config = engine_config(settings)
    assert config.observe
    assert (config.grace.window_s, config.grace.by_cause_s) == (2.0, {Condition.VERDICT_DOWN: 4.0})
    assert (config.freeze.limit_s, config.damping.half_life_s, config.availability_grace_s) == (90.0, 7.0, 1.5)
    assert (config.superseded_link_down, config.excluded_links) == (False, ("eth0",))
    assert config.neighbor_failures_needed == 5
    assert (config.neighbor_probe_interval_s, config.tune_neighbors, config.soft_budget) == (0.0, False, 0.25)
