import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from lbguard.sources.interposer.answers import Answers
from lbguard.sources.interposer.directory import SharedDirectory

ID = "0123abcd-4567-89ab-cdef-0123456789ab"


@pytest.fixture
def answers(shared: SharedDirectory) -> Iterator[Answers]:
    made = Answers(shared)
    made.prepare()
    made.prepare()
    yield made
    made.close()


def offers(directory: Path) -> set[str]:
    return {path.name for path in (directory / "offers").iterdir()}


def wait_at(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_NONBLOCK)


def test_an_answer_at_the_callers_own_fifo(answers: Answers, tmp_path: Path) -> None:
    path = tmp_path / "answers" / ID
    os.mkfifo(path)
    assert answers.open(ID) is None, "nobody waits"
    caller = wait_at(path)
    way_back = answers.open(ID)
    assert way_back is not None
    assert not path.exists(), "it is used once"
    assert answers.send(way_back, b"1 done\n")
    assert os.read(caller, 100) == b"1 done\n"
    os.close(caller)
    assert answers.open(ID) is None


def test_the_caller_is_gone_before_the_answer(answers: Answers, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "answers" / ID)
    caller = wait_at(tmp_path / "answers" / ID)
    way_back = answers.open(ID)
    assert way_back is not None
    os.close(caller)
    assert not answers.send(way_back, b"1 done\n")


def test_an_answer_at_an_offer(answers: Answers, tmp_path: Path) -> None:
    ready = offers(tmp_path)
    assert len(ready) == 8
    name = min(ready)
    status = (tmp_path / "offers" / name).stat()
    assert stat.S_ISFIFO(status.st_mode)
    assert status.st_mode & 0o777 == 0o660
    claim = tmp_path / "offers" / f".{name}"
    claim.touch()
    caller = wait_at(tmp_path / "offers" / name)
    way_back = answers.open(name)
    assert way_back is not None
    assert offers(tmp_path) == ready - {name}, "neither it nor its claim is left"
    assert answers.send(way_back, b"1 done\n")
    assert os.read(caller, 100) == b"1 done\n"
    os.close(caller)
    answers.offer()
    assert len(offers(tmp_path)) == 8
    assert name not in offers(tmp_path)


def test_offers_of_an_earlier_run_are_answered_too(shared: SharedDirectory, tmp_path: Path) -> None:
    earlier = Answers(shared)
    earlier.prepare()
    earlier.close()
    [name, *_] = sorted(offers(tmp_path))
    answers = Answers(shared)
    answers.prepare()
    caller = wait_at(tmp_path / "offers" / name)
    way_back = answers.open(name)
    assert way_back is not None
    assert answers.send(way_back, b"1 done\n")
    os.close(caller)
    answers.close()


def test_what_is_no_fifo_is_not_written(answers: Answers, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("as it was")
    for place in (tmp_path / "answers", tmp_path / "offers"):
        (place / ID).symlink_to(secret)
        assert answers.open(ID) is None
        other = ID.replace("0", "1")
        (place / other).write_text("as it was")
        assert answers.open(other) is None
        assert secret.read_text() == (place / other).read_text() == "as it was"
        assert answers.open(ID.replace("0", "2")) is None


def test_sweeping_takes_the_old_fifos_of_callers_and_nothing_else(answers: Answers, tmp_path: Path) -> None:
    place = tmp_path / "answers"
    names = [ID.replace("0123", f"{number:04}") for number in range(4)]
    os.mkfifo(place / names[0])
    os.mkfifo(place / "another-name")
    (place / names[1]).write_text("no FIFO")
    (place / names[2]).mkdir()
    for path in place.iterdir():
        os.utime(path, (0, 0))
    os.mkfifo(place / names[3])
    assert answers.sweep() == 1
    assert {path.name for path in place.iterdir()} == {"another-name", *names[1:]}


def test_sweeping_takes_offers_that_were_claimed_for_nothing_and_those_of_an_earlier_run(
    answers: Answers, tmp_path: Path
) -> None:
    place = tmp_path / "offers"
    claimed, fresh, *unclaimed = sorted(offers(tmp_path))
    (place / f".{claimed}").touch()
    os.mkfifo(place / ID)
    for path in place.iterdir():
        os.utime(path, (0, 0))
    (place / f".{fresh}").touch()
    assert answers.sweep() == 2
    assert offers(tmp_path) == {fresh, f".{fresh}", *unclaimed}
    answers.offer()
    assert len(offers(tmp_path)) == 9
