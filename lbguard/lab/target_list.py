"""File with the list of targets, which a scenario changes while the processes that read it run."""

import asyncio
from pathlib import Path

import yaml


class TargetList:
    """List of the targets of a chain; a change replaces the file in one step.

    Args:
        path: the file, which holds every target at first.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._everybody = yaml.safe_load(path.read_text())
        self._left_out: set[int] = set()

    async def remove(self, *identifiers: int) -> None:
        """Remove targets from the list."""
        self._left_out.update(identifiers)
        await asyncio.to_thread(self._write)

    async def add(self, *identifiers: int) -> None:
        """Put targets back into the list."""
        self._left_out.difference_update(identifiers)
        await asyncio.to_thread(self._write)

    async def move(self, identifier: int, ips: list[str]) -> None:
        """Give a target other addresses."""
        for stream in self._everybody["streams"]:
            for each in stream["targets"]:
                if each["identifier"] == identifier:
                    each["ips"] = ips
        await asyncio.to_thread(self._write)

    def _write(self) -> None:
        streams = [
            {**stream, "targets": [each for each in stream["targets"] if each["identifier"] not in self._left_out]}
            for stream in self._everybody["streams"]
        ]
        new = self._path.with_suffix(".new")
        new.write_text(yaml.safe_dump({"streams": streams}, sort_keys=False))
        new.replace(self._path)
