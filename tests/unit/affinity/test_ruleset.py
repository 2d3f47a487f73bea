"""Text of the affinity table: names, counts and what the options change; tests/netns/affinity has the kernel's side."""

import itertools
import re

import pytest

from lbguard.affinity import ruleset
from lbguard.affinity.contents import sets_of
from lbguard.affinity.names import AffinityOptions
from tests.steering import steering

OPTIONS = [
    AffinityOptions(every_flow=every, max_flows=flows, idle_s=idle, udp=udp)
    for every, flows, idle, udp in itertools.product((False, True), (1, 65_536), (10, 900), (False, True))
]


def test_different_options_and_versions_have_different_layouts() -> None:
    names = [ruleset.layout_chain(options) for options in OPTIONS]
    assert len(set(names)) == len(OPTIONS)
    assert f"-{ruleset.VERSION}-" in names[0]


@pytest.mark.parametrize("options", OPTIONS)
def test_every_rule_is_in_a_chain_that_is_made_and_counted(options: AffinityOptions) -> None:
    made = set(re.findall(r"^add chain inet lbguard-affinity (\S+)", "\n".join(ruleset.structure(options)), re.M))
    counts = ruleset.rule_counts(options)
    assert counts.keys() <= made
    assert sum(counts.values()) == len(ruleset.rules(options)) + len(ruleset.raw_rules(options))
    text = "\n".join(ruleset.rules(options))
    assert set(re.findall(r"(?:goto|jump) ([a-z]\w+)", text)) <= made
    assert ("udp" in text) is options.udp


@pytest.mark.parametrize("options", OPTIONS)
def test_every_set_that_a_rule_names_is_made(options: AffinityOptions) -> None:
    text = "\n".join(ruleset.structure(options))
    made = set(re.findall(r"^add (?:set|map) inet lbguard-affinity (\S+)", text, re.M))
    used = set(re.findall(r"@([a-z]\w+)", "\n".join(ruleset.rules(options)))) - {"th"}
    assert used <= made
    assert made - used == ({"learn"} if options.every_flow else set())
    raw = {
        dict(expression["attrs"])["NFTA_EXPR_DATA"]["attrs"][0][1]
        for rule in ruleset.raw_rules(options)
        for expression in rule.expressions
        if dict(expression["attrs"])["NFTA_EXPR_NAME"] in ("lookup", "dynset")
    }
    assert raw <= made
    assert len([name for name in made if name.startswith("flows_")]) == 2 * len(options.protocols)


def test_only_incidents_are_learnt_unless_all_flows_are() -> None:
    some, every = (ruleset.rules(AffinityOptions(every_flow=every)) for every in (False, True))
    assert sum("@learn" in rule for rule in some) == 4
    assert not any("@learn" in rule for rule in every)
    assert len(some) == len(every)


NAMES = ["a", "A", "a_5f", "_", "__", "ä", "x" * 200, "x" * 201, "x" * 246, "y" * 5000, "名" * 300, "a b; {}"]


def test_names_of_streams_never_meet_nor_break_out() -> None:
    made = [
        make(name, family) for name in NAMES for family in (4, 6) for make in (ruleset.steer_chain, ruleset.healthy_map)
    ]
    assert len(set(made)) == len(made)
    assert all(re.fullmatch(r"[a-z0-9]+_[46]_[A-Za-z0-9._-]+", name) for name in made)
    assert max(map(len, made)) <= 255
    fixed = [chain for options in OPTIONS for chain in ruleset.rule_counts(options)]
    assert not set(made) & set(fixed)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 100, 1023, 1024, 1025, 3000])
def test_healthy_targets_share_all_slots_evenly(count: int) -> None:
    marks = tuple(range(5001, 5001 + count))
    flush, add = ruleset.fill_healthy("s", 4, marks)
    assert flush.startswith("flush map")
    covered: list[int] = []
    shares: dict[int, int] = {}
    for first, last, mark in re.findall(r"(\d+)(?:-(\d+))? : (\d+)", add):
        span = range(int(first), int(last or first) + 1)
        covered += span
        shares[int(mark)] = shares.get(int(mark), 0) + len(span)
    assert covered == list(range(ruleset.CHOICES))
    assert max(shares.values()) - min(shares.values()) <= 1
    assert len(shares) == min(count, ruleset.CHOICES)


def test_with_no_healthy_target_the_slots_are_empty() -> None:
    assert len(ruleset.fill_healthy("s", 6, ())) == 1


def test_many_elements_are_written_in_several_commands() -> None:
    lines = ruleset.change_elements("marks", map(str, range(700)), map(str, range(1200)))
    assert [line.split()[0] for line in lines] == ["delete"] * 2 + ["add"] * 3
    assert sum(len(re.findall(r"\b\d+\b", line.split("{")[1])) for line in lines) == 1900
    assert ruleset.change_elements("marks", (), ()) == []


def test_removal_takes_the_map_of_the_chain_along() -> None:
    chain = ruleset.steer_chain("steer_4_healthy", 6)
    *_, last = ruleset.drop_steer_chain(chain)
    assert last.endswith(ruleset.healthy_map("steer_4_healthy", 6))


def test_the_chain_of_a_stream_has_as_many_rules_as_are_looked_for() -> None:
    rules = [line for line in ruleset.stream_objects("s") if line.startswith("add rule")]
    assert len(rules) == 2 * ruleset.STEER_RULES


def test_marks_lead_to_a_choice_only_where_a_target_is_healthy() -> None:
    sets = sets_of([steering("a", (1, 2), avoid=(1,)), steering("b", (3,), served=(3,), healthy=(), learning=False)])
    assert sets["marks"] == sets["served"] == {"1", "2", "3"}
    assert sets["learn"] == {"1", "2"}
    assert sets["avoid_4"] == {"1"}
    assert sets["steer_4"] == {"1 : jump steer_4_a", "2 : jump steer_4_a"}
