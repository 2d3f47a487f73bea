"""What docs/verdicts.md shows can be used as it stands, and what it lists is what there is."""

import re

import yaml

from lbguard.api.verdicts.queue import OVERLOADED
from lbguard.lab.scenario_model import Do
from lbguard.lab.scenarios import ALL
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


def test_the_rules_for_the_environment_say_the_same_as_the_mapping() -> None:
    (rules,) = re.findall(r'LBGUARD_VERDICTS__POLICY="([^"]+)"', text(PAGE))
    first, *_, last = VerdictSettings.model_validate(yaml.safe_load(blocks(PAGE, "yaml")[0])["verdicts"]).policy
    assert VerdictSettings.model_validate({"policy": rules}).policy == (first, last)


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
