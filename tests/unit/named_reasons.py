"""Collects every named reason of the code: from its enumerations, and from literals where it names them in place."""

import ast
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

from lbguard.announce.sender import Suppressed
from lbguard.api.verdicts.policy import DenyReason
from lbguard.api.verdicts.queue import IGNORED_REASONS, OVERLOADED, Limit
from lbguard.core.lifecycle import MANUAL_CAUSES
from lbguard.core.manual import ENDS, REFUSALS
from lbguard.core.model import Condition
from lbguard.kernel.codec.constants import IgnoredReason
from lbguard.recording.recorder import DROP_REASONS
from lbguard.service.event_reporter import RESYNC_REASONS
from lbguard.service.parking import DROP_REASONS as PARKING_DROP_REASONS
from lbguard.sources.skipped import Reason
from lbguard.telemetry.metrics.guard import UNREADY_REASONS

PACKAGE = Path(__file__).resolve().parents[2] / "lbguard"

Match = Callable[[ast.AST], Iterator[ast.expr]]


def _texts(node: ast.expr) -> Iterator[str]:
    """Yield what a literal says; the holes of an f-string are `*`. A choice (`a if b else c`) says each."""
    match node:
        case ast.Constant(value=str(text)):
            yield text
        case ast.JoinedStr(values=parts):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "*" for part in parts)
        case ast.IfExp(body=body, orelse=orelse):
            yield from _texts(body)
            yield from _texts(orelse)
        case ast.Tuple(elts=items):
            for item in items:
                yield from _texts(item)


@cache
def _nodes_of(file: Path) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(ast.parse(file.read_text())))


def _found(match: Match, *paths: str) -> set[str]:
    files = [file for path in paths for file in sorted(PACKAGE.glob(path))]
    assert files, paths
    return {
        text for file in files for node in _nodes_of(file) for expression in match(node) for text in _texts(expression)
    }


def _argument(name: str, position: int = 0, keyword: str = "") -> Match:
    """Match an argument of calls of `name` or `x.name`."""

    def match(node: ast.AST) -> Iterator[ast.expr]:
        if not isinstance(node, ast.Call):
            return
        called = node.func
        if (called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")) != name:
            return
        yield from (item.value for item in node.keywords if item.arg == keyword)
        if not keyword and len(node.args) > position:
            yield node.args[position]

    return match


def _key_of(name: str) -> Match:
    """Match the key of `x.name["key"]`."""

    def match(node: ast.AST) -> Iterator[ast.expr]:
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Attribute) and node.value.attr == name:
            yield node.slice

    return match


def _returned_by(name: str) -> Match:
    """Match what a function of that name returns."""

    def match(node: ast.AST) -> Iterator[ast.expr]:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            yield from (item.value for item in ast.walk(node) if isinstance(item, ast.Return) and item.value)

    return match


def _assigned_to(*names: str) -> Match:
    """Match what is assigned to names or attributes."""

    def match(node: ast.AST) -> Iterator[ast.expr]:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if (target.attr if isinstance(target, ast.Attribute) else getattr(target, "id", "")) in names:
                    yield node.value

    return match


def _words(texts: set[str]) -> set[str]:
    """Return the names: what stands before a colon, without sentences and empty texts."""
    names = {text.partition(":")[0] for text in texts}
    return {name for name in names if name and " " not in name}


def named_reasons() -> dict[str, set[str]]:
    """Return the names by the heading of the runbook under which they stand. `*` in a name stands for any text."""
    core = "core/*.py"
    dropped = _found(_argument("Taken"), core) | _found(_returned_by("_out_of_order"), "core/opinions.py")
    ignored = (
        _found(_key_of("ignored"), core)
        | _found(_key_of("_ignored"), core)
        | _found(_argument("_ignore_unless", 1), core)
    )
    mirror = "kernel/mirror.py"
    losses = _found(_argument("_lose"), mirror) | _found(_argument("_abandon"), mirror)
    losses |= _found(_argument("KernelOutOfSync", keyword="reason"), "**/*.py")
    causes = _found(_argument("_record", 3), core) | _found(_argument("end_drain", 2), core) | _lifecycle_causes()
    causes |= {*ENDS, *MANUAL_CAUSES.values()}
    availability = "core/commits.py"
    available = _found(_returned_by("availability_reason"), availability) | _found(_argument("_set", 2), availability)
    available |= _found(_argument("get", 1), availability)
    recorder = "recording/recorder.py"
    missing = _found(_argument("_fail"), recorder) | _found(_argument("_lost_here"), recorder)
    unready = _words(
        _found(_returned_by("unready_reason"), "service/parts.py")
        | _found(_returned_by("gate_reason"), "service/parts.py")
    )
    assert unready == set(UNREADY_REASONS)
    assert _words(dropped) | {OVERLOADED} == set(IGNORED_REASONS)
    # A mirror that failed reads nothing any more.
    assert _words(losses) == {*RESYNC_REASONS, "mirror_failed"}
    assert missing == set(DROP_REASONS)
    return {
        "Conditions and causes of holds": {condition.value for condition in Condition if condition is not Condition.OK},
        "Other causes of decisions": _words(causes),
        "Commands that are refused": set(REFUSALS),
        "Why a stream is not available": _words(available) - {"ok"},
        "Why the service is not ready or not alive": unready
        | _words(
            _found(_returned_by("not_alive"), "telemetry/httpd.py")
            | _found(_assigned_to("_unready"), "telemetry/httpd.py")
        ),
        "Why the kernel is read again": _words(losses),
        "Events that changed nothing": (ignored - {"verdict_*"}) | {f"verdict_{name}" for name in _words(dropped)},
        "Verdicts that changed nothing": _words(dropped) | {OVERLOADED},
        "What a verdict weighs": _found(_returned_by("weight"), "core/opinions.py")
        | _found(_returned_by("_weight"), "core/status_view.py"),
        "Verdicts that are refused": {str(reason) for reason in DenyReason},
        "Limits of reporters": {str(limit) for limit in Limit},
        "Rounds of the probe": _found(_returned_by("outcome"), "probe/failure_detector.py"),
        "Announcements that are not sent": {str(reason) for reason in Suppressed},
        "What is missing in recordings": missing,
        "Kernel messages that are not used": {str(reason) for reason in IgnoredReason},
        "Entries of the registry that are skipped": {str(reason) for reason in Reason},
        "Answers to calls of nfqlb": _found(_argument("_Answer", 1), "sources/interposer/source.py")
        | _found(_key_of("calls"), "sources/interposer/source.py"),
        "Parked packets that are dropped": set(PARKING_DROP_REASONS),
        "Findings of the host check": _found(
            _argument("Finding", keyword="id"), "cli/host_files.py", "cli/host_kernel.py"
        ),
    }


def _lifecycle_causes() -> set[str]:
    from lbguard.core import lifecycle

    return set(lifecycle._CAUSES.values())
