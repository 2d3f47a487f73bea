import asyncio
import contextlib
import logging
from pathlib import Path

import pytest

from lbguard.service.readiness import ReadinessFiles, ready_streams


class World:
    """The two directories, and what is known of each stream."""

    def __init__(self, path: Path) -> None:
        self.ours, self.balancer = path / "ready", path / "meridio"
        self.balancer.mkdir()
        self.available: dict[str, bool] = {}
        self.files = ReadinessFiles(self.ours, self.balancer, self.available.get)

    def activate(self, *streams: str) -> None:
        for stream in streams:
            (self.balancer / f"lb-ready-{stream}").touch()

    def after_look(self) -> set[str]:
        self.files.look()
        return {path.name for path in self.ours.iterdir()}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_both_have_to_agree() -> None:
    known = {"yes": True, "no": False}
    assert ready_streams(["yes", "no", "unknown"], known.get) == {"yes", "unknown"}


def test_a_file_exists_while_the_load_balancers_does_and_the_stream_is_available(world: World) -> None:
    assert world.after_look() == set()
    world.available["web"] = True
    assert world.after_look() == set(), "the load balancer has no target"
    world.activate("web", "db")
    assert world.after_look() == {"lb-ready-web", "lb-ready-db"}
    world.available["web"] = False
    assert world.after_look() == {"lb-ready-db"}
    world.available["web"] = True
    assert world.after_look() == {"lb-ready-web", "lb-ready-db"}
    (world.balancer / "lb-ready-web").unlink()
    assert world.after_look() == {"lb-ready-db"}
    assert {path.name for path in world.balancer.iterdir()} == {"lb-ready-db"}


def test_other_files_stay_and_make_nothing(world: World) -> None:
    world.activate("web", "-odd", "a b")
    (world.balancer / "lb-ready-").touch()
    (world.balancer / "other").touch()
    world.after_look()
    (world.ours / "other").touch()
    assert world.after_look() == {"lb-ready-web", "other"}


def test_a_link_in_our_directory_is_not_followed(world: World, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("kept")
    world.ours.mkdir()
    (world.ours / "lb-ready-web").symlink_to(tmp_path / "elsewhere")
    assert world.after_look() == set()
    assert (tmp_path / "elsewhere").read_text() == "kept"


def test_files_stay_while_the_load_balancers_directory_cannot_be_read(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.activate("web")
    assert world.after_look() == {"lb-ready-web"}
    world.balancer.rename(world.balancer.with_name("away"))
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            assert world.after_look() == {"lb-ready-web"}
    assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == 1
    assert "meridio" in world.files.problem
    world.balancer.mkdir()
    assert world.after_look() == set()
    assert world.files.problem == ""


async def test_at_the_end_the_load_balancers_word_counts_alone(world: World) -> None:
    world.available["web"] = False
    world.activate("web", "db")
    task = asyncio.create_task(world.files.run())
    for _ in range(3000):
        if (world.ours / "lb-ready-db").exists():
            break
        await asyncio.sleep(0.01)
    assert (world.ours / "lb-ready-db").exists()
    assert not (world.ours / "lb-ready-web").exists()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert (world.ours / "lb-ready-web").exists()
