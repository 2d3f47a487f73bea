import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from lbguard.sources.interposer.directory import SharedDirectory
from lbguard.sources.interposer.files import MISSED_MAX, Lines, Missed, RequestFifo, SharedFiles

ID = "0123abcd-4567-89ab-cdef-0123456789ab"


def test_lines_come_in_pieces() -> None:
    lines = Lines()
    assert lines.add(b"\none\ntw") == [b"one"]
    assert lines.add(b"o") == []
    assert lines.add(b"\n\n\nthree\n") == [b"two", b"three"]


def test_an_endless_line_takes_no_room() -> None:
    lines = Lines()
    for _ in range(1000):
        assert lines.add(b"x" * 4096) == []
    taken = lines.add(b"\nnext\n")
    assert taken[1:] == [b"next"]
    assert len(taken[0]) < 10_000


def test_requests(tmp_path: Path, shared: SharedDirectory) -> None:
    fifo = RequestFifo(shared)
    (tmp_path / "requests").write_text("no FIFO")
    fifo.open()
    status = (tmp_path / "requests").stat()
    assert stat.S_ISFIFO(status.st_mode)
    assert status.st_mode & 0o777 == 0o660
    assert fifo.read() == []
    for text in ("one\n", "two\n"):
        (tmp_path / "requests").write_text(text)
    assert fifo.read() == [b"one", b"two"]
    assert fifo.read() == []
    fifo.close()
    assert list(tmp_path.iterdir()) == []
    fifo.close()


def test_missed_calls_are_taken_once_and_in_order(tmp_path: Path, shared: SharedDirectory) -> None:
    missed = Missed(shared)
    missed.prepare()
    path = tmp_path / "missed"
    assert path.stat().st_mode & 0o777 == 0o660
    taken: list[bytes] = []
    assert missed.read(taken.append)
    assert taken == []
    path.write_text("one\ntwo\n")
    with path.open("a") as late:
        assert missed.read(taken.append)
        assert path.stat().st_size == 0
        # Who had the file open before it was replaced writes now.
        late.write("three\n")
    path.write_text("four\n")
    assert missed.read(taken.append)
    assert missed.read(taken.append)
    assert taken == [b"one", b"two", b"three", b"four"]
    missed.prepare()
    missed.close()
    assert [each.name for each in tmp_path.iterdir()] == ["missed"]


def test_a_file_of_missed_calls_that_is_full_does_not_tell_all(tmp_path: Path, shared: SharedDirectory) -> None:
    missed = Missed(shared)
    missed.prepare()
    taken: list[bytes] = []
    (tmp_path / "missed").write_bytes(b"a\n" * (MISSED_MAX // 2))
    assert not missed.read(taken.append)
    assert len(taken) == MISSED_MAX // 2
    assert missed.read(taken.append)
    missed.close()


def test_a_link_is_not_followed(tmp_path: Path, shared: SharedDirectory) -> None:
    missed = Missed(shared)
    (tmp_path / "secret").write_text("one\n")
    (tmp_path / "missed").symlink_to(tmp_path / "secret")
    with pytest.raises(OSError):
        missed.read(lambda _: pytest.fail("it was read"))
    missed.prepare()
    assert not (tmp_path / "missed").is_symlink()
    assert missed.read(lambda _: pytest.fail("it was read"))
    assert (tmp_path / "secret").read_text() == "one\n"


def test_a_fifo_that_was_taken_away(tmp_path: Path, shared: SharedDirectory) -> None:
    fifo = RequestFifo(shared)
    fifo.open()
    assert not fifo.lost
    (tmp_path / "requests").unlink()
    assert fifo.lost
    os.mkfifo(tmp_path / "requests")
    assert fifo.lost
    fifo.close()
    assert (tmp_path / "requests").exists(), "it is somebody else's"


# What others put in place of what belongs there


def put_link(path: Path) -> None:
    path.symlink_to(path.parent.parent / "victim")


def put_full_directory(path: Path) -> None:
    path.mkdir()
    (path / "theirs").write_text("kept")


def put_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


THINGS: dict[str, Callable[[Path], object]] = {
    "a link": put_link,
    "a directory": Path.mkdir,
    "a directory with something in it": put_full_directory,
    "a FIFO": os.mkfifo,
    "a file": Path.touch,
    "a socket": put_socket,
    "nothing": lambda _: None,
}


@pytest.mark.parametrize("thing", THINGS)
@pytest.mark.parametrize("name", ["requests", ".requests.new", "answers", "missed", ".missed.new", "."])
def test_whatever_stands_at_one_of_our_names_is_put_right_and_nothing_elsewhere_is_touched(
    tmp_path: Path, name: str, thing: str
) -> None:
    victim = tmp_path / "victim"
    (victim / "answers").mkdir(parents=True)
    for place in ("requests", "missed", f"answers/{ID}"):
        (victim / place).write_text("not ours\n")
        os.utime(victim / place, (0, 0))
    before = {path: path.lstat().st_mtime_ns for path in victim.rglob("*")}
    shared = SharedFiles(tmp_path / "shared")
    assert shared.put_right(shared.requests.open)

    path = tmp_path / "shared" / name
    if path.is_dir():
        path.rename(tmp_path / "moved")
    else:
        path.unlink(missing_ok=True)
    THINGS[thing](path)
    right = shared.put_right(lambda: shared.requests.open() if shared.requests.lost else None)
    shared.answers.sweep()

    # Only the directory itself is not ours to replace.
    assert right == (name != "." or thing not in {"a link", "a FIFO", "a file", "a socket"})
    if right:
        status = {each: (tmp_path / "shared" / each).lstat() for each in ("requests", "answers", "missed")}
        assert stat.S_ISFIFO(status["requests"].st_mode)
        assert stat.S_ISDIR(status["answers"].st_mode)
        assert stat.S_ISREG(status["missed"].st_mode)
        assert [stat.S_IMODE(status[each].st_mode) for each in ("requests", "answers")] == [0o660, 0o2770]
    else:
        assert str(tmp_path / "shared") in shared.problem
    assert {path: path.lstat().st_mtime_ns for path in victim.rglob("*")} == before
    assert [path.read_text() for path in tmp_path.glob("**/theirs")] == (["kept"] if "something" in thing else [])
    shared.requests.close()
    shared.close()


@pytest.mark.parametrize("mask", [0, 0o777])
def test_modes_do_not_follow_the_umask(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        shared = SharedFiles(tmp_path / "parent" / "shared")
        assert shared.put_right(shared.requests.open)
    finally:
        os.umask(before)
    place = tmp_path / "parent" / "shared"
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (place.parent, place, *place.iterdir())}
    made = {"requests": 0o660, "answers": 0o2770, "offers": 0o2770, "missed": 0o660}
    assert modes == {"parent": 0o755, "shared": 0o755, **made}
    shared.requests.close()
    shared.close()


def test_what_cannot_be_put_right_is_told_and_used_once_it_can(tmp_path: Path) -> None:
    place = tmp_path / "shared"
    place.write_text("somebody's file")
    shared = SharedFiles(place)
    assert not shared.put_right()
    assert shared.problem == f"{place}: Not a directory"
    assert shared.answers.open(ID) is None
    assert shared.answers.sweep() == 0
    assert shared.requests.lost
    place.unlink()
    assert shared.put_right()
    assert shared.problem == ""
    shared.close()
