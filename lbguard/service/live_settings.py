"""Settings that change while the service runs: follows the file of `--config`, and answers what another would change.

The file is watched as the list of targets is. Its whole content is checked together with the other sources, in their
order: flags and environment variables stay what they were at the start. A file that is refused changes nothing.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lbguard.core.status import SettingsFileStatus, WaitingSetting
from lbguard.settings.changes import differences, with_live
from lbguard.settings.check import check_settings
from lbguard.settings.difference import Difference
from lbguard.settings.model import Loaded, Settings, SettingsError
from lbguard.settings.yaml_file import YamlFileError
from lbguard.sources.watched_file import WatchedFile
from lbguard.telemetry.log import fields
from lbguard.telemetry.metrics.config import ConfigMetrics

_log = logging.getLogger("lbguard.service.settings")

_POLL_INTERVAL_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """The file cannot be used."""

    reason: str


class LiveSettings:
    """Follower of the settings file.

    Args:
        loaded: the settings of the start, with their sources.
        apply: makes other settings effective; it gets those in force and the new ones.
        metrics: where outcomes are counted.
        poll_interval_s: interval of the polls, seconds.
    """

    def __init__(
        self,
        loaded: Loaded,
        apply: Callable[[Settings, Settings], None],
        metrics: ConfigMetrics,
        *,
        poll_interval_s: float = _POLL_INTERVAL_S,
    ) -> None:
        self.running = loaded.settings
        self._loaded = loaded
        self._apply = apply
        self._metrics = metrics
        self._waiting: tuple[Difference, ...] = ()
        self._refused: Refused | None = None
        self._refused_since: float | None = None
        self._is_first = True
        self._file: WatchedFile[Loaded, Refused] | None = None
        if loaded.config_path is not None:
            self._file = WatchedFile(
                loaded.config_path,
                self._parse,
                lambda reason: Refused(reason=reason),
                lambda new, old: new == old,
                self._observe,
                poll_interval_s=poll_interval_s,
            )
            metrics.accepted(time.time())

    async def run(self) -> None:
        """Follow the file until cancelled; without a file this does nothing."""
        if self._file is not None:
            await self._file.run()

    def reload(self) -> None:
        """Read the file now."""
        if self._file is not None:
            self._file.reload()

    async def compare(self, content: bytes, path: Path) -> tuple[Difference, ...]:
        """Return what a file would change if it were the service's. Nothing is changed.

        Raises:
            SettingsError: it would be refused.
        """
        loaded = await asyncio.to_thread(self._loaded.again, content, path)
        return differences(self.running, loaded.settings)

    def status(self) -> SettingsFileStatus | None:
        """Return the state of the file; None: there is none."""
        if self._loaded.config_path is None:
            return None
        return SettingsFileStatus(
            path=str(self._loaded.config_path),
            problem="" if self._refused is None else self._refused.reason,
            refused_since=self._refused_since,
            waiting=tuple(
                WaitingSetting(name=each.name, running=each.running, wanted=each.wanted) for each in self._waiting
            ),
        )

    def _parse(self, content: bytes) -> Loaded:
        assert self._loaded.config_path is not None
        try:
            return self._loaded.again(content)
        except SettingsError as error:
            raise YamlFileError(self._loaded.config_path, error.lines) from None

    def _observe(self, found: Loaded | Refused) -> None:
        if isinstance(found, Refused):
            self._metrics.refused()
            if self._refused is None:
                self._refused_since = time.monotonic()
            self._refused = found
            _log.error("settings file refused: the settings in force stay", extra=fields(reason=found.reason))
            return
        self._refused, self._refused_since = None, None
        changed = differences(self.running, found.settings)
        live = [difference for difference in changed if difference.live]
        if live:
            before, self.running = self.running, with_live(self.running, found.settings, live)
            self._apply(before, self.running)
            for each in live:
                _log.info("setting changed", extra=fields(setting=each.name, value=each.wanted, before=each.running))
            for warning in check_settings(self.running):
                _log.warning("settings", extra=fields(id=warning.name, what=warning.what, remedy=warning.remedy))
        waiting = tuple(difference for difference in changed if not difference.live)
        for each in waiting:
            if each not in self._waiting:
                _log.warning(
                    "setting changes with the next restart",
                    extra=fields(setting=each.name, value=each.wanted, in_force=each.running),
                )
        self._waiting = waiting
        # The first reading is usually that of the start.
        applied = None if self._is_first and not changed else bool(live)
        self._metrics.accepted(time.time(), applied=applied, waiting=len(waiting))
        self._is_first = False
