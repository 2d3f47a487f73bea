"""lbguard that keeps routes and rules of its own (mode enforce, distributor observe) beside today's process.

Both write into the targets' tables. Today's process deletes rules and flushes tables by number alone, ours along with
its own; we put ours back, once each time. Its own routes have the better metric, so what packets do is the same.
"""

import pytest

from tests.netns.companion.beside import Beside, wait_until
from tests.netns.companion.test_beside import ALL, replace_lb_link

pytestmark = pytest.mark.netns

ENFORCING = {
    "LBGUARD_MODE": "enforce",
    "LBGUARD_DISTRIBUTOR__KIND": "observe",
    "LBGUARD_GRACE__WINDOW": "1h",
    "LBGUARD_GRACE__MAX": "1h",
}
ROUNDS = 3
ADDED = 3 * 2
"""What we add for a target: rule, fallback and route, in each family."""

BEHIND = 2
CHANGES_MAX = BEHIND * (ADDED + ROUNDS * 3 * ADDED)
"""For the targets behind the link: all is added at first; then in each round it goes and comes back, and the rules do
once more when today's process adds the target again."""


def test_it_fights_over_nothing_and_packets_go_the_same_ways(beside: Beside) -> None:
    ways, slots = beside.ways(), beside.slots()
    with beside.guard(ENFORCING) as guard:
        wait_until(lambda: beside.path_changes()["ours"] >= 4 * ADDED, "our rules and routes are there")
        assert beside.ways() == ways
        rules = None
        for round_ in range(1, ROUNDS + 1):
            replace_lb_link(beside, 1, times=round_)
            wait_until(lambda: beside.ways() == ways, "packets go the ways of before")
            # Whichever rule comes first is the one that goes: once, one of its own stays behind. It never gets more.
            assert rules is None or beside.rules() == rules
            rules = beside.rules()
            assert max(rules.values()) <= 2
        settled = beside.path_changes(1, 2)
        assert settled["ours"] <= CHANGES_MAX
        decisions = beside.decisions()
        assert decisions[:4] == [("readmit", identifier) for identifier in ALL]
        assert sorted(decisions[4:]) == sorted(ROUNDS * [(a, i) for a in ("withdraw", "readmit") for i in (1, 2)])
        # The other proxy's link makes both look at everything again; the targets that are well are left alone.
        beside.chain.delete_lb_link(2)
        beside.wait_for("withdraw", 3, 4)
        beside.chain.create_lb_link(2)
        beside.wait_for("readmit", 3, 4, times=2)
        assert beside.path_changes(1, 2) == settled
        wait_until(lambda: beside.ways() == ways, "packets go the ways of before")
        assert beside.slots() == slots
        assert not [line for line in guard.log("decision") if line["action"] == "withdraw"]
    assert beside.ways() == ways
