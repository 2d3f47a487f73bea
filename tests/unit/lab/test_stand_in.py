import asyncio
import os
import signal
from typing import Any

import pytest

from lbguard.lab.stand_in import follow, older_links_of_shared_subnets


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


class Noting:
    """Notes what it is asked, and sends this process the signals that come next."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def start(self) -> None:
        self.asked.append("start")
        os.kill(os.getpid(), signal.SIGHUP)

    async def look(self) -> None:
        self.asked.append("look")

    async def reread(self) -> None:
        self.asked.append("reread")
        os.kill(os.getpid(), signal.SIGTERM)


async def test_it_rereads_on_sighup_and_ends_on_sigterm(capsys: pytest.CaptureFixture[str]) -> None:
    noting = Noting()
    async with asyncio.timeout(30):
        await follow(noting)
    assert [asked for asked in noting.asked if asked != "look"] == ["start", "reread"]
    assert '"event": "ready"' in capsys.readouterr().err
