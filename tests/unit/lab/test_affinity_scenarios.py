from dataclasses import replace

import pytest

from lbguard.lab.affinity_scenarios import AFFINITY, HASTY_S, LONG_OUTAGE_S, PATIENT_S
from lbguard.lab.measure import STALLED_AFTER_S, Decided, Measurement
from lbguard.lab.scenario_model import Do, Scenario
from lbguard.lab.scenarios import BY_NAME
from lbguard.settings.model import load

PROXIES = (1, 2, 3)
GOOD = Measurement(opened=200, disturbed=100, new_opened=500)
each = pytest.mark.parametrize("scenario", AFFINITY, ids=lambda scenario: scenario.name)


def _at(scenario: Scenario, do: Do) -> float:
    (at_s,) = (step.at_s for step in scenario.steps(0.5, PROXIES) if step.do is do)
    return at_s


def test_they_are_those_of_the_project() -> None:
    no_harm = {"newcomers", "readmit", "second-incident", "guard-stopped", "affinity-restart", "one-family-gone"}
    no_harm |= {"removed", "added"}
    assert {scenario.name for scenario in AFFINITY} == no_harm | {"affinity-full"}
    for name in no_harm:
        promise = BY_NAME[name].promise
        assert (promise.broken_max, promise.moved_max) == (0, 0)
        assert (promise.new_waited_max, promise.new_broken_max) == (0, 0)
    full = BY_NAME["affinity-full"].promise
    assert (full.broken_max, full.moved_max, full.new_waited_max, full.new_broken_max) == (0, 0, None, 0)


@each
def test_new_connections_are_opened_and_lbguard_accepts_the_settings(
    scenario: Scenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert scenario.newcomers
    for name, value in scenario.settings.items():
        monkeypatch.setenv(name, value)
    settings = load().settings
    assert settings.affinity.mode == "incident"
    assert settings.grace.window in (HASTY_S, PATIENT_S)


def test_the_outage_is_shorter_than_one_window_and_longer_than_the_other() -> None:
    assert HASTY_S < LONG_OUTAGE_S < PATIENT_S


@each
def test_targets_are_lost_where_the_window_is_shorter_than_the_outage(scenario: Scenario) -> None:
    hasty = scenario.settings["LBGUARD_GRACE__WINDOW"] == f"{HASTY_S:g}s"
    assert hasty == bool(scenario.lost_proxies)


def test_what_a_lost_target_had_is_reset_when_it_is_lost_and_not_later() -> None:
    assert BY_NAME["one-family-gone"].promise.lost_within_s == HASTY_S + 2.0
    assert BY_NAME["removed"].promise.lost_within_s == 7.0
    for name in ("one-family-gone", "removed"):
        assert BY_NAME[name].promise.lost_silent_max == 0


def test_the_list_changes_once_and_is_watched_until_the_table_has_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    removed, added = BY_NAME["removed"], BY_NAME["added"]
    for scenario in (removed, added):
        for name, value in scenario.settings.items():
            monkeypatch.setenv(name, value)
    settings = load().settings
    assert settings.drain.window == removed.drain_s == 5.0
    learn_s = settings.affinity.learn
    assert removed.observe_s > removed.drain_s + learn_s + STALLED_AFTER_S
    assert added.observe_s > learn_s + STALLED_AFTER_S
    assert [step.do for step in removed.steps(0.5, PROXIES)] == [Do.REMOVE_TARGET]
    assert [step.do for step in added.steps(0.5, PROXIES)] == [Do.ADD_TARGET]
    assert removed.relisted(0.5, PROXIES) == set(removed.lost_targets) == set(removed.targets)
    assert added.relisted(0.5, PROXIES) == set(added.unlisted)
    assert BY_NAME["newcomers"].relisted(0.5, PROXIES) == set()


def test_the_restart_comes_after_the_withdrawal_and_ends_before_the_link_is_back() -> None:
    scenario = BY_NAME["affinity-restart"]
    killed, started = _at(scenario, Do.KILL_CONTROLLER), _at(scenario, Do.START_CONTROLLER)
    assert HASTY_S < killed < started < _at(scenario, Do.CREATE_LB_LINK)


def test_the_controller_stands_still_for_the_whole_outage() -> None:
    scenario = BY_NAME["guard-stopped"]
    assert _at(scenario, Do.STOP_CONTROLLER) < _at(scenario, Do.DELETE_LB_LINK)
    assert _at(scenario, Do.CREATE_LB_LINK) < _at(scenario, Do.CONTINUE_CONTROLLER)


def test_the_second_incident_begins_in_the_first_and_a_third_proxy_stays() -> None:
    scenario = BY_NAME["second-incident"]
    times = [step.at_s for step in scenario.steps(0.5, PROXIES) if step.number == 1]
    (second, _) = (step.at_s for step in scenario.steps(0.5, PROXIES) if step.number == 2)
    assert times[0] < second < times[1]
    assert scenario.proxies_min == 3


@pytest.mark.parametrize(
    ("measured", "words"),
    [
        (
            replace(GOOD, new_waited=1, new_longest_connect_s=3.2),
            "1 of 500 new connections waited, up to 3.20 s",
        ),
        (replace(GOOD, new_broken=2), "2 of 500 new connections broken"),
        (replace(GOOD, new_opened=0), "no new connection was opened, so nothing was shown"),
    ],
)
def test_each_miss_is_said_in_words(measured: Measurement, words: str) -> None:
    promise = BY_NAME["newcomers"].promise
    assert promise.misses(GOOD, 0.5) == []
    (missed,) = promise.misses(measured, 0.5)
    assert missed.removesuffix(", 0 promised") == words


REMOVED = Measurement(opened=200, disturbed=50, lost_connections=50, lost_broken=50, new_opened=600)
ADDED = Measurement(opened=200, new_opened=400, new_on_relisted=30)
OUT = Decided(lost_after_s=5.0)


@pytest.mark.parametrize(
    ("name", "kept", "missing", "words"),
    [
        (
            "removed",
            REMOVED,
            replace(REMOVED, new_on_relisted=2),
            "2 new connections reached the removed target later than 200 ms, 0 promised",
        ),
        (
            "removed",
            REMOVED,
            replace(REMOVED, lost_silent=3),
            "3 of 50 connections of lost targets got no reset, 0 promised",
        ),
        (
            "added",
            ADDED,
            replace(ADDED, new_on_relisted=0),
            "0 new connections reached the added target, at least 1 promised",
        ),
        ("added", ADDED, replace(ADDED, disturbed=4, broken=4), "4 connections broken, 0 promised"),
    ],
)
def test_a_change_of_the_list_can_miss_too(name: str, kept: Measurement, missing: Measurement, words: str) -> None:
    promise = BY_NAME[name].promise
    assert promise.misses(kept, 0.5, OUT) == []
    assert promise.misses(missing, 0.5, OUT) == [words]


def test_where_waiting_is_not_promised_it_is_no_miss() -> None:
    assert BY_NAME["affinity-full"].promise.misses(replace(GOOD, new_waited=100), 0.5) == []
    assert BY_NAME["lb-link"].promise.misses(replace(GOOD, new_broken=9, new_waited=9), 0.5) == []


def test_the_promise_names_new_connections() -> None:
    sentence = BY_NAME["newcomers"].promise.sentence(0.5)
    assert sentence == "0 broken, 0 moved, 0 new ones wait over 300 ms, 0 new ones broken"
    assert BY_NAME["added"].promise.sentence(0.5) == f"{sentence}, new ones reach the added target"
    assert BY_NAME["removed"].promise.sentence(0.5) == (
        "0 broken, 0 moved, lost targets withdrawn within 7 s, 0 connections of lost targets without a reset,"
        " 0 new ones wait over 300 ms, 0 new ones broken, 0 new ones reach the removed target after 200 ms"
    )
