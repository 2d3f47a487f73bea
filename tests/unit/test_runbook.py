"""The runbook has an entry for every named reason, and no reason that the code does not know."""

import fnmatch
import re

import pytest

from tests.unit.named_reasons import PACKAGE, named_reasons

DOCS = PACKAGE.parent / "docs"
REASONS = named_reasons()


def sections(text: str) -> dict[str, str]:
    """Return the text below each heading of the second level."""
    parts = re.split(r"(?m)^## (.+)$", text)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def entries(section: str) -> set[str]:
    """Return the names in the first column of a table."""
    first = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    return {name for cell in first for name in re.findall(r"`([^`]+)`", cell)}


@pytest.mark.parametrize("heading", REASONS)
def test_every_named_reason_has_an_entry(heading: str) -> None:
    reasons = REASONS[heading]
    assert reasons, "nothing was found in the code: the search is out of date"
    written = entries(sections((DOCS / "runbook.md").read_text())[heading])
    missing = {reason for reason in reasons if not fnmatch.filter(written, reason)}
    assert not missing, f"docs/runbook.md, {heading}: add them"
    unknown = {name for name in written if not any(fnmatch.fnmatchcase(name, reason) for reason in reasons)}
    assert not unknown, f"docs/runbook.md, {heading}: the code has no such reasons"


def anchors(text: str) -> set[str]:
    """Return the anchors of the headings, as forges make them."""
    headings = re.findall(r"(?m)^#+ (.+)$", text)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", ["runbook.md", "troubleshooting.md", "monitoring.md"])
def test_links_lead_somewhere(page: str) -> None:
    text = (DOCS / page).read_text()
    links = re.findall(r"\]\(([^)#]*)(?:#([^)]*))?\)", text)
    assert links
    for file, anchor in links:
        other = DOCS / (file or page)
        assert other.exists(), file
        assert not anchor or anchor in anchors(other.read_text()), f"{file}#{anchor}"


@pytest.mark.parametrize("page", ["runbook.md", "troubleshooting.md", "monitoring.md"])
def test_settings_and_metrics_that_are_named_exist(page: str) -> None:
    known = set(re.findall(r"`([a-z_.]+)`", (DOCS / "settings.md").read_text()))
    metrics = set(re.findall(r"`(lbguard_\w+)`", (DOCS / "metrics.md").read_text()))
    groups = "|".join({name.partition(".")[0] for name in known if "." in name})
    text = (DOCS / page).read_text()
    settings = set(re.findall(rf"`((?:{groups})\.[a-z_.]+)`", text))
    assert settings
    assert {name for name in settings - known if not name.endswith(".json")} == set()
    assert set(re.findall(r"`(lbguard_\w+)`", text)) - metrics == set()
