from tests.unit.shell import Shell


def test_a_wrong_outage_is_refused(shell: Shell) -> None:
    outcome = shell("demo", "--outage", "soon")
    assert outcome.status == 2
    assert "500ms, 3s, 2m" in outcome.err


def test_the_scenarios_are_listed(shell: Shell) -> None:
    outcome = shell("demo", "--list")
    assert outcome.status == 0
    assert "lb-link " in outcome.out
