"""The pages for people: their links lead somewhere, their commands exist, and a test runs each or says why not."""

import ast
import re
import shlex
from collections.abc import Iterator, Sequence

import pytest
import typer.main
import yaml

from lbguard.cli.main import app
from lbguard.core.fsm import TRANSITIONS, Input
from lbguard.core.model import ADMITTED, Condition, TargetState
from tests.pages import ROOT, blocks, fenced, pages, prose, run_blocks, text

COMMANDS = typer.main.get_group(app).commands

RUN_BY = {
    "README.md": "tests/netns/test_readme.py",
    "docs/deployment.md": "tests/deploy/test_deployment_page.py",
    "docs/recording.md": "tests/unit/test_recording_docs.py",
    "docs/tuning.md": "tests/unit/test_recording_docs.py",
}
"""Which test runs the `sh` blocks of a page."""

NOT_RUN = {"sh cluster": "needs a cluster", "sh build": "builds an image", "sh make": "calls make"}
"""The kinds of blocks of commands that no test runs as they stand, and why."""

NO_COMMANDS = {"yaml", "json", "python", "mermaid", "text", "promql"}


@pytest.mark.parametrize("page", pages())
def test_every_block_is_of_a_known_kind(page: str) -> None:
    assert {kind for kind, _ in fenced(page)} <= {"sh", *NOT_RUN, *NO_COMMANDS}


def pages_run_by(module: str) -> set[str]:
    """Return the pages whose blocks the tests of a module run."""
    tests = [
        node
        for node in ast.parse((ROOT / module).read_text()).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    ]
    return {
        str(call.args[0].value)
        for test in tests
        for call in ast.walk(test)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == run_blocks.__name__
        if isinstance(call.args[0], ast.Constant)
    }


@pytest.mark.parametrize("page", [page for page in pages() if blocks(page, "sh")])
def test_commands_are_run_by_a_test(page: str) -> None:
    assert page in RUN_BY, f"run the sh blocks of {page} in a test and name it in RUN_BY, or mark them: {NOT_RUN}"
    assert page in pages_run_by(RUN_BY[page]), f"no test in {RUN_BY[page]} calls run_blocks({page!r}, ...)"


def test_no_page_is_listed_in_vain() -> None:
    assert {page for page in RUN_BY if not blocks(page, "sh")} == set()


@pytest.mark.parametrize("page", pages())
def test_commands_stand_in_fenced_blocks(page: str) -> None:
    lines = [line for line in prose(page).splitlines() if re.match(r"(?: {4}|\t)\$? ?(?:lbguard|kubectl|helm) ", line)]
    assert not lines, "fence them, so that their kind can be told"


@pytest.mark.parametrize("page", [page for page in pages() if blocks(page, "sh make")])
def test_targets_of_make_exist(page: str) -> None:
    targets = set(re.findall(r"(?m)^([a-z]+):", (ROOT / "Makefile").read_text()))
    called = re.findall(r"(?m)^make ([a-z]+)", "\n".join(blocks(page, "sh make")))
    assert called
    assert set(called) <= targets


def calls(words: str) -> Iterator[list[str]]:
    """Yield the arguments of every call of lbguard in lines of a shell."""
    for line in words.replace("\\\n", " ").splitlines():
        # What is not the shell's (a template of a chart, a sentence in a comment) may have lonely quotes.
        match = re.search(r"(?:^|[\s/])lbguard ([a-z][a-z-]*(?:[^|&;<#\n]*))", line)
        if match is not None and match[1].count("'") % 2 == 0 and match[1].count('"') % 2 == 0:
            yield shlex.split(match[1])


def unknown(arguments: Sequence[str]) -> list[str]:
    """Return what lbguard does not know of these arguments: the command, or options."""
    name, *rest = arguments
    if name not in COMMANDS:
        return [name]
    options = {"-h", "--help"}
    for parameter in COMMANDS[name].params:
        options |= {*parameter.opts, *parameter.secondary_opts}
    return [word for word in rest if word.startswith("-") and word.partition("=")[0] not in options]


@pytest.mark.parametrize("page", pages())
def test_commands_and_options_exist(page: str) -> None:
    inline = re.findall(r"`(lbguard [^`]+)`", prose(page).replace("\n", " "))
    for command in inline:
        words = shlex.split(command)[1:]
        if words[0] != "COMMAND":
            assert not unknown(words), command
    for kind, contents in fenced(page):
        if kind.startswith("sh"):
            for arguments in calls(contents):
                assert not unknown(arguments), arguments


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_of_the_help_use_options_that_exist(name: str) -> None:
    examples = list(calls((COMMANDS[name].help or "").partition("Examples:")[2].partition("Exit status")[0]))
    assert examples
    for arguments in examples:
        assert arguments[0] == name
        assert not unknown(arguments), arguments


# Links


def anchors(page: str) -> set[str]:
    """Return the anchors of the headings, as forges make them."""
    headings = re.findall(r"(?m)^#+ (.+)$", prose(page))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", pages())
def test_links_lead_somewhere(page: str) -> None:
    for place, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", prose(page)):
        if re.match(r"[a-z]+:", place):
            continue
        other = (ROOT / page).parent / place if place else ROOT / page
        assert other.exists(), f"{page}: {place}"
        if anchor:
            assert anchor in anchors(str(other.resolve().relative_to(ROOT))), f"{page}: {place}#{anchor}"


def test_the_index_has_a_line_for_every_page() -> None:
    rows = re.findall(r"(?m)^\| \[([^]]+)\]\(([^)]+)\) \| (\S.*) \|$", text("docs/README.md"))
    assert all(name == place for name, place, _ in rows)
    listed = [place for _, place, _ in rows]
    assert sorted(listed) == sorted(path.name for path in (ROOT / "docs").glob("*.md") if path.name != "README.md")


def test_the_site_has_every_page() -> None:
    # The whole file has a tag of its own, for a Python function; only the navigation counts here.
    navigation = yaml.safe_load(text("mkdocs.yml").partition("\nnav:\n")[2])
    listed = re.findall(r"[\w-]+\.md", str(navigation))
    assert sorted(listed) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))


def test_the_readme_leads_to_the_index() -> None:
    assert "](docs/README.md)" in text("README.md")
    assert len(text("README.md").splitlines()) <= 150, "the README stays short"


# What is written by hand of what the code does


def cells(line: str) -> list[str]:
    """Return the cells of a line of a table."""
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_table_of_states_says_what_follows() -> None:
    columns = {
        "path ok": {Input.PATH_OK},
        "one family lost": {Input.PATH_PARTIAL},
        "path broken": {Input.PATH_BROKEN},
        "deadline passed": {Input.DEADLINE, Input.DEADLINE_MASS, Input.DEADLINE_VETOED, Input.DEADLINE_FAMILY},
        "to be drained": {Input.DRAIN, Input.RESUME},
        "removed from the source": {Input.REMOVED},
    }
    lines = text("docs/concepts.md").partition("| state |")[2].splitlines()[2 : 2 + len(TargetState)]
    rows = {row[0]: row[1:] for row in map(cells, lines)}
    assert [*rows] == [*TargetState]
    for state in TargetState:
        admitted, *words = rows[state]
        assert admitted == ("yes" if state in ADMITTED else "no")
        for cell, (column, inputs) in zip(words, columns.items(), strict=True):
            follows = {TRANSITIONS[state, happens].state for happens in inputs} - {state, None}
            assert {name for name in TargetState if re.search(rf"\b{name}\b", cell)} == follows, (state, column)


def test_the_words_name_every_condition() -> None:
    (line,) = re.findall(r"(?m)^\| condition \|.*$", text("docs/concepts.md"))
    assert re.findall(r"`(\w+)`", line) == ["ok", *(condition for condition in Condition if condition != "ok")]


def test_every_symptom_is_led_to_and_has_its_entry() -> None:
    page = text("docs/troubleshooting.md")
    entries = re.split(r"(?m)^## ", page)[1:]
    assert re.findall(r"(?m)^\*(S\d+)\.\*", page) == [f"S{number}" for number in range(1, 13)]
    for entry in entries[:-1]:
        _, *said = re.split(r"\n- (?=\*\*)", entry)
        assert [item.partition("**:")[0] for item in said] == ["**lbguard", "**Look", "**Tune"], entry
    listed = re.findall(r"(?m)^\| [^|]+ \| \[[^]]+\]\(#([\w-]+)\) \|$", page)
    headings = [heading for heading in anchors("docs/troubleshooting.md") if heading != "troubleshooting"]
    assert sorted(listed) == sorted(headings)
