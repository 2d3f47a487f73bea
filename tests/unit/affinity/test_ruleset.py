"""Text of the affinity table: names, counts and what the options change; tests/netns/affinity has the kernel's side."""

import itertools
import re

import pytest

from lbguard.affinity import names, ruleset
from lbguard.affinity.choice import sweep_rules
from lbguard.affinity.names import AffinityOptions
from lbguard.affinity.raw_rules import raw_rules

OPTIONS = [
    AffinityOptions(every_flow=every, max_flows=flows, idle_s=idle, udp=udp)
    for every, flows, idle, udp in itertools.product((False, True), (1, 65_536), (10, 900), (False, True))
]


def test_different_options_and_versions_have_different_layouts() -> None:
    layouts = [names.layout_chain(options) for options in OPTIONS]
    assert len(set(layouts)) == len(OPTIONS)
    assert f"-{names.VERSION}-" in layouts[0]


FILLINGS = [
    filled
    for count in range(len(ruleset.EXCEPTIONAL_SETS) + 1)
    for filled in itertools.combinations(ruleset.EXCEPTIONAL_SETS, count)
]


def rules_text(options: AffinityOptions) -> str:
    """Return every rule that nft writes, with all that incidents add."""
    return "\n".join(ruleset.rules(options) + ruleset.exceptional_rules(options, ruleset.EXCEPTIONAL_SETS))


@pytest.mark.parametrize("options", OPTIONS)
def test_every_rule_is_in_a_chain_that_is_made_and_counted(options: AffinityOptions) -> None:
    lines = "\n".join(ruleset.hook() + ruleset.structure(options))
    made = set(re.findall(r"^add chain inet lbguard-affinity (\S+)", lines, re.M))
    fixed = ruleset.rule_counts(options)
    assert sum(fixed.values()) == len(ruleset.rules(options)) + len(raw_rules(options))
    for filled in FILLINGS:
        counts = ruleset.rule_counts(options, filled)
        added = [line for line in ruleset.exceptional_rules(options, filled) if line.startswith("add rule")]
        assert counts.keys() <= made
        assert sum(counts.values()) == sum(fixed.values()) + len(added)
    text = rules_text(options)
    assert set(re.findall(r"(?:goto|jump) ([a-z]\w+)", text)) <= made
    assert ("udp" in text) is options.udp


@pytest.mark.parametrize("options", OPTIONS)
def test_every_set_that_a_rule_names_is_made(options: AffinityOptions) -> None:
    text = "\n".join(ruleset.structure(options))
    made = set(re.findall(r"^add (?:set|map) inet lbguard-affinity (\S+)", text, re.M))
    used = set(re.findall(r"@([a-z]\w+)", rules_text(options))) - {"th"}
    assert used <= made
    assert made - used == ({"learn"} if options.every_flow else set())
    raw = {
        dict(expression["attrs"])["NFTA_EXPR_DATA"]["attrs"][0][1]
        for rule in raw_rules(options)
        for expression in rule.expressions
        if dict(expression["attrs"])["NFTA_EXPR_NAME"] in ("lookup", "dynset")
    }
    assert raw <= made
    assert len([name for name in made if name.startswith("flows_")]) == 2 * len(options.protocols)


@pytest.mark.parametrize("options", OPTIONS)
def test_quiet_times_have_no_rule_that_looks_in_an_exceptional_set(options: AffinityOptions) -> None:
    quiet = "\n".join(ruleset.rules(options) + ruleset.exceptional_rules(options, ()))
    assert not [name for name in ruleset.EXCEPTIONAL_SETS if f"@{name} " in quiet]
    for name in ruleset.EXCEPTIONAL_SETS:
        lines = ruleset.exceptional_rules(options, [name])
        looks = [line for line in lines if f"@{name} " in line]
        assert bool(looks) is not (name == "learn" and options.every_flow)
        # The chains are emptied, or rules would gather there.
        assert {line.split()[4] for line in looks} <= {line.split()[4] for line in lines if line.startswith("flush")}


def test_only_incidents_are_learnt_unless_all_flows_are() -> None:
    some, every = (ruleset.exceptional_rules(AffinityOptions(every_flow=every), ["learn"]) for every in (False, True))
    assert sum("@learn" in rule for rule in some) == 4
    assert not any("@learn" in rule for rule in every)
    assert len(some) == len(every)
    calm = ruleset.exceptional_rules(AffinityOptions(every_flow=True), [])
    assert sum("goto learn_" in rule for rule in calm) == 4


NAMES = ["a", "A", "a_5f", "_", "__", "ä", "x" * 200, "x" * 201, "x" * 246, "y" * 5000, "名" * 300, "a b; {}"]


def test_names_of_streams_never_meet_nor_break_out() -> None:
    made = [
        make(name, family) for name in NAMES for family in (4, 6) for make in (names.steer_chain, names.healthy_map)
    ]
    assert len(set(made)) == len(made)
    assert all(re.fullmatch(r"[a-z0-9]+_[46]_[A-Za-z0-9._-]+", name) for name in made)
    assert max(map(len, made)) <= 255
    fixed = [chain for options in OPTIONS for chain in ruleset.rule_counts(options, ruleset.EXCEPTIONAL_SETS)]
    assert not set(made) & set(fixed)
    assert not any(map(names.is_of_stream, fixed))
    assert all(names.is_of_stream(names.steer_chain(name, family)) for name in NAMES for family in (4, 6))


def test_the_sweep_returns_with_the_first_target_that_has_a_route() -> None:
    assert sum(rule.startswith("sweep_4 ") for rule in sweep_rules()) == 64
    assert sum(rule.startswith("sweep_6 ") for rule in sweep_rules()) == 64
    reachable = 'fib daddr . mark oif exists fib daddr . mark oifname != "lbguard-park" return'
    assert all(rule.endswith(reachable) for rule in sweep_rules())
