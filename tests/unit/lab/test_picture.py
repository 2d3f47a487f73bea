import re
import xml.etree.ElementTree as ET

from lbguard.lab import picture
from lbguard.lab.controller import Column, Distribution
from lbguard.lab.measure import Measurement
from lbguard.lab.play import Run
from lbguard.lab.scenario_model import Do, Step
from lbguard.lab.traffic import RESET, Channel, TrafficResult
from tests.pages import ROOT

FINE = Channel(0, 4, target=1, sent=10, answered=10, first_at=99.0, last_at=104.9, gaps=[(100.0, 0.7)])
BROKEN = Channel(1, 6, target=2, sent=9, answered=1, first_at=99.0, last_at=100.0, ending=RESET, ended_at=100.3)
NEW = Channel(2, 4, target=1, sent=9, answered=9, first_at=101.6, last_at=104.9, opened_at=100.6, connect_s=1.0)


def run(column: Column, channels: list[Channel], new: list[Channel], **measured: int) -> Run:
    return Run(
        scenario="lb-link",
        column=column,
        distribution=Distribution.NFTABLES,
        started=100.0,
        ended=105.0,
        measured=Measurement(opened=len(channels), new_opened=len(new), **measured),
        steps=[(100.0, Step(0, Do.DELETE_LB_LINK, 1)), (100.5, Step(0.5, Do.CREATE_LB_LINK, 1))],
        traffic=TrafficResult(
            started=99.0, ended=105.0, connections=channels, flows=[], tcp_bins={}, udp_bins={}, newcomers=new
        ),
    )


TODAY = run(Column.WITHDRAW, [FINE, BROKEN], [NEW], broken=1)
GUARD = run(Column.LBGUARD, [FINE, FINE], [])


def classes(text: str) -> list[str]:
    return [element.get("class", "") for element in ET.fromstring(text).iter() if element.tag.endswith("rect")]


def test_both_columns_are_drawn_with_their_numbers() -> None:
    text = picture.draw([TODAY, GUARD])
    root = ET.fromstring(text)
    assert root.get("aria-label") == (
        "without lbguard 1 of 2 connections broken, 0 of 1 new ones; with lbguard 0 of 2 connections broken"
    )
    words = [element.text for element in root.iter() if element.tag.endswith("text")]
    assert words.index("Without lbguard:") < words.index("With lbguard:")
    assert {"of target 1", "of target 2", "new ones", "broken"} <= set(words)
    # Once in the legend, once as a connection that ends red.
    assert classes(text).count("g-broken") == 2
    assert classes(text).count("g-wait") == 2
    assert classes(text).count("s-away") == 2


def test_it_needs_nothing_from_elsewhere() -> None:
    text = picture.draw([TODAY, GUARD])
    assert not re.search(r"(href|src|url\(|@import|<script)", text)
    for kind in set(re.findall(r'class="([\w -]+)"', text)):
        assert all(f".{name} " in picture.STYLE for name in kind.split()), kind


def test_the_legend_names_only_what_is_there() -> None:
    assert "new one waits" not in picture.draw([run(Column.WITHDRAW, [FINE], []), GUARD])


def test_without_two_columns_of_one_scenario_there_is_nothing_to_draw() -> None:
    assert picture.draw([]) == ""
    assert picture.draw([TODAY]) == ""
    failed = Run(scenario="lb-link", column=Column.LBGUARD, distribution=Distribution.NFTABLES, error="no chain")
    assert picture.draw([TODAY, failed]) == ""


def test_the_readme_says_what_its_picture_shows() -> None:
    readme = (ROOT / "README.md").read_text()
    label = ET.fromstring((ROOT / "docs/demo.svg").read_text()).get("aria-label", "")
    assert f"![{label[0].upper()}{label[1:]}](docs/demo.svg)" in readme
    assert "--svg docs/demo.svg" in readme, "the command that makes the picture again"
