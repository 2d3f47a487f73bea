import os
import stat
from pathlib import Path

import pytest

from lbguard.sources.interposer_files import MISSED_MAX, Answers, Lines, Missed, RequestFifo

ID = "0123abcd-4567-89ab-cdef-0123456789ab"


def test_lines_come_in_pieces() -> None:
    lines = Lines()
    assert lines.take(b"\none\ntw") == [b"one"]
    assert lines.take(b"o") == []
    assert lines.take(b"\n\n\nthree\n") == [b"two", b"three"]


def test_an_endless_line_takes_no_room() -> None:
    lines = Lines()
    for _ in range(1000):
        assert lines.take(b"x" * 4096) == []
    taken = lines.take(b"\nnext\n")
    assert taken[1:] == [b"next"]
    assert len(taken[0]) < 10_000


def test_requests(tmp_path: Path) -> None:
    fifo = RequestFifo(tmp_path)
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


@pytest.fixture
def answers(tmp_path: Path) -> Answers:
    made = Answers(tmp_path)
    made.prepare()
    made.prepare()
    return made


def test_an_answer(answers: Answers, tmp_path: Path) -> None:
    path = tmp_path / "answers" / ID
    os.mkfifo(path)
    assert answers.open(ID) is None, "nobody waits"
    caller = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    way_back = answers.open(ID)
    assert way_back is not None
    assert answers.send(way_back, b"1 done\n")
    assert os.read(caller, 100) == b"1 done\n"
    late = answers.open(ID)
    assert late is not None
    os.close(caller)
    assert not answers.send(late, b"1 done\n")


def test_what_is_no_fifo_is_not_written(answers: Answers, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("as it was")
    place = tmp_path / "answers"
    (place / ID).symlink_to(secret)
    assert answers.open(ID) is None
    other = ID.replace("0", "1")
    (place / other).write_text("as it was")
    assert answers.open(other) is None
    assert secret.read_text() == (place / other).read_text() == "as it was"
    assert answers.open(ID.replace("0", "2")) is None


def test_sweeping_takes_what_is_old(answers: Answers, tmp_path: Path) -> None:
    place = tmp_path / "answers"
    os.mkfifo(place / "old")
    os.utime(place / "old", (0, 0))
    os.mkfifo(place / "new")
    (place / "directory").mkdir()
    os.utime(place / "directory", (0, 0))
    assert answers.sweep() == 1
    assert {path.name for path in place.iterdir()} == {"new", "directory"}


def test_missed_calls_are_taken_once_and_in_order(tmp_path: Path) -> None:
    missed = Missed(tmp_path)
    missed.prepare()
    path = tmp_path / "missed"
    assert path.stat().st_mode & 0o777 == 0o660
    taken: list[bytes] = []
    assert missed.take(taken.append)
    assert taken == []
    path.write_text("one\ntwo\n")
    with path.open("a") as late:
        assert missed.take(taken.append)
        assert path.stat().st_size == 0
        # Who had the file open before it was replaced writes now.
        late.write("three\n")
    path.write_text("four\n")
    assert missed.take(taken.append)
    assert missed.take(taken.append)
    assert taken == [b"one", b"two", b"three", b"four"]
    missed.prepare()
    missed.close()
    assert [each.name for each in tmp_path.iterdir()] == ["missed"]


def test_a_file_of_missed_calls_that_is_full_does_not_tell_all(tmp_path: Path) -> None:
    missed = Missed(tmp_path)
    missed.prepare()
    taken: list[bytes] = []
    (tmp_path / "missed").write_bytes(b"a\n" * (MISSED_MAX // 2))
    assert not missed.take(taken.append)
    assert len(taken) == MISSED_MAX // 2
    assert missed.take(taken.append)
    missed.close()


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    missed = Missed(tmp_path)
    (tmp_path / "secret").write_text("one\n")
    (tmp_path / "missed").symlink_to(tmp_path / "secret")
    with pytest.raises(OSError):
        missed.take(lambda _: pytest.fail("it was read"))
    missed.prepare()
    assert not (tmp_path / "missed").is_symlink()
    assert missed.take(lambda _: pytest.fail("it was read"))
    assert (tmp_path / "secret").read_text() == "one\n"


def test_a_fifo_that_was_taken_away(tmp_path: Path) -> None:
    fifo = RequestFifo(tmp_path)
    fifo.open()
    assert not fifo.lost
    (tmp_path / "requests").unlink()
    assert fifo.lost
    os.mkfifo(tmp_path / "requests")
    assert fifo.lost
    fifo.close()
    assert (tmp_path / "requests").exists(), "it is somebody else's"
