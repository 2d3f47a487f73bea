import dataclasses
import gzip
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from lbguard.core.config import EngineConfig
from lbguard.core.events import KernelSnapshot, SourceSnapshot
from lbguard.recording.checkpoint import CheckpointError, decode_nodes, encode_nodes, freeze, restore
from lbguard.recording.format import GOES_ON, Header, RecordingError
from lbguard.recording.reader import Ended, find_files
from lbguard.recording.recorder import RecordedEngine
from lbguard.recording.replay import Continuity, replay
from lbguard.recording.writer import RecordingWriter
from tests.fakes.direct_tape import DirectTape
from tests.unit.core.harness import Guard

CONFIG = EngineConfig(neighbor_probe_interval_s=0.0, solicit_neighbors=False)


class _Tape(DirectTape):
    due = False

    @property
    def wanted(self) -> int:
        due, self.due = self.due, False
        return 2 if due else 0


@pytest.fixture
def two_files(tmp_path: Path) -> list[Path]:
    """A recording whose second file begins while a target is held."""
    guard = Guard(CONFIG, start=False)
    writer = RecordingWriter(tmp_path, CONFIG, wall_offset=lambda: 1e9)
    tape = _Tape(writer)
    guard.engine = RecordedEngine(CONFIG, tape)
    guard.tell(KernelSnapshot())
    guard.link(1)
    guard.link(2, proxy=1)
    guard.source()
    guard.register(1, 2, 3)
    guard.unlink(1)
    guard.now += 1.0
    tape.due = True
    guard.tell()
    guard.link(3)
    guard.wait(5.0)
    writer.close()
    return find_files([tmp_path])


def rewrite_header(path: Path, **values: object) -> None:
    first, *rest = gzip.decompress(path.read_bytes()).decode().splitlines()
    lines = [json.dumps({**json.loads(first), **values}), *rest]
    path.write_bytes(gzip.compress(("\n".join(lines) + "\n").encode()))


def said(files: Sequence[Path]) -> int:
    report = replay(files)
    assert report.difference is None
    return report.decisions


def test_each_file_alone_tells_its_part(two_files: list[Path]) -> None:
    first, second = two_files
    assert said([first]) + said([second]) == said(two_files)
    assert said([second]) >= 3


def test_a_state_of_another_core_is_not_guessed_at(two_files: list[Path]) -> None:
    first, second = two_files
    for path in two_files:
        rewrite_header(path, core="0123456789abcdef", lbguard="0.0.9")
    # From its beginning a recording can be replayed by any version; it says that a difference may be a change.
    report = replay([first, second])
    assert report.difference is None
    assert report.core_differs == {"0.0.9"}
    with pytest.raises(RecordingError, match=r"another version of the core.*lbguard 0\.0\.9.*file 1"):
        replay([second])


def test_the_engine_goes_on_only_where_nothing_is_missing() -> None:
    header = Header(lbguard="", core="", series="a", number=1, begins="start", now=0.0, offset=0.0)

    def goes_on(before: Header, after: Header, *, torn: bool = False) -> bool:
        continuity = Continuity()
        continuity.begins(before)
        continuity.ended(Ended(Path(), torn))
        return continuity.begins(after)

    following = dataclasses.replace(header, number=2, begins=GOES_ON)
    assert goes_on(header, following)
    assert not goes_on(header, following, torn=True)
    assert not goes_on(header, dataclasses.replace(following, number=3))
    assert not goes_on(header, dataclasses.replace(following, series="b"))
    assert not goes_on(header, dataclasses.replace(following, begins="after_loss"))
    assert not Continuity().begins(following)


def test_a_frozen_state_is_a_copy(two_files: list[Path]) -> None:
    guard = Guard(CONFIG)
    nodes = freeze(guard.engine)
    before = list(encode_nodes(nodes))
    guard.unlink(1)
    guard.wait(10.0)
    guard.engine.observe(SourceSnapshot(streams=()), guard.now)
    assert list(encode_nodes(nodes)) == before
    restored = restore(decode_nodes(json.loads(json.dumps(before))))
    assert restored.status(100.0).targets[0].state == "active"
    assert list(encode_nodes(freeze(restored))) == before


def test_a_state_that_does_not_fit_is_refused() -> None:
    rows = json.loads(json.dumps(list(encode_nodes(freeze(Guard(CONFIG).engine)))))
    for wrong in (
        rows[1:],
        [],
        [["Engine", None, "view", {"@": 10**6}]],
        [["Nobody", None]],
        [["Engine", None, {"z": 1}]],
    ):
        with pytest.raises(CheckpointError):
            restore(decode_nodes(wrong))
