"""Texts for people use the field's terms: no known figure of speech, and no question word at their beginning."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

import lbguard
from lbguard.cli.main import app
from lbguard.probe.metrics import list_probe_metrics
from lbguard.settings.model import Settings
from lbguard.settings.sources import leaves
from lbguard.telemetry.metrics.guard import list_metrics
from tests.pages import ROOT, pages, prose

PACKAGE = Path(lbguard.__file__).parent
GENERATED = PACKAGE / "api/gen"

FORBIDDEN = {
    r"(?:no|some|any)body": "name the program, the peer or the user",
    r"who(?:m|so)?ever|whatever": "name the subject",
    r"in vain|for good and all": "without effect",
    r"hears?|heard": "receive",
    r"told|tells? of|word of": "report, inform",
    r"(?:stands?|stood) (?:in|at|by|there|beside|before|between|on|still)": "is",
    r"(?<!here )(?:is|are) no (?!longer|more than|better|worse|\w+ than)\w+": "is not a",
    r"mend(?:s|ed|ing)?": "correct, repair",
    r"culprit|suspect": "cause",
    r"disbeliev\w+": "ignore",
    r"as good as|all the same|in no hurry|by a hair": "say it plainly",
    r"vanish\w*": "disappear, be removed",
    r"tear\w* hair|rides? on|looks? after|looked after": "say it plainly",
    r"must needs|shall": "has to",
    r"goes away|gone away|went away": "be removed, stop",
    r"somewhere else": "elsewhere",
    r"anew": "again",
}
"""Patterns that a text for people does not contain, each with the plain words."""

OPENING = re.compile(r"(?:What|Who|Whose|Whom|How|Where|Whether|When|Which|Why)\b")


def faults(text: str) -> list[str]:
    """Return the forbidden words of a text with their surroundings, and the plain words."""
    flat = " ".join(text.split())
    return [
        f"{flat[max(0, found.start() - 40) : found.end() + 30]!r}: {plain}"
        for pattern, plain in FORBIDDEN.items()
        for found in re.finditer(rf"\b(?:{pattern})\b", flat, re.IGNORECASE)
    ]


def helps() -> Iterator[tuple[str, str]]:
    """Yield every help text of the command line with the name of its command or option."""
    group: Any = typer.main.get_group(app)
    yield "lbguard", group.help
    for name, command in group.commands.items():
        yield name, command.help or ""
        for parameter in command.params:
            yield f"{name} {parameter.name}", getattr(parameter, "help", None) or ""


def manifests() -> list[str]:
    """Return the files of deploy/ that people read, those of other formats than Markdown."""
    kinds = {".yaml", ".tpl", ".txt", ""}
    found = [path for path in (ROOT / "deploy").rglob("*") if path.is_file() and path.suffix in kinds]
    return sorted(str(path.relative_to(ROOT)) for path in [*found, ROOT / "Dockerfile", ROOT / "Makefile"])


def alerts() -> Iterator[tuple[str, str]]:
    """Yield the texts of every alert."""
    rules = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yaml").read_text())
    for group in rules["groups"]:
        for rule in group["rules"]:
            for kind in ("summary", "description"):
                yield f"{rule['alert']} {kind}", rule["annotations"][kind]


def panels() -> Iterator[tuple[str, str]]:
    """Yield the title and the description of every panel of the dashboards."""
    for path in sorted((ROOT / "deploy/grafana").glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            yield f"{path.name} {panel['title']}", f"{panel.get('description', '')} {panel['title']}"


def docstrings() -> Iterator[tuple[str, str]]:
    """Yield the docstrings of all modules, classes, functions and attributes of lbguard, generated code aside."""
    for file in sorted(PACKAGE.rglob("*.py")):
        if GENERATED in file.parents:
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            body = getattr(node, "body", None)
            for before, statement in zip([None, *body], body, strict=False) if isinstance(body, list) else ():
                if not isinstance(statement, ast.Expr) or not isinstance(statement.value, ast.Constant):
                    continue
                documents = before is None or isinstance(before, ast.Assign | ast.AnnAssign)
                if documents and isinstance(statement.value.value, str):
                    yield f"{file.relative_to(PACKAGE)}:{statement.lineno}", statement.value.value


def test_the_search_finds_what_it_looks_for() -> None:
    assert faults("Nobody serves the socket.")
    assert faults("It is no regular file.")
    assert not faults("There is no socket, and it is no longer served.")
    assert OPENING.match("What differs") is not None
    assert len([*docstrings()]) > 1000
    assert len([*helps()]) > 40
    assert len([*panels()]) > 60
    assert len([*alerts()]) > 60


@pytest.mark.parametrize("page", [*pages(), "CHANGELOG.md", "CONTRIBUTING.md"])
def test_pages_use_plain_words(page: str) -> None:
    assert not faults(re.sub(r"`[^`]*`|\]\([^)]*\)", "", prose(page)))


@pytest.mark.parametrize("file", manifests())
def test_manifests_use_plain_words(file: str) -> None:
    assert not faults((ROOT / file).read_text())


def test_help_alerts_and_panels_use_plain_words() -> None:
    texts = [*helps(), *alerts(), *panels()]
    assert not {name: found for name, text in texts if (found := faults(text))}


def test_short_texts_name_their_subject_first() -> None:
    texts = [*helps(), *alerts(), *panels()]
    texts += [(leaf.name, leaf.help) for leaf in leaves(Settings)]
    texts += [(spec.name, spec.help) for spec in (*list_metrics(), *list_probe_metrics())]
    assert not [(name, text) for name, text in texts if OPENING.match(text)]


def test_docstrings_start_with_a_verb_or_a_noun() -> None:
    assert not [(place, text.splitlines()[0]) for place, text in docstrings() if OPENING.match(text.strip())]
