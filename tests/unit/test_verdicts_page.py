"""What docs/verdicts.md shows can be used as it stands, and what it lists is what there is."""

import re

import yaml

from lbguard.api.verdicts.policy import Policy
from lbguard.api.verdicts.queue import OVERLOADED
from lbguard.core.addr import parse_ip
from lbguard.lab.scenarios import ALL, Do
from lbguard.settings.probe import ProbeSettings
from lbguard.settings.verdicts import VerdictSettings
from tests.pages import blocks, text
from tests.unit.named_reasons import named_reasons

PAGE = "docs/verdicts.md"


def test_every_example_is_accepted_by_the_settings() -> None:
    documents = [yaml.safe_load(block) for block in blocks(PAGE, "yaml")]
    assert [list(document) for document in documents] == [["verdicts"], ["verdicts"], ["probe"]]
    for document in documents:
        for group, values in document.items():
            (VerdictSettings if group == "verdicts" else ProbeSettings).model_validate(values)


def test_the_rule_for_the_environment_says_the_same_as_the_mapping() -> None:
    (rules,) = re.findall(r'LBGUARD_VERDICTS__POLICY="([^"]+)"', text(PAGE))
    settings = VerdictSettings.model_validate({"policy": rules})
    _, subnets = Policy(settings.policy).admit(("spiffe://example.org/ns/red/sa/proxy",))
    assert parse_ip("172.16.9.9") in subnets
    assert parse_ip("fd00::9") in subnets
    assert parse_ip("192.168.0.1") not in subnets


def test_every_reason_that_the_core_gives_is_explained() -> None:
    events = named_reasons()["Events that changed nothing"]
    given = {name.removeprefix("verdict_") for name in events if name.startswith("verdict_")}
    assert {*given, OVERLOADED} == set(re.findall(r"(?m)^\| `([a-z_]+)` \| [a-z]", _section("What a verdict says")))


def test_every_scenario_with_verdicts_is_listed() -> None:
    speak = {Do.LIE, Do.REPORT_LATE}
    named = {s.name for s in ALL if s.monitored or any(step.do in speak for step in s.steps(0.5, (1, 2)))}
    assert named == set(re.findall(r"(?m)^\| `([a-z-]+)`:", _section("See it")))


def _section(heading: str) -> str:
    return text(PAGE).partition(f"## {heading}\n")[2].partition("\n## ")[0]
