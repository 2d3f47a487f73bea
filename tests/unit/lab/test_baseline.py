import pytest

from lbguard.lab.baseline import make_distributor


def test_an_unknown_distributor_is_refused() -> None:
    with pytest.raises(ValueError, match="allowed: nftables or nfqlb"):
        make_distributor("magic")
