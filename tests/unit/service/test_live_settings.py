"""The settings file of a running service: as a ConfigMap changes it, and as an editor does."""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from lbguard.core.status import SettingsFileStatus, WaitingSetting
from lbguard.service.live_settings import LiveSettings
from lbguard.settings.model import Settings, SettingsError, load
from lbguard.telemetry.metrics.config import ConfigMetrics
from lbguard.telemetry.metrics.families import MetricFamilies

LIMIT_S = 30.0


class Follower:
    """A follower of the file in a ConfigMap's directory, and what it applied."""

    def __init__(self, directory: Path, text: str, **flags: str) -> None:
        self.directory = directory
        self.path = directory / "lbguard.yaml"
        self.path.symlink_to("..data/lbguard.yaml")
        self._number = 0
        self.registry = CollectorRegistry()
        self.applied: list[tuple[Settings, Settings]] = []
        self.swap(text)
        loaded = load(config=self.path, flags={name.replace("__", "."): value for name, value in flags.items()})
        metrics = ConfigMetrics(MetricFamilies(self.registry))
        self.live = LiveSettings(
            loaded, lambda before, after: self.applied.append((before, after)), metrics, poll_interval_s=0.01
        )

    def swap(self, text: str) -> None:
        """Replace the content as the kubelet does: a new directory, and a link that is renamed to `..data`."""
        self._number += 1
        new = self.directory / f"..{self._number}"
        new.mkdir()
        (new / "lbguard.yaml").write_text(text)
        beside = self.directory / "..data_tmp"
        beside.symlink_to(new.name)
        beside.rename(self.directory / "..data")

    def metric(self, name: str, **labels: str) -> float:
        value = self.registry.get_sample_value(f"lbguard_config_{name}", labels)
        assert value is not None
        return value

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(LIMIT_S):
            while not condition():  # noqa: ASYNC110 (gauges have no event)
                await asyncio.sleep(0.01)


@pytest.fixture
async def follower(tmp_path: Path) -> AsyncIterator[Follower]:
    follower = Follower(tmp_path, "grace: {window: 4s}", freeze__limit="50s")
    task = asyncio.create_task(follower.live.run())
    yield follower
    task.cancel()


async def test_a_config_map_that_changes_is_applied(follower: Follower) -> None:
    follower.swap("grace: {window: 2s, max: 20s}\nmode: observe\nfreeze: {limit: 10s}")
    await follower.until(lambda: follower.applied)
    [(before, after)] = follower.applied
    assert (before.grace.window, after.grace.window, after.grace.max) == (4.0, 2.0, 20.0)
    assert after.mode == "enforce"
    assert after.freeze.limit == 50.0, "a flag is stronger than the file"
    assert follower.metric("reload_total", outcome="applied") == 1
    assert follower.metric("restart_needed") == 1
    follower.swap("grace: {window: 2s, max: 20s}")
    await follower.until(lambda: follower.metric("restart_needed") == 0)
    assert len(follower.applied) == 1
    assert follower.metric("reload_total", outcome="unchanged") == 1


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("grace: {window: 40s}", "grace.window = 40s"),
        ("grace: {windw: 2s}\nlog: {level: loud}", "did you mean grace.window?"),
        ("grace: [", "expected node content"),
        ("[1]", "holds no mapping of settings"),
    ],
)
async def test_a_file_that_is_refused_changes_nothing(
    follower: Follower, text: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    good_at = follower.metric("last_good_timestamp_seconds")
    follower.swap(text)
    await follower.until(lambda: follower.metric("refused"))
    assert follower.metric("reload_total", outcome="refused") == 1
    assert not follower.applied
    [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert reason in vars(record)["fields"]["reason"]
    status = follower.live.status()
    assert status is not None
    assert status.path == str(follower.path)
    assert reason in status.problem
    follower.swap("grace: {window: 50s}")
    await follower.until(lambda: "grace.window = 50s" in (follower.live.status() or status).problem)
    again = follower.live.status()
    assert again is not None
    assert again.refused_since == status.refused_since, "it is refused since the first of these contents"
    follower.swap("grace: {window: 4s}")
    await follower.until(lambda: not follower.metric("refused"))
    assert follower.live.status() == SettingsFileStatus(path=str(follower.path))
    assert not follower.applied
    assert follower.metric("last_good_timestamp_seconds") >= good_at


async def test_a_file_that_is_gone_changes_nothing(follower: Follower) -> None:
    (follower.directory / "..data").unlink()
    await follower.until(lambda: follower.metric("refused"))
    assert not follower.applied


async def test_a_file_that_is_written_in_place_counts_when_it_is_complete(tmp_path: Path) -> None:
    follower = Follower(tmp_path, "grace: {window: 4s}")
    task = asyncio.create_task(follower.live.run())
    target = follower.directory / "..1" / "lbguard.yaml"
    with target.open("w") as file:
        for part in ("grace: {window: 1s}\n", "damping: {step: 9s}\n"):
            file.write(part)
            file.flush()
            os.fsync(file.fileno())
            await asyncio.sleep(0.3)
            assert not follower.applied
    await follower.until(lambda: follower.applied)
    [(_, after)] = follower.applied
    assert (after.grace.window, after.damping.step) == (1.0, 9.0)
    task.cancel()


async def test_a_reload_reads_at_once(follower: Follower) -> None:
    (follower.directory / "..1" / "lbguard.yaml").write_text("grace: {window: 1s}")
    follower.live.reload()
    await follower.until(lambda: follower.applied)


async def test_each_change_that_needs_a_restart_is_named_once(
    follower: Follower, caplog: pytest.LogCaptureFixture
) -> None:
    for window in ("3s", "2s"):
        follower.swap(f"grace: {{window: {window}}}\nkernel: {{inbox_limit: 70000}}")
        await follower.until(lambda: follower.applied and follower.applied[-1][1].grace.window == float(window[0]))  # noqa: B023
    named = [record for record in caplog.records if record.getMessage() == "setting changes with the next restart"]
    assert [vars(record)["fields"]["setting"] for record in named] == ["kernel.inbox_limit"]
    status = follower.live.status()
    assert status is not None
    assert status.waiting == (WaitingSetting(name="kernel.inbox_limit", running="65536", wanted="70000"),)


async def test_a_comparison_changes_nothing(follower: Follower) -> None:
    found = await follower.live.compare(b"grace: {window: 1s}\nfreeze: {limit: 1s}", Path("new.yaml"))
    assert [(each.name, each.running, each.wanted) for each in found] == [("grace.window", "4s", "1s")]
    with pytest.raises(SettingsError, match=r"grace.window = 40s \(file new.yaml\)"):
        await follower.live.compare(b"grace: {window: 40s}", Path("new.yaml"))
    assert not follower.applied


async def test_without_a_file_nothing_is_followed() -> None:
    live = LiveSettings(load(), lambda before, after: None, ConfigMetrics(MetricFamilies(CollectorRegistry())))
    await live.run()
    assert live.status() is None
    assert [each.name for each in await live.compare(b"mode: observe", Path("new.yaml"))] == ["mode"]
