from pathlib import Path

import pytest

from lbguard.lab.demo import REFUSED, DemoOptions, run_demo


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (DemoOptions(scenarios=["nonsense"]), "no scenario nonsense; there are: lb-link"),
        (DemoOptions(distributors=["magic"]), "'magic' is not a valid Distribution; there are: nftables, nfqlb"),
        (DemoOptions(columns=["magic"]), "there are: withdraw, lbguard"),
        (DemoOptions(outage_s=0), "outage 0 s: 0.05 to 60 s are allowed"),
        (DemoOptions(connections=0), "connections 0: 1 to 5000 are allowed"),
        (DemoOptions(proxies=1), "proxies 1: 2 to 9 are allowed"),
        (DemoOptions(report=Path("/no/such/directory/r.html")), "its directory does not exist"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_made(
    options: DemoOptions, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_demo(options) == REFUSED
    assert words in capsys.readouterr().err
