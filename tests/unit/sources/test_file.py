import asyncio
import contextlib
import os
import re
import socket
import subprocess
import sys
import time
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbguard.core.addr import Prefix
from lbguard.core.events import SourceLost, SourceSnapshot
from lbguard.core.model import StreamSpec, TargetSpec
from lbguard.settings.yaml_file import MAX_PROBLEMS, SHOWN_PROBLEMS
from lbguard.sources.file import FileSource, TargetsFile, TargetsFileError
from lbguard.sources.watched_file import STILL_S

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


@pytest.mark.parametrize(("text", "draining"), [("", False), (", draining: true", True), (", draining: false", False)])
def test_a_target_may_be_listed_as_draining(text: str, draining: bool) -> None:
    (spec,) = parse("streams:\n" + stream(targets="[{identifier: 1, ips: [10.0.0.1]" + text + "}]"))
    assert spec.targets == (TargetSpec(identifier=1, ips=(packed("10.0.0.1"),), draining=draining),)


@pytest.mark.parametrize("value", ["1", "'true'", "on-hold", "[]", "null"])
def test_draining_is_true_or_false(value: str) -> None:
    text = "streams:\n" + stream(targets="[{identifier: 1, ips: [10.0.0.1], draining: " + value + "}]")
    assert problems_of(text) == ("stream 'a': target 1: draining must be true or false",)


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
        ("[{identifier: 1, ips: ['::ffff:10.0.0.1']}]", "it is an IPv4-mapped address; write 10.0.0.1"),
        ("[{identifier: 1, ips: ['fd00::1%nsm0']}]", "has a zone"),
        ("[{identifier: 1, ips: [255.255.255.255]}]", "it is the broadcast address"),
        ("[{identifier: 1, ips: [127.0.0.1]}]", "it is a loopback address"),
        ("[{identifier: 1, ips: [0.0.0.0]}]", "it is an unspecified address"),
        ("[{identifier: 1, ips: [10.0.0.0/24]}]", "'10.0.0.0/24' is a network"),
        ("[{identifier: 1, ips: [10.0.0.300]}]", "10.0.0.300"),
        ("[{identifier: 1, ips: [12]}]", "an address is text"),
        ('[{identifier: 1, ips: ["fe80::1"]}]', "fe80::1 cannot be the address of a target"),
        ("[{identifier: 1, ips: [224.0.0.1]}]", "224.0.0.1 cannot be the address of a target"),
        ("[{identifier: 1, ip: [10.0.0.1], ips: [10.0.0.1]}]", "target 1: ip unknown key"),
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
        ("vips: ['::ffff:20.0.0.1']", "cannot be a VIP: it is an IPv4-mapped address; write 20.0.0.1"),
        ("vips: ['2000::1%nsm0']", "has a zone"),
        ("vips: [224.0.0.0/8]", "cannot be a VIP: it is a multicast address"),
        ("colour: red", "colour unknown key"),
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
        "streams 'a' and 'c': marks 1001-1100 and 1021-1030 overlap; set identifier_offset of 'c' to 5000",
        "streams 'a' and 'b': marks 1001-1100 and 1051-1060 overlap; set identifier_offset of 'b' to 5010",
    )
    twice = "streams:\n" + stream("a") + stream("a", more="identifier_offset: 6000")
    assert problems_of(twice) == ("stream 'a': the name is used 2 times",)
    shared = "streams:\n" + stream("a", more="shm_name: tshm-b") + stream("b", more="identifier_offset: 6000")
    assert problems_of(shared) == ("shm_name 'tshm-b' is used by 2 streams",)


def test_a_stream_without_an_offset_of_its_own_is_told_a_free_one() -> None:
    names = ["a", "b", "c"]
    given = dict.fromkeys(names, 5000) | {"d": 5100}
    while problems := streams_at(given):
        suggested = [re.findall(r"set identifier_offset of '(.)' to (\d+)", problem) for problem in problems]
        assert all(suggested)
        given |= {name: int(offset) for found in suggested for name, offset in found}
    assert given == {"a": 5000, "b": 5200, "c": 5300, "d": 5100}


def streams_at(offsets: dict[str, int]) -> tuple[str, ...]:
    text = "".join(stream(name, more=f"identifier_offset: {offset}") for name, offset in offsets.items())
    try:
        parse("streams:\n" + text)
    except TargetsFileError as error:
        return error.problems
    return ()


def test_a_vip_is_of_one_stream() -> None:
    def shared(vip: str) -> str:
        (problem,) = problems_of(
            "streams:\n"
            + stream("a", more="vips: [20.0.0.0/24, 20.0.9.1/32, '2000::1']")
            + stream("b", more=f"identifier_offset: 6000, vips: ['{vip}', 20.0.1.0/24]")
        )
        return problem

    assert shared("2000::1").startswith("streams 'a' and 'b' share VIP 2000::1/128; keep it in one")
    assert "share VIP 20.0.0.7/32, which is part of 20.0.0.0/24;" in shared("20.0.0.7")
    assert "streams 'b' and 'a' share VIP 20.0.0.0/24, which is part of 20.0.0.0/23;" in shared("20.0.0.0/23")


def test_the_time_to_look_for_shared_vips_does_not_grow_with_their_pairs() -> None:
    def many(name: str, first: int) -> str:
        vips = ", ".join(f"{first}.{n >> 8}.{n & 255}.0/24" for n in range(20_000))
        return stream(name, more=f"identifier_offset: {first * 1000}, vips: [{vips}]")

    assert len(parse("streams:\n" + many("a", 20) + many("b", 30))) == 2


def test_a_file_full_of_errors_is_given_up_early() -> None:
    assert MAX_PROBLEMS <= len(problems_of("streams:\n" + stream(targets=f"[{'{},' * 100_000}]"))) < 2 * 2000 + 1
    assert MAX_PROBLEMS <= len(problems_of(f"streams: [{'{x: 1},' * 100_000}]")) < MAX_PROBLEMS + 10


@pytest.mark.parametrize(
    "text",
    [
        "streams: [], " + ", ".join(f"k{n}: 1" for n in range(20_000)),
        "streams: [{name: a, " + ", ".join(f"k{n}: 1" for n in range(20_000)) + "}]",
        "streams: [{name: a, targets: [{" + ", ".join(f"k{n}: 1" for n in range(20_000)) + "}]}]",
        "streams: [{name: a, targets: [{identifier: 1, ips: [" + "x, " * 20_000 + "]}]}]",
        "streams: [{name: a, vips: [" + "x, " * 20_000 + "]}]",
        "streams: [" + ", ".join(f"{{name: a{n}}}" for n in range(5_000)) + "]",
    ],
)
def test_no_list_of_problems_is_longer_than_somebody_reads(text: str) -> None:
    assert len(problems_of(f"{{{text}}}")) <= MAX_PROBLEMS


@pytest.mark.parametrize("text", ["name: {}", "name: a, {}: 1", "name: a, vips: [{}]", "name: a, max_targets: {}"])
def test_a_problem_quotes_no_more_than_fits_into_a_line(text: str) -> None:
    (problem,) = problems_of("streams:\n  - {" + text.replace("{}", "? " + "x" * 1_000_000, 1) + "}\n")
    assert len(problem) < 1000


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
        self.now = 0.0
        self.events: list[SourceSnapshot | SourceLost] = []
        self.source = FileSource(path, self.events.append, clock=lambda: self.now)

    def poll(self, after_s: float = 0.0) -> list[SourceSnapshot | SourceLost]:
        self.events.clear()
        self.now += after_s
        self.source.poll()
        return list(self.events)

    def poll_until_still(self) -> list[SourceSnapshot | SourceLost]:
        return self.poll() + self.poll(STILL_S)


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path / "targets.yaml")


def names(events: list[SourceSnapshot | SourceLost]) -> list[str]:
    (event,) = events
    assert isinstance(event, SourceSnapshot)
    return [spec.name for spec in event.streams]


def reason(events: list[SourceSnapshot | SourceLost]) -> str:
    (event,) = events
    assert isinstance(event, SourceLost)
    return event.reason


def replace(path: Path, text: str) -> None:
    """Change a file in one step, so that a watcher in another thread never sees it empty."""
    fresh = path.with_suffix(".new")
    fresh.write_text(text)
    fresh.replace(path)


def test_a_file_that_nobody_writes_is_read_at_once_at_the_start(watched: Watched) -> None:
    watched.path.write_text("streams:\n" + stream("a"))
    assert names(watched.poll()) == ["a"]


def test_a_file_that_is_being_written_at_the_start_is_waited_for(watched: Watched) -> None:
    with watched.path.open("w") as file:
        file.write("streams:\n" + stream("a"))
        file.flush()
        assert watched.poll() == []
        file.write(stream("b", more="identifier_offset: 6000"))
        file.flush()
        assert watched.poll(STILL_S - 0.1) == []
        assert watched.poll(STILL_S - 0.1) == []
        assert names(watched.poll(0.2)) == ["a", "b"]


def test_another_file_that_is_still_being_written_takes_nothing_away(watched: Watched) -> None:
    """So does `tar`, and `kubectl cp` with it: the old file is removed, the new one written in place."""
    replace(watched.path, "streams:\n" + stream("a") + stream("b", more="identifier_offset: 6000"))
    watched.poll()
    watched.path.rename(watched.path.with_suffix(".old"))
    with watched.path.open("w") as file:
        file.write("streams:\n" + stream("a"))
        file.flush()
        assert watched.poll() == []
        time.sleep(0.02)
        file.write("# and a last word\n")
    assert watched.poll() == [], "whoever wrote it may go on"
    assert names(watched.poll(STILL_S)) == ["a"]


def test_a_file_that_was_last_written_long_ago_is_read_at_once(tmp_path: Path) -> None:
    """Whoever may not ask the kernel for writers goes by the time."""
    told: list[SourceSnapshot | SourceLost] = []
    path = tmp_path / "targets.yaml"
    with path.open("w") as file:
        file.write("streams:\n" + stream("a"))
        file.flush()
        time.sleep(0.1)
        FileSource(path, told.append, still_s=0.05, clock=lambda: 0.0).poll()
    assert names(told) == ["a"]


def test_edits_in_place_and_atomic_replaces_are_seen(watched: Watched) -> None:
    watched.path.write_text("streams:\n" + stream("a"))
    assert names(watched.poll()) == ["a"]
    assert watched.poll() == []
    watched.path.write_text("streams:\n" + stream("bb"))
    assert watched.poll() == []
    assert names(watched.poll(STILL_S)) == ["bb"]
    replace(watched.path, "streams:\n" + stream("cc"))
    assert names(watched.poll()) == ["cc"]


def test_a_pause_in_the_middle_of_writing_takes_nothing_away(watched: Watched) -> None:
    whole = GOOD + "      - {identifier: 2, ips: [172.16.0.11/32]}\n      - {identifier: 3, ips: [172.16.0.12/32]}\n"
    replace(watched.path, whole)
    assert names(watched.poll()) == ["stream-a"]
    for part in ("", "str", GOOD, whole[:-40], whole):
        watched.path.write_text(part)
        assert watched.poll(0.5) == []
        assert watched.poll(STILL_S - 0.6) == []
    assert watched.poll(STILL_S) == []


def test_what_a_file_adds_is_taken_before_it_is_still(watched: Watched) -> None:
    replace(watched.path, GOOD)
    watched.poll()
    more = "      - {identifier: 2, ips: [172.16.0.110/32]}\n"
    watched.path.write_text(GOOD + more[:-1])
    assert watched.poll() == [], "the last line may go on"
    watched.path.write_text(GOOD + more)
    ((event,),) = [watched.poll()]
    assert isinstance(event, SourceSnapshot)
    assert [target.identifier for target in event.streams[0].targets] == [1, 2]
    watched.path.write_text(GOOD.replace("172.16.0.10/", "172.16.0.19/") + more)
    assert watched.poll() == [], "a target that has another address"
    ((event,),) = [watched.poll(STILL_S)]
    assert isinstance(event, SourceSnapshot)
    assert event.streams[0].targets[0].ips[0] == packed("172.16.0.19")


@pytest.mark.parametrize("lost", ["targets: [{identifier: 1", 'vips: ["2000::1/128"]', "max_targets: 50"])
def test_what_a_file_changes_waits_until_it_is_still(watched: Watched, lost: str) -> None:
    first = "streams:\n" + stream("a", targets="[{identifier: 1, ips: [10.0.0.1]}]", more="vips: [20.0.0.1, '2000::1']")
    replace(watched.path, first)
    watched.poll()
    changed = {
        "targets: [{identifier: 1": first.replace("{identifier: 1, ips: [10.0.0.1]}", ""),
        'vips: ["2000::1/128"]': first.replace("20.0.0.1, ", ""),
        "max_targets: 50": first.replace("name: a", "name: a, max_targets: 50"),
    }[lost]
    watched.path.write_text(changed)
    assert watched.poll() == []
    assert names(watched.poll(STILL_S)) == ["a"]


def test_a_file_that_is_written_again_and_again_is_taken_when_it_says_the_same_for_long_enough(
    watched: Watched,
) -> None:
    replace(watched.path, "streams:\n" + stream("a"))
    watched.poll()
    for turn in range(3):
        watched.path.write_text("streams:\n" + stream("b") + "#" * turn + "\n")
        assert watched.poll(0.9) == []
    watched.path.write_text("streams:\n" + stream("b"))
    assert names(watched.poll(0.9)) == ["b"]


def test_two_writes_that_look_alike_are_told_apart_in_the_end(watched: Watched) -> None:
    replace(watched.path, "streams:\n" + stream("a"))
    watched.poll()
    watched.path.write_text("streams:\n" + stream("b"))
    status = watched.path.stat()
    assert watched.poll() == []
    watched.path.write_text("streams:\n" + stream("c"))
    os.utime(watched.path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert names(watched.poll(STILL_S) + watched.poll(STILL_S)) == ["c"]


def test_a_swapped_directory_link_is_seen_at_once(tmp_path: Path) -> None:
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
    assert "No such file" in reason(watched.poll())
    assert watched.poll() == []
    watched.path.write_text("streams: 3")
    assert "streams must be a list" in reason(watched.poll_until_still())
    assert watched.poll() == []
    watched.path.write_text(GOOD)
    assert names(watched.poll_until_still()) == ["stream-a"]


def test_the_same_list_again_ends_a_loss_at_once_and_is_otherwise_silent(watched: Watched) -> None:
    watched.path.write_text(GOOD)
    assert names(watched.poll_until_still()) == ["stream-a"]
    watched.path.write_text(GOOD + "# a comment\n")
    assert watched.poll_until_still() == []
    watched.path.unlink()
    assert "No such file" in reason(watched.poll())
    watched.path.write_text(GOOD)
    assert names(watched.poll()) == ["stream-a"]


@pytest.mark.parametrize(
    ("kind", "words"), [("fifo", "is a FIFO"), ("directory", "is a directory"), ("socket", "is a socket")]
)
def test_what_is_no_file_is_told_without_waiting_and_got_over(watched: Watched, kind: str, words: str) -> None:
    replace(watched.path, GOOD)
    watched.poll()
    watched.path.unlink()
    if kind == "fifo":
        os.mkfifo(watched.path)
    elif kind == "directory":
        watched.path.mkdir()
    else:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(watched.path))
    assert words in reason(watched.poll())
    assert watched.poll() == []
    watched.path.rmdir() if kind == "directory" else watched.path.unlink()
    replace(watched.path, GOOD)
    assert names(watched.poll()) == ["stream-a"]


async def test_the_watcher_follows_and_reloads_on_demand(tmp_path: Path) -> None:
    path = tmp_path / "targets.yaml"
    replace(path, GOOD)
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


async def test_a_reload_waits_neither_for_the_poll_nor_for_the_file_to_be_still(tmp_path: Path) -> None:
    path = tmp_path / "targets.yaml"
    replace(path, GOOD)
    events: asyncio.Queue[SourceSnapshot | SourceLost] = asyncio.Queue()
    source = FileSource(path, events.put_nowait, poll_interval_s=3600, still_s=3600)
    watching = asyncio.create_task(source.run())
    async with asyncio.timeout(60):
        assert names([await events.get()]) == ["stream-a"]
        path.write_text("streams: []")
        source.reload()
        assert names([await events.get()]) == []
    watching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watching


def test_a_look_that_hangs_keeps_no_process_from_ending(tmp_path: Path) -> None:
    program = """
import asyncio, threading
from lbguard.sources.watched_file import DaemonThread

async def main():
    asyncio.ensure_future(DaemonThread("test").do(threading.Event().wait))
    await asyncio.sleep(0)

asyncio.run(main())
"""
    assert subprocess.run([sys.executable, "-c", program], timeout=60, check=False).returncode == 0
