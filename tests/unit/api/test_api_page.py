"""docs/api.md names everything that the protocol has and nothing else, and its Python runs."""

import asyncio
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from grpc import StatusCode

from lbguard.api.feeds import DecisionLog
from lbguard.api.gen.v1 import lbguard_pb2 as pb
from lbguard.api.server import ApiServer
from lbguard.core.model import Decision, TargetKey, TargetState
from lbguard.core.status import GuardStatus
from tests.unit.examples import guard_status, target

PAGE = (Path(__file__).resolve().parents[3] / "docs/api.md").read_text()


def sections() -> dict[str, str]:
    """Return the text under each heading of the third level."""
    parts = re.split(r"(?m)^#{2,3} (.+)$", PAGE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def rows(section: str) -> set[tuple[int, str]]:
    return {(int(number), name) for number, name in re.findall(r"(?m)^\| (\d+) \| `(\w+)` \|", section)}


def test_every_method_is_described() -> None:
    methods = {
        f"{service.name}.{method.name}"
        for service in pb.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }
    assert methods == {heading for heading in sections() if "." in heading}
    for name in methods:
        assert len(sections()[name].strip().splitlines()) >= 3, f"{name} has no description"


def test_every_field_of_every_message_is_listed() -> None:
    for name, message in pb.DESCRIPTOR.message_types_by_name.items():
        assert rows(sections()[name]) == {(field.number, field.name) for field in message.fields}, name


def test_every_value_of_every_enum_is_listed() -> None:
    for name, enum in pb.DESCRIPTOR.enum_types_by_name.items():
        assert rows(sections()[name]) == {(value.number, value.name) for value in enum.values}, name


def test_nothing_is_described_that_there_is_not() -> None:
    known = {*pb.DESCRIPTOR.message_types_by_name, *pb.DESCRIPTOR.enum_types_by_name}
    known |= {*pb.DESCRIPTOR.services_by_name, "Messages", "Enums"}
    assert {heading for heading in sections() if "." not in heading} == known


def test_the_errors_are_those_of_grpc() -> None:
    errors = {
        heading: re.findall(r"(?m)^- `([A-Z_]+)`: .", text)
        for heading, text in sections().items()
        if re.search(r"(?m)^- `", text)
    }
    assert errors == {
        "GuardService.ExplainTarget": ["NOT_FOUND", "INVALID_ARGUMENT"],
        "ControlService": ["INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION"],
        "SettingsService.CompareSettings": ["INVALID_ARGUMENT", "UNIMPLEMENTED"],
        "VerdictService": [
            "INVALID_ARGUMENT",
            "PERMISSION_DENIED",
            "RESOURCE_EXHAUSTED",
            "ABORTED",
            "DEADLINE_EXCEEDED",
        ],
    }
    assert {name for names in errors.values() for name in names} <= {code.name for code in StatusCode}


class Guard:
    """A service with one held target."""

    def __init__(self) -> None:
        self.log = DecisionLog()

    async def status(self) -> GuardStatus:
        return guard_status(target(1, TargetState.HELD, cause="no_link", deadline=103.0))

    def decisions(self, target: TargetKey | None, limit: int) -> Sequence[tuple[Decision, float]]:
        return self.log.last(target, limit)


async def test_the_python_on_the_page_runs(tmp_path: Path) -> None:
    (program,) = re.findall(r"(?s)```python\n(.*?)```", PAGE)
    socket = tmp_path / "lbguard.sock"
    assert "/run/lbguard/lbguard.sock" in program
    guard = Guard()
    server = ApiServer(socket, guard, guard.log)
    await server.start()
    argv = [sys.executable, "-c", program.replace("/run/lbguard/lbguard.sock", str(socket))]
    try:
        done = await asyncio.to_thread(subprocess.run, argv, capture_output=True, text=True, timeout=90, check=False)
    finally:
        await server.stop(0)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "stream-a 1 held no_link"
    assert "has been held for 10.0 s" in done.stdout
