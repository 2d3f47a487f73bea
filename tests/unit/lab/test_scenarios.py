from dataclasses import replace
from typing import Any

import pytest

from lbguard.lab.affinity_scenarios import AFFINITY
from lbguard.lab.measure import Decided, Measurement
from lbguard.lab.promise import Promise
from lbguard.lab.scenario_model import Do, Scenario
from lbguard.lab.scenarios import ALL, BY_NAME, FAMILY_OUTAGE_S, LATE_REPORTS, SLOW_HEAL_S, UnknownScenarioError, select

GOOD = Measurement(opened=200, disturbed=100, median_gap_s=0.9, longest_gap_s=1.0)
PROXIES = (1, 2, 3)


def test_the_promises_are_those_of_the_project() -> None:
    held = {"lb-link", "lb-link-all", "double-link", "flap", "guard-crash", "rolling"}
    for name in held:
        assert BY_NAME[name].promise == Promise(broken_max=0, moved_max=0, median_over_outage_s=1.0)
    assert BY_NAME["target-link"].promise == Promise(broken_max=0, moved_max=None, longest_gap_s=3.0)
    assert BY_NAME["one-family"].promise == Promise(broken_max=0, moved_max=0)
    assert BY_NAME["link-gone"].promise == Promise(broken_max=0, moved_max=0)
    quiet = {"one-family-cut", "lossy", "starved", "ip-change", "lying-proxy"}
    for name in quiet:
        assert BY_NAME[name].promise == Promise(broken_max=0, moved_max=0, holds_max=0, withdrawals_max=0)
    late = BY_NAME["late-verdict"].promise
    assert late == Promise(broken_max=0, moved_max=0, holds_max=0, withdrawals_max=0, dropped_min=LATE_REPORTS)
    assert BY_NAME["heal-slow"].promise == Promise(broken_max=0, moved_max=0, withdrawals_max=0)
    assert BY_NAME["datapath-cut"].promise == Promise(broken_max=0, moved_max=0, withdrawals_max=0, lost_within_s=9.0)
    others = {"lb-link-dad", "target-link", "one-family", "link-gone"}
    affinity = {scenario.name for scenario in AFFINITY}
    assert BY_NAME.keys() == held | others | quiet | affinity | {"late-verdict", "heal-slow", "datapath-cut"}


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


DECIDED = Decided(holds=0, withdrawals=0, lost_after_s=4.0, dropped=6)


@pytest.mark.parametrize(
    ("scenario", "change", "word"),
    [
        ("lossy", {"holds": 1}, "targets held 1 times, 0 promised"),
        ("heal-slow", {"withdrawals": 2}, "targets withdrawn 2 times, 0 promised"),
        ("datapath-cut", {"lost_after_s": None}, "not every lost target was withdrawn"),
        ("datapath-cut", {"lost_after_s": 9.5}, "withdrawn after 9.50 s, within 9 s promised"),
        ("late-verdict", {"dropped": 5}, "5 verdicts dropped by name, 6 promised"),
    ],
)
def test_what_was_decided_can_miss_a_promise_too(scenario: str, change: dict[str, Any], word: str) -> None:
    promise = BY_NAME[scenario].promise
    assert promise.misses(GOOD, 0.5, DECIDED) == []
    (missed,) = promise.misses(GOOD, 0.5, replace(DECIDED, **change))
    assert word in missed


def test_a_promise_says_all_of_itself() -> None:
    assert BY_NAME["lb-link"].promise.sentence(0.5) == "0 broken, 0 moved, median gap at most 1.5 s"
    assert BY_NAME["late-verdict"].promise.sentence(0.5) == (
        "0 broken, 0 moved, 0 held, 0 withdrawn, at least 6 verdicts dropped by name"
    )
    assert "lost targets withdrawn within 9 s" in BY_NAME["datapath-cut"].promise.sentence(0.5)


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
    # A link that stays may carry nothing, and one may be back when its targets are withdrawn long since.
    there = {step.number for step in steps if step.do in (Do.CUT_DATAPATH, Do.DISABLE_LB_IPV6, Do.CREATE_LB_LINK)}
    expected = {proxy: 0 if proxy in scenario.lost_proxies and proxy not in there else 1 for proxy in PROXIES}
    assert links == expected


@pytest.mark.parametrize("scenario", ALL, ids=lambda scenario: scenario.name)
def test_the_declared_proxies_are_those_whose_links_change(scenario: Scenario) -> None:
    steps = scenario.steps(0.5, PROXIES)
    changed = {step.number for step in steps if "lb-link" in step.do or "superseded" in step.do}
    spoken_of = {step.number for step in steps if step.number}
    everybody = any(step.do in (Do.STARVE_MONITORS, Do.LIE) for step in steps)
    declared = set(scenario.disturbed_proxies(PROXIES))
    assert changed <= declared
    assert declared == set(PROXIES) if everybody else declared in (spoken_of, set())


@pytest.mark.parametrize("scenario", ALL, ids=lambda scenario: scenario.name)
def test_what_is_begun_is_ended_unless_it_is_for_good(scenario: Scenario) -> None:
    done = [step.do for step in scenario.steps(0.5, PROXIES)]
    for begin, end in (
        (Do.CUT_DATAPATH_IPV6, Do.MEND_DATAPATH),
        (Do.LOSE_PACKETS, Do.MEND_DATAPATH),
        (Do.STARVE_MONITORS, Do.FEED_MONITORS),
        (Do.LIE, Do.STOP_LYING),
        (Do.TELL_MESH_HEALS, Do.TELL_MESH_HEALED),
        (Do.BLOCK_TARGET_IPV6, Do.UNBLOCK_TARGET_IPV6),
        (Do.KILL_CONTROLLER, Do.START_CONTROLLER),
        (Do.STOP_CONTROLLER, Do.CONTINUE_CONTROLLER),
    ):
        assert done.count(begin) <= done.count(end)
    for_good = Do.CUT_DATAPATH in done or Do.DISABLE_LB_IPV6 in done
    assert for_good <= bool(scenario.lost_proxies)


def test_a_slow_heal_and_a_deaf_family_last_longer_than_the_window_that_would_withdraw() -> None:
    grace_window_s = 3.0
    assert grace_window_s < SLOW_HEAL_S
    assert grace_window_s < FAMILY_OUTAGE_S


def test_a_flap_is_five_outages_in_four_seconds() -> None:
    steps = BY_NAME["flap"].steps(0.5, PROXIES)
    assert [step.do for step in steps] == [Do.DELETE_LB_LINK, Do.CREATE_LB_LINK] * 5
    assert steps[-1].at_s <= 4.0


def test_the_crash_comes_in_the_middle_of_the_hold_and_ends_at_once() -> None:
    steps = {step.do: step.at_s for step in BY_NAME["guard-crash"].steps(1.0, PROXIES)}
    assert steps[Do.DELETE_LB_LINK] < steps[Do.KILL_CONTROLLER] < steps[Do.CREATE_LB_LINK]
    assert steps[Do.START_CONTROLLER] == steps[Do.KILL_CONTROLLER]


def test_selecting_nothing_means_the_default_and_all_means_all() -> None:
    of_links = ["lb-link", "target-link", "link-gone"]
    of_affinity = ["newcomers", "readmit", "one-family-gone", "removed", "added"]
    assert [scenario.name for scenario in select([])] == of_links + of_affinity
    assert select(["all"]) == list(ALL)
    assert [scenario.name for scenario in select(["rolling", "lb-link"])] == ["lb-link", "rolling"]


def test_an_unknown_scenario_is_refused_with_those_that_exist() -> None:
    with pytest.raises(UnknownScenarioError, match=r"no scenario nonsense; there are: lb-link, .*lying-proxy, .*, all"):
        select(["nonsense", "lb-link"])
