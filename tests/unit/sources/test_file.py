import asyncio
import contextlib
import os
import threading
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbguard.core.addr import Prefix
from lbguard.core.events import SourceLost, SourceSnapshot
from lbguard.core.model import StreamSpec, TargetSpec
from lbguard.sources.file import SHOWN_PROBLEMS, FileSource, TargetsFile, TargetsFileError

GOOD = """
streams:
  - name: stream-a
    max_targets: 100
    identifier_offset: 5000
    vips: [20.0.0.1/32, "2000::1/128"]
    targets:
      - {identifier: 1, ips: [172.16.0.10/32, "fd00:0::10/128"]}
"""


def packed(text: str) -> bytes:
    return ip_address(text).packed


def parse(text: str) -> tuple[StreamSpec, ...]:
    return TargetsFile(Path("targets.yaml")).parse(text.encode())


def problems_of(text: str) -> tuple[str, ...]:
    with pytest.raises(TargetsFileError) as caught:
        parse(text)
    return caught.value.problems


def stream(name: str = "a", *, targets: str = "[]", more: str = "") -> str:
    return f"  - {{name: {name}, targets: {targets}{', ' + more if more else ''}}}\n"


def test_the_documented_example() -> None:
    assert parse(GOOD) == (
        StreamSpec(
            name="stream-a",
            max_targets=100,
            identifier_offset=5000,
            vips=(Prefix(packed("20.0.0.1"), 32), Prefix(packed("2000::1"), 128)),
            shm_name="tshm-stream-a",
            targets=(TargetSpec(identifier=1, ips=(packed("172.16.0.10"), packed("fd00::10"))),),
        ),
    )


def test_the_memory_name_can_be_given() -> None:
    (spec,) = parse("streams:\n" + stream(more="shm_name: tshm-other"))
    assert spec.shm_name == "tshm-other"


def test_no_streams_is_a_valid_list() -> None:
    assert parse("streams: []") == ()


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        ("[{identifier: 1, ips: [10.0.0.1]}, {identifier: 1, ips: [10.0.0.2]}]", "target 1 is listed 2 times"),
        ("[{identifier: 101, ips: [10.0.0.1]}]", "target 101: identifier is outside 1 to max_targets (100)"),
        ("[{identifier: 0, ips: [10.0.0.1]}]", "target 0: identifier is outside 1 to max_targets (100)"),
        ("[{identifier: 1, ips: [10.0.0.1, 10.0.0.2]}]", "target 1: 2 IPv4 addresses"),
        ('[{identifier: 1, ips: ["fd00::1", "fd00::2"]}]', "target 1: 2 IPv6 addresses"),
        (
            '[{identifier: 1, ips: ["fd00::1"]}, {identifier: 2, ips: ["fd00:0::1"]}]',
            "target 2: fd00::1 is the address of target 1 already",
        ),
        ("[{identifier: 1, ips: []}]", "target 1: ips must not be empty"),
        ("[{identifier: 1}]", "target 1: ips is missing"),
        ("[{identifier: x, ips: [10.0.0.1]}]", "target 'x': identifier must be a whole number"),
        ("[{identifier: true, ips: [10.0.0.1]}]", "identifier a whole number is needed"),
        ("[{identifier: 1, ips: [10.0.0.0/24]}]", "'10.0.0.0/24' is a network"),
        ("[{identifier: 1, ips: [10.0.0.300]}]", "10.0.0.300"),
        ("[{identifier: 1, ips: [12]}]", "an address is text"),
        ('[{identifier: 1, ips: ["fe80::1"]}]', "fe80::1 cannot be the address of a target"),
        ("[{identifier: 1, ips: [224.0.0.1]}]", "224.0.0.1 cannot be the address of a target"),
        ("[{identifier: 1, ip: [10.0.0.1], ips: [10.0.0.1]}]", "target 1: ip is no known key"),
        ("[7]", "target number 1: must be a mapping"),
    ],
)
def test_a_wrong_target_is_refused_with_its_place(targets: str, words: str) -> None:
    (problem,) = problems_of("streams:\n" + stream("blue", targets=targets))
    assert problem.startswith("stream 'blue': ")
    assert words in problem


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("identifier_offset: 200", "reserved route tables 253-255"),
        ("identifier_offset: 254, max_targets: 1", "reserved route tables 253-255"),
        ("identifier_offset: 4294967290", "do not fit 32 bits"),
        ("identifier_offset: -1", "identifier_offset"),
        ("max_targets: 0", "max_targets"),
        ("vips: [20.0.0.1/8]", "host bits"),
        ("colour: red", "colour is no known key"),
        ("shm_name: ../x", "shm_name"),
    ],
)
def test_a_wrong_stream_is_refused_with_its_place(more: str, words: str) -> None:
    (problem,) = problems_of("streams:\n" + stream("blue", more=more))
    assert problem.startswith("stream 'blue': ")
    assert words in problem


@pytest.mark.parametrize("offset", [0, 1, 152, 255, 4294967195])
def test_mark_ranges_beside_the_reserved_ones_are_fine(offset: int) -> None:
    (spec,) = parse("streams:\n" + stream(more=f"identifier_offset: {offset}"))
    assert spec.mark(1) == offset + 1


@pytest.mark.parametrize("name", ["a b", "../a", "-a", "a/", "''", "a" * 64, "7", '"a\\u0000"', "ä"])
def test_names_are_of_a_bounded_charset(name: str) -> None:
    (problem,) = problems_of("streams:\n" + stream(name))
    assert "a name is 1 to 63 letters" in problem


def test_streams_must_not_share_marks_names_or_memory() -> None:
    offsets = {"a": 1000, "b": 1050, "c": 1020, "d": 1100}
    text = "streams:\n" + "".join(
        stream(name, more=f"identifier_offset: {offset}, max_targets: {100 if name == 'a' else 10}")
        for name, offset in offsets.items()
    )
    assert problems_of(text) == (
        "streams 'a' and 'c': marks 1001-1100 and 1021-1030 overlap",
        "streams 'a' and 'b': marks 1001-1100 and 1051-1060 overlap",
    )
    twice = "streams:\n" + stream("a") + stream("a", more="identifier_offset: 6000")
    assert problems_of(twice) == ("stream 'a': the name is used 2 times",)
    shared = "streams:\n" + stream("a", more="shm_name: tshm-b") + stream("b", more="identifier_offset: 6000")
    assert problems_of(shared) == ("shm_name 'tshm-b' is used by 2 streams",)


def test_every_problem_is_listed_and_the_text_is_bounded() -> None:
    targets = ", ".join(f"{{identifier: {200 + n}, ips: [10.0.0.{n}]}}" for n in range(1, 31))
    with pytest.raises(TargetsFileError) as caught:
        parse("streams:\n" + stream(targets=f"[{targets}]"))
    assert len(caught.value.problems) == 30
    assert f"and {30 - SHOWN_PROBLEMS} more" in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "[]", "streams", "streams: 3", "a: [", "streams: [[1]]", "!!python/object:a.b {}"]
)
def test_other_documents_are_refused(text: str) -> None:
    assert problems_of(text)


@given(st.binary(max_size=200))
def test_no_content_raises_anything_but_the_named_error(content: bytes) -> None:
    with contextlib.suppress(TargetsFileError):
        TargetsFile(Path("targets.yaml")).parse(content)


class Watched:
    """A targets file in a directory, a source that is polled by hand, and what it emitted."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.events: list[SourceSnapshot | SourceLost] = []
        self.source = FileSource(path, self.events.append)

    def poll(self) -> list[SourceSnapshot | SourceLost]:
        self.events.clear()
        self.source.poll()
        return list(self.events)


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path / "targets.yaml")


def names(events: list[SourceSnapshot | SourceLost]) -> list[str]:
    (event,) = events
    assert isinstance(event, SourceSnapshot)
    return [spec.name for spec in event.streams]


def test_edits_in_place_and_atomic_replaces_are_seen(watched: Watched) -> None:
    watched.path.write_text("streams:\n" + stream("a"))
    assert names(watched.poll()) == ["a"]
    assert watched.poll() == []
    watched.path.write_text("streams:\n" + stream("bb"))
    assert names(watched.poll()) == ["bb"]
    fresh = watched.path.with_suffix(".new")
    fresh.write_text("streams:\n" + stream("cc"))
    os.utime(fresh, ns=(0, watched.path.stat().st_mtime_ns))
    fresh.replace(watched.path)
    assert names(watched.poll()) == ["cc"]


def test_a_swapped_directory_link_is_seen(tmp_path: Path) -> None:
    for revision in ("one", "two"):
        directory = tmp_path / f"..{revision}"
        directory.mkdir()
        (directory / "targets.yaml").write_text("streams:\n" + stream(revision))
    (tmp_path / "..data").symlink_to("..one")
    (tmp_path / "targets.yaml").symlink_to("..data/targets.yaml")
    watched = Watched(tmp_path / "targets.yaml")
    assert names(watched.poll()) == ["one"]
    (tmp_path / "..tmp").symlink_to("..two")
    (tmp_path / "..tmp").replace(tmp_path / "..data")
    assert names(watched.poll()) == ["two"]


def test_a_broken_or_missing_file_is_told_once_with_its_reason(watched: Watched) -> None:
    (event,) = watched.poll()
    assert isinstance(event, SourceLost)
    assert "No such file" in event.reason
    assert watched.poll() == []
    watched.path.write_text("streams: 3")
    (event,) = watched.poll()
    assert isinstance(event, SourceLost)
    assert "streams must be a list" in event.reason
    assert watched.poll() == []
    watched.path.write_text(GOOD)
    assert names(watched.poll()) == ["stream-a"]


def test_the_same_list_again_ends_a_loss_and_is_otherwise_silent(watched: Watched) -> None:
    watched.path.write_text(GOOD)
    assert names(watched.poll()) == ["stream-a"]
    watched.path.write_text(GOOD + "# a comment\n")
    assert watched.poll() == []
    watched.path.unlink()
    assert isinstance(watched.poll()[0], SourceLost)
    watched.path.write_text(GOOD)
    assert names(watched.poll()) == ["stream-a"]


def test_a_file_written_while_it_is_read_is_read_again(watched: Watched) -> None:
    # A pipe stands for a slow writer: the reader is in the middle of it when the path gets its final content.
    os.mkfifo(watched.path)

    def write() -> None:
        with watched.path.open("w") as pipe:
            pipe.write("streams: [")
            pipe.flush()
            final = watched.path.with_suffix(".new")
            final.write_text(GOOD)
            final.replace(watched.path)

    writer = threading.Thread(target=write)
    writer.start()
    assert watched.poll() == []
    writer.join()
    assert names(watched.poll()) == ["stream-a"]


def replace(path: Path, text: str) -> None:
    """Change a file in one step, so that a watcher in another thread never sees it empty."""
    fresh = path.with_suffix(".new")
    fresh.write_text(text)
    fresh.replace(path)


async def test_the_watcher_follows_and_reloads_on_demand(tmp_path: Path) -> None:
    path = tmp_path / "targets.yaml"
    path.write_text(GOOD)
    events: asyncio.Queue[SourceSnapshot | SourceLost] = asyncio.Queue()
    source = FileSource(path, events.put_nowait, poll_interval_s=0.01)
    watching = asyncio.create_task(source.run())
    async with asyncio.timeout(60):
        assert names([await events.get()]) == ["stream-a"]
        replace(path, "streams: []")
        assert names([await events.get()]) == []
        source.reload()
        assert names([await events.get()]) == []
    watching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watching


async def test_a_reload_does_not_wait_for_the_poll(tmp_path: Path) -> None:
    path = tmp_path / "targets.yaml"
    path.write_text(GOOD)
    events: asyncio.Queue[SourceSnapshot | SourceLost] = asyncio.Queue()
    source = FileSource(path, events.put_nowait, poll_interval_s=3600)
    watching = asyncio.create_task(source.run())
    async with asyncio.timeout(60):
        assert names([await events.get()]) == ["stream-a"]
        replace(path, "streams: []")
        source.reload()
        assert names([await events.get()]) == []
    watching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watching
