"""The file of open holds, with real files: what is written is read again, and nothing else is believed."""

import asyncio
import json
import logging
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lbguard.core.addr import Prefix, parse_ip, parse_prefix
from lbguard.core.events import OpenDrain, OpenHold
from lbguard.core.model import Condition
from lbguard.service.hold_file import MAX_AGE_S, HoldFile
from lbguard.service.state_file import MAX_BYTES
from tests.unit.kernel.fake_kernel import eventually

HOLDS = (
    OpenHold(
        stream="stream-a",
        identifier=1,
        ips=(parse_ip("172.16.0.11"), parse_ip("fd00::11")),
        cause=Condition.NO_LINK,
        broken_s=2.5,
        left_s=0.5,
    ),
    OpenHold(stream="b", identifier=2, ips=(), cause=Condition.NEIGHBOR_FAILED, broken_s=61.0, frozen_s=58.0),
    OpenHold(
        stream="stream-a",
        identifier=4,
        ips=(parse_ip("172.16.0.14"), parse_ip("fd00::14")),
        cause=Condition.NO_ADDRESS,
        broken_s=9.0,
        lost=(parse_ip("fd00::14"),),
    ),
)

DRAIN = OpenDrain(stream="stream-a", identifier=3, ips=(parse_ip("172.16.0.13"),), left_s=30.0)


@pytest.fixture
def socket(tmp_path: Path) -> Path:
    return tmp_path / "lbguard.sock"


def written(socket: Path) -> Path:
    file = HoldFile(socket)
    file.save(HOLDS, 1000.0)
    return file.path


def test_what_is_written_is_read_by_the_next_run(socket: Path) -> None:
    path = written(socket)
    assert path == socket.with_name("lbguard.sock.holds")
    assert path.stat().st_mode & 0o777 == 0o600
    assert HoldFile(socket).load(1000.5) == HOLDS
    assert list(path.parent.iterdir()) == [path]


def test_the_file_goes_with_the_last_hold(socket: Path) -> None:
    path = written(socket)
    again = HoldFile(socket)
    again.load(1001.0)
    again.save((), 1002.0)
    assert not path.exists()
    # Nothing is touched as long as nothing is held.
    path.mkdir()
    again.save((), 1003.0)
    assert path.is_dir()


@pytest.mark.parametrize("age_s", [MAX_AGE_S + 0.1, -0.1])
def test_an_old_one_does_not_count(socket: Path, age_s: float) -> None:
    written(socket)
    assert HoldFile(socket).load(1000.0 + MAX_AGE_S) == HOLDS
    assert HoldFile(socket).load(1000.0 + age_s) == ()


def _text(new: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        path.write_bytes(new(path.read_bytes()))

    return change


def _changed(**values: Any) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return change


def _row(*row: Any) -> Callable[[Path], None]:
    return _changed(holds=[list(row)])


def _other_kind(make: Callable[[Path], None]) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        path.unlink()
        make(path)

    return change


def _link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


GOOD = ("stream-a", 1, ["172.16.0.11"], "no_link", 2.5, None, 0.5)
BAD: dict[str, Callable[[Path], None]] = {
    "another boot": _changed(boot="0"),
    "another namespace": _changed(namespace=[0, 0]),
    "another format": _changed(format="lbguard-holds-9"),
    "no time": _changed(at=None),
    "not a number": _changed(at=float("nan")),
    "too large a number": _changed(at=10**400),
    "no list": _changed(holds={"a": 1}),
    "nothing": _text(lambda _: b""),
    "cut off": _text(lambda text: text[:-20]),
    "no object": _text(lambda _: b"[1]"),
    "no text": _text(lambda _: b"\xff\xfe\x00"),
    "nested": _text(lambda _: b"[" * 100_000),
    "long": _text(lambda _: b" " * (MAX_BYTES + 1)),
    "a short row": _row(*GOOD[:-1]),
    "a long row": _row(*GOOD, [], 1),
    "lost addresses that are text": _row(*GOOD, "172.16.0.11"),
    "a lost address that is none": _row(*GOOD, ["here"]),
    "an identifier that is true": _row("stream-a", True, *GOOD[2:]),
    "a stream without a name": _row(None, *GOOD[1:]),
    "an address that is a number": _row("stream-a", 1, [5], *GOOD[3:]),
    "an address that is none": _row("stream-a", 1, ["here"], *GOOD[3:]),
    "an unknown cause": _row("stream-a", 1, ["172.16.0.11"], "boredom", 2.5, None, 0.5),
    "a negative time": _row("stream-a", 1, ["172.16.0.11"], "no_link", -1.0, None, 0.5),
    "no end": _row("stream-a", 1, ["172.16.0.11"], "no_link", float("inf"), None, 0.5),
    "a FIFO": _other_kind(os.mkfifo),
    "a directory": _other_kind(os.mkdir),
    "a symbolic link": _link,
    "writable for others": lambda path: path.chmod(0o666),
}


@pytest.mark.parametrize("change", BAD.values(), ids=BAD.keys())
def test_what_is_not_right_is_ignored(
    socket: Path, change: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    path = written(socket)
    change(path)
    with caplog.at_level(logging.INFO, "lbguard"):
        assert HoldFile(socket).load(1000.5) == ()
    assert len(caplog.records) == 1


def test_the_place_of_a_link_is_taken_and_its_end_left_alone(socket: Path) -> None:
    path = written(socket)
    elsewhere = path.with_name("elsewhere")
    elsewhere.write_text("mine")
    for name in (path.name, f"{path.name}.new"):
        path.with_name(name).unlink(missing_ok=True)
        path.with_name(name).symlink_to("elsewhere")
    written(socket)
    assert elsewhere.read_text() == "mine"
    assert HoldFile(socket).load(1000.5) == HOLDS


def test_a_place_that_cannot_be_written_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = HoldFile(tmp_path / "none" / "lbguard.sock")
    assert file.load(1000.0) == ()
    for _ in range(3):
        file.save(HOLDS, 1000.0)
    assert [record.getMessage() for record in caplog.records] == [
        "open holds cannot be written: a restart gives each its whole window again"
    ]
    file.path.parent.mkdir()
    file.save(HOLDS, 1000.0)
    assert file.path.exists()


async def test_it_is_kept_as_holds_come_and_go(socket: Path) -> None:
    file = HoldFile(socket)
    holds: tuple[OpenHold, ...] | None = None
    keeping = asyncio.create_task(file.keep(lambda: holds))
    try:
        holds = HOLDS
        await eventually(file.path.exists)
        holds = ()
        await eventually(lambda: not file.path.exists())
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)


async def test_lost_subnets_are_kept_without_a_hold_and_read_again(socket: Path) -> None:
    file = HoldFile(socket)
    lost = (parse_prefix("172.16.0.0/24"), parse_prefix("fd00:16::/64"))
    subnets: tuple[Prefix, ...] = lost
    keeping = asyncio.create_task(file.keep(tuple, lambda: subnets))
    try:
        await eventually(file.path.exists)
        at = json.loads(file.path.read_text())["at"]
        later = HoldFile(socket)
        assert later.load(at) == ()
        assert later.subnets == lost
        subnets = ()
        await eventually(lambda: not file.path.exists())
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)


async def test_drains_are_kept_and_their_time_runs_on_while_nobody_runs(socket: Path) -> None:
    file = HoldFile(socket)
    drains: tuple[OpenDrain, ...] = (DRAIN,)
    keeping = asyncio.create_task(file.keep(tuple, tuple, lambda _: drains))
    try:
        await eventually(file.path.exists)
        at = json.loads(file.path.read_text())["at"]
        later = HoldFile(socket)
        assert later.load(at + 20.0) == ()
        assert later.drains == (replace(DRAIN, left_s=10.0),)
        assert later.load(at + 40.0) == ()
        assert later.drains == (replace(DRAIN, left_s=0.0),)
        drains = ()
        await eventually(lambda: not file.path.exists())
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)


def test_a_file_without_drains_is_that_of_an_earlier_version(socket: Path) -> None:
    path = written(socket)
    document = json.loads(path.read_text())
    del document["drains"]
    path.write_text(json.dumps(document))
    later = HoldFile(socket)
    assert later.load(1000.5) == HOLDS
    assert later.drains == ()


@pytest.mark.parametrize("row", [["a", 1, ["172.16.0.1"]], ["a", "1", [], 1.0], ["a", 1, ["x"], 1.0], 7])
def test_a_damaged_drain_makes_the_file_useless(socket: Path, row: object) -> None:
    path = written(socket)
    document = json.loads(path.read_text())
    document["drains"] = [row]
    path.write_text(json.dumps(document))
    later = HoldFile(socket)
    assert later.load(1000.5) == ()
    assert later.drains == ()


async def test_what_an_earlier_run_left_stays_until_it_is_known_what_is_open(socket: Path) -> None:
    path = written(socket)
    again = HoldFile(socket)
    again.load(1001.0)
    asked = 0

    def unknown() -> None:
        nonlocal asked
        asked += 1

    keeping = asyncio.create_task(again.keep(unknown))
    try:
        await eventually(lambda: asked >= 2)
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
    assert path.exists()
