import asyncio
import os
import signal

import pytest

from lbguard.lab.network_objects import Address, Link
from lbguard.lab.stand_in import follow, older_links_of_shared_subnets


def _older(up: dict[str, int], **addresses: str) -> list[str]:
    links = [Link(up.get(name, 2), name, "", name in up, True, True, 1500, None) for name in addresses]
    return older_links_of_shared_subnets(links, [Address(name, ip, 24, "", 0, 0) for name, ip in addresses.items()])


def test_the_older_link_of_a_shared_subnet_is_named() -> None:
    up = {"new": 7, "old": 3, "other": 5}
    assert _older(up, new="172.16.1.2", old="172.16.1.2", other="172.16.2.2", down="172.16.1.2") == ["old"]


def test_links_of_different_subnets_are_left_alone() -> None:
    assert _older({"a": 1, "b": 2}, a="172.16.1.2", b="172.16.2.2") == []


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
