"""The fleet behind one router: what its simulation says, and that the documentation repeats it."""

import re
from pathlib import Path

import pytest

from tests.sim.fleet import Fleet, long_incident, lost_after_an_incident, one_is_lost, rows

PAGE = Path(__file__).resolve().parents[2] / "docs/affinity.md"


@pytest.mark.parametrize("router", ["modulo", "resilient"])
def test_load_balancers_with_one_view_replace_each_other(router: str) -> None:
    fleet = Fleet("off", router)
    one_is_lost(fleet)
    assert fleet.moved == 0
    tables = [balancer.table() for balancer in fleet.balancers.values()]
    assert all(table == tables[0] for table in tables)


def test_affinity_spares_what_a_re_admission_would_move() -> None:
    moved = {}
    for mode in ("off", "incident"):
        fleet = Fleet(mode, "resilient")
        long_incident(fleet)
        moved[mode] = fleet.moved
    assert 0 < moved["incident"] < moved["off"]


def test_what_a_load_balancer_remembers_is_lost_with_it() -> None:
    fleet = Fleet("incident", "resilient")
    lost_after_an_incident(fleet)
    kept = Fleet("incident", "resilient")
    long_incident(kept)
    assert fleet.moved > kept.moved


@pytest.mark.slow
def test_the_table_of_the_page_is_what_the_command_prints() -> None:
    lines = [
        f"| {what} | {router} | {total} | {' | '.join(map(str, moved))} |" for what, router, moved, total in rows()
    ]
    section = PAGE.read_text().partition("## Many load balancers behind one router")[2].partition("\n## ")[0]
    assert re.findall(r"(?m)^\| .*\d \|$", section) == lines
