from typing import Any

import pytest

from lbguard.lab.baseline import make_distributor
from lbguard.lab.stand_in import older_links_of_shared_subnets


def _link(index: int, name: str, *addresses: str) -> dict[str, Any]:
    infos = [{"local": text.split("/")[0], "prefixlen": int(text.split("/")[1])} for text in addresses]
    return {"ifindex": index, "ifname": name, "addr_info": infos}


def test_the_older_link_of_a_shared_subnet_is_named() -> None:
    links = [
        _link(7, "new", "172.16.1.2/24"),
        _link(3, "old", "172.16.1.2/24"),
        _link(5, "other", "172.16.2.2/24"),
        _link(9, "bare"),
    ]
    assert older_links_of_shared_subnets(links) == ["old"]


def test_links_of_different_subnets_are_left_alone() -> None:
    assert older_links_of_shared_subnets([_link(1, "a", "172.16.1.2/24"), _link(2, "b", "172.16.2.2/24")]) == []


def test_an_unknown_distributor_is_refused() -> None:
    with pytest.raises(ValueError, match="nftables and nfqlb-cli are there"):
        make_distributor("magic")
