"""Output of `lbguard replay`."""

from typing import Any

from lbguard.core.effects import SetAvailability
from lbguard.core.model import Decision
from lbguard.recording.format import local_time
from lbguard.recording.replay import Difference, ReplayReport
from lbguard.telemetry.log import decision_fields
from lbguard.telemetry.sentences import decision_sentence


def _said(what: object | None) -> str:
    match what:
        case Decision():
            return f"#{what.sequence} {decision_sentence(what)}"
        case SetAvailability():
            return f"stream {what.stream} {'available' if what.available else 'unavailable'}: {what.reason}"
    return "nothing"


def _said_json(what: object | None) -> Any:
    match what:
        case Decision():
            return {"decision": decision_fields(what)}
        case SetAvailability():
            return {"availability": {"stream": what.stream, "available": what.available, "reason": what.reason}}
    return None


def report_text(report: ReplayReport) -> str:
    """Return the result of a replay, as text for people."""
    lines = []
    if report.began is not None and report.ended is not None:
        lines.append(
            f"{report.files} file{'' if report.files == 1 else 's'}, {local_time(report.began)} to "
            f"{local_time(report.ended)}: {report.events} events, {report.calls} calls of the engine, "
            f"{report.decisions} decisions"
        )
    hosts = sorted(host for host in report.hosts if host)
    if hosts:
        lines.append(f"recorded on {', '.join(hosts)}")
    again = report.restarts - len(report.hosts)
    if again > 0:
        lines.append(f"the service began anew {'once' if again == 1 else f'{again} times'} in between")
    if report.lost:
        were = "1 entry was" if report.lost == 1 else f"{report.lost} entries were"
        lines.append(f"{were} never recorded (the queue, a file or the disk was full); nothing is known of that time")
    lines += [f"{path}: no proper end (the service was killed, or still writes it)" for path in report.torn]
    if report.core_differs:
        versions = ", ".join(sorted(report.core_differs))
        lines.append(f"recorded by another version of the core (lbguard {versions}): a difference may be a change")
    lines += _happened(report)
    if report.difference is None and not report.decisions:
        lines.append("nothing was decided in it")
    elif report.difference is None:
        lines.append("every decision is the same, bit for bit")
    else:
        lines += _difference_lines(report.difference)
    return "\n".join(lines)


_NAMED = 8
"""So many targets are named in a line of the text; the JSON form has all."""


def _happened(report: ReplayReport) -> list[str]:
    """Return which targets drained, and which families were withdrawn alone."""
    families = [f"{family} of {target}" for target, family in report.families]
    lines = []
    for what, names in (("began to drain", list(map(str, report.drained))), ("withdrawn alone", families)):
        if names:
            more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
            lines.append(f"{what}: {', '.join(names[:_NAMED])}{more}")
    return lines


def _difference_lines(difference: Difference) -> list[str]:
    lines = [
        f"DIFFERENT at {local_time(difference.wall_time)} ({difference.now:.6f} of the engine's clock), "
        f"{difference.path}:",
        f"  recorded: {_said(difference.recorded)}",
        f"  replayed: {_said(difference.replayed)}",
    ]
    one, other = difference.recorded, difference.replayed
    if isinstance(one, Decision) and isinstance(other, Decision):
        names = [name for name in Decision.__slots__ if getattr(one, name) != getattr(other, name)]
        lines += [f"  {name}: recorded {getattr(one, name)}, replayed {getattr(other, name)}" for name in names]
    return lines


def report_json(report: ReplayReport) -> dict[str, Any]:
    """Return the result of a replay, as plain values."""
    difference = report.difference
    return {
        "same": difference is None,
        "files": report.files,
        "began": report.began,
        "ended": report.ended,
        "events": report.events,
        "calls": report.calls,
        "decisions": report.decisions,
        "restarts": report.restarts,
        "lost": report.lost,
        "torn": [str(path) for path in report.torn],
        "hosts": sorted(host for host in report.hosts if host),
        "drained": {str(target): count for target, count in report.drained.items()},
        "families_withdrawn": [
            {"target": str(target), "family": family, "count": count}
            for (target, family), count in report.families.items()
        ],
        "core_differs": sorted(report.core_differs),
        "difference": None
        if difference is None
        else {
            "file": str(difference.path),
            "now": difference.now,
            "wall_time": difference.wall_time,
            "recorded": _said_json(difference.recorded),
            "replayed": _said_json(difference.replayed),
        },
    }
