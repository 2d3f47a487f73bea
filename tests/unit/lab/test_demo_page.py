"""The page about the demo lists the scenarios of flow affinity with their windows and promises."""

import re

from lbguard.lab.affinity_scenarios import AFFINITY
from tests.pages import text

ROW = re.compile(r"(?m)^\| `([a-z-]+)`: [^|]* \| (\d+) s \| ([^|]*) \|$")


def test_every_scenario_of_affinity_is_listed_with_its_window_and_promise() -> None:
    listed = {name: (f"{window}s", promise) for name, window, promise in ROW.findall(text("docs/demo.md"))}
    assert listed.keys() == {scenario.name for scenario in AFFINITY}
    for scenario in AFFINITY:
        window, promise = listed[scenario.name]
        assert window == scenario.settings["LBGUARD_GRACE__WINDOW"]
        assert ("none waits" in promise) == (scenario.promise.new_waited_max == 0)
        assert ("none breaks" in promise) == (scenario.promise.new_broken_max == 0)
