import pytest

from lbguard.lab.baseline import make_distributor


def test_an_unknown_distributor_is_refused() -> None:
    with pytest.raises(ValueError, match="nftables and nfqlb-cli are there"):
        make_distributor("magic")
