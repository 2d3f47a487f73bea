from dataclasses import replace
from typing import Any

import pytest

from lbguard.lab.measure import Measurement
from lbguard.lab.scenarios import ALL, BY_NAME, Do, Promise, Scenario, UnknownScenarioError, select

GOOD = Measurement(opened=200, disturbed=100, median_gap_s=0.9, longest_gap_s=1.0)
PROXIES = (1, 2, 3)


def test_the_promises_are_those_of_the_project() -> None:
    held = {"lb-link", "lb-link-all", "double-link", "flap", "guard-crash", "rolling"}
    for name in held:
        assert BY_NAME[name].promise == Promise(broken_max=0, moved_max=0, median_over_outage_s=1.0)
    assert BY_NAME["target-link"].promise == Promise(broken_max=0, moved_max=None, longest_gap_s=3.0)
    assert BY_NAME["one-family"].promise == Promise(broken_max=0, moved_max=0)
    assert BY_NAME["link-gone"].promise == Promise(broken_max=0, moved_max=0)
    assert BY_NAME.keys() == held | {"lb-link-dad", "target-link", "one-family", "link-gone"}


def test_a_kept_promise_has_no_misses() -> None:
    assert BY_NAME["lb-link"].promise.misses(GOOD, 0.5) == []


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"broken": 1}, "1 connections broken, 0 promised"),
        ({"moved": 2}, "2 connections moved"),
        ({"median_gap_s": 1.51}, "median gap 1.51 s, at most 1.50 s promised"),
        ({"disturbed": 0}, "nothing was shown"),
        ({"opened": 0}, "nothing was shown"),
    ],
)
def test_each_miss_is_said_in_words(change: dict[str, Any], word: str) -> None:
    (missed,) = BY_NAME["lb-link"].promise.misses(replace(GOOD, **change), 0.5)
    assert word in missed


def test_the_median_may_be_the_outage_and_one_second_more() -> None:
    promise = BY_NAME["lb-link"].promise
    assert promise.misses(replace(GOOD, median_gap_s=3.0), 2.0) == []
    assert promise.misses(replace(GOOD, median_gap_s=3.1), 2.0) != []


def test_the_longest_gap_must_stay_under_its_bound() -> None:
    promise = BY_NAME["target-link"].promise
    assert promise.misses(replace(GOOD, longest_gap_s=2.99), 0.5) == []
    assert promise.misses(replace(GOOD, longest_gap_s=3.0), 0.5) != []


@pytest.mark.parametrize("scenario", ALL, ids=lambda scenario: scenario.name)
def test_steps_are_in_order_of_time_and_possible(scenario: Scenario) -> None:
    steps = scenario.steps(0.5, PROXIES)
    assert steps
    assert [step.at_s for step in steps] == sorted(step.at_s for step in steps)
    links = dict.fromkeys(PROXIES, 1)
    for step in steps:
        if step.do is Do.CREATE_LB_LINK:
            links[step.number] += 1
        elif step.do in (Do.DELETE_LB_LINK, Do.DELETE_SUPERSEDED_LINK):
            links[step.number] -= 1
            assert links[step.number] >= 0
    expected = {proxy: 0 if proxy in scenario.lost_proxies else 1 for proxy in PROXIES}
    assert links == expected


@pytest.mark.parametrize("scenario", ALL, ids=lambda scenario: scenario.name)
def test_the_declared_proxies_are_those_whose_links_change(scenario: Scenario) -> None:
    changed = {step.number for step in scenario.steps(0.5, PROXIES) if "lb-link" in step.do or "superseded" in step.do}
    assert changed == set(scenario.disturbed_proxies(PROXIES))


def test_a_flap_is_five_outages_in_four_seconds() -> None:
    steps = BY_NAME["flap"].steps(0.5, PROXIES)
    assert [step.do for step in steps] == [Do.DELETE_LB_LINK, Do.CREATE_LB_LINK] * 5
    assert steps[-1].at_s <= 4.0


def test_the_crash_comes_in_the_middle_of_the_hold_and_ends_a_fifth_of_a_second_later() -> None:
    steps = {step.do: step.at_s for step in BY_NAME["guard-crash"].steps(1.0, PROXIES)}
    assert steps[Do.DELETE_LB_LINK] < steps[Do.KILL_CONTROLLER] < steps[Do.CREATE_LB_LINK]
    assert steps[Do.START_CONTROLLER] - steps[Do.KILL_CONTROLLER] == pytest.approx(0.2)


def test_selecting_nothing_means_the_default_and_all_means_all() -> None:
    assert [scenario.name for scenario in select([])] == ["lb-link", "target-link", "link-gone"]
    assert select(["all"]) == list(ALL)
    assert [scenario.name for scenario in select(["rolling", "lb-link"])] == ["lb-link", "rolling"]


def test_an_unknown_scenario_is_refused_with_those_that_exist() -> None:
    with pytest.raises(UnknownScenarioError, match=r"no scenario nonsense; there are: lb-link, .*rolling, all"):
        select(["nonsense", "lb-link"])
