import pytest

from lbguard.settings.model import SettingsError, load


@pytest.mark.parametrize(
    ("value", "allowed"),
    [
        ("0,later", "0s,100ms"),
        ("0s,2s,1s", "ascending"),
        ("1s,2s", "0 and then"),
        ("", "0 and then"),
    ],
)
def test_repeats_that_do_not_start_with_0_and_ascend_are_refused(value: str, allowed: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(flags={"announce.repeats": value})
    (problem,) = caught.value.problems
    assert problem.setting == "announce.repeats"
    assert value.split(",")[0] in str(problem)
    assert allowed in str(problem)
