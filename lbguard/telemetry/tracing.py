"""Traces of incidents, for OpenTelemetry: one trace for each target that lost a path, from the loss to its end.

The root span `incident` has a child for each phase (`hold`, `freeze`, `withdrawn`), and one for each step of a repair
(`routes`, `neighbors`, `announce`) and for the commits that follow a decision. The package of the extra `otel` sends
them, in a thread of its own; what it cannot send in time is dropped.
"""

import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lbguard import __version__
from lbguard.core.addr import Ip, format_ip
from lbguard.core.effects import Announce, Effect, FlushNeighbors, ProgramRoutes, ResolveNeighbors, SolicitNeighbors
from lbguard.core.model import Action, Condition, Decision, TargetKey
from lbguard.errors import StartError
from lbguard.telemetry.log import fields
from lbguard.telemetry.metrics.streams import CommitOutcome

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span, Tracer

OPEN_MAX = 1000
"""Incidents that are traced at a time; those beyond it are counted in a log line, not traced."""

STEPS_MAX = 64
"""Spans of steps in one incident: a link that flaps must not make a trace without an end."""

_QUEUE_SPANS = 8192
_EXPORT_TIMEOUT_S = 5.0
_FLUSH_S = 1.0

_PHASES = {Action.HOLD: "hold", Action.FREEZE: "freeze", Action.WITHDRAW: "withdrawn", Action.TAKE_OUT: "withdrawn"}
_ENDS = {
    Action.RECOVER: "recovered",
    Action.READMIT: "readmitted",
    Action.PARDON: "pardoned",
    Action.REMOVE: "removed",
    Action.FORGET: "removed",
}
_EVENTS = {
    Action.REVISE,
    Action.WITHDRAW_FAMILY,
    Action.WAIT,
    Action.RELAPSE,
    Action.DRAIN,
    Action.RESUME,
    Action.OVERRIDE,
    Action.RELEASE,
    Action.KEEP,
}

_log = logging.getLogger("lbguard.tracing")

Attributes = Mapping[str, str | int | float]


@dataclass(slots=True)
class _Incident:
    root: "Span"
    phase: "Span"
    ips: set[Ip]
    links: set[str]
    steps: int = 0
    open_since: float = 0.0

    def note(self, decision: Decision) -> None:
        """Remember addresses and links of the target, by which the steps of its repair are found."""
        self.ips |= {item.ip for item in decision.evidence}
        self.links |= {item.ifname for item in decision.evidence if item.ifname}


class IncidentTracer:
    """Makes spans of decisions and of what is done about them. All methods belong to one thread.

    Args:
        tracer: OpenTelemetry's.
        open_max: incidents that are traced at a time.
    """

    def __init__(self, tracer: "Tracer", *, open_max: int = OPEN_MAX) -> None:
        self._tracer = tracer
        self._open_max = open_max
        self._open: dict[TargetKey, _Incident] = {}
        self._left_out_reported = False

    def decided(self, decision: Decision, wall_time: float) -> str:
        """Record a decision; return the identifier of its trace, empty: it has none.

        Args:
            decision: the decision.
            wall_time: when it was taken, seconds since the epoch.
        """
        incident = self._open.get(decision.target)
        if incident is None:
            if decision.action is not Action.HOLD:
                return ""
            begun = self._begin(decision, wall_time)
            return "" if begun is None else _trace_of(begun)
        trace = _trace_of(incident)
        incident.note(decision)
        if decision.action in _ENDS:
            self._end(decision.target, _ENDS[decision.action], wall_time, _attributes(decision))
        elif decision.action in _PHASES:
            incident.phase.end(_ns(wall_time))
            incident.phase = self._child(incident, _PHASES[decision.action], wall_time, _attributes(decision))
        elif decision.action in _EVENTS:
            incident.phase.add_event(str(decision.action), _attributes(decision), _ns(wall_time))
        return trace

    def performed(self, effect: Effect, wall_time: float) -> None:
        """Record a step of a repair at the incidents of the targets that it is about."""
        if not self._open:
            return
        match effect:
            case ProgramRoutes():
                self._step("routes", {route.gateway for route in effect.put}, wall_time, changed=len(effect.put))
            case FlushNeighbors(entries=entries) | ResolveNeighbors(entries=entries):
                kind = "flush" if isinstance(effect, FlushNeighbors) else "resolve"
                self._step("neighbors", {ip for _, ip in entries}, wall_time, kind=kind)
            case SolicitNeighbors(pairs=pairs):
                self._step("neighbors", {ip for _, ip in pairs}, wall_time, kind="solicit")
            case Announce():
                for incident in self._open.values():
                    if effect.ifname in incident.links or not incident.links:
                        named: Attributes = {"interface": effect.ifname, "addresses": len(effect.addresses)}
                        self._mark(incident, "announce", wall_time, named)

    def committed(self, result: CommitOutcome, wall_time: float) -> None:
        """Record a commit at the incidents of its stream; `wall_time` is when it was done."""
        for key, incident in self._open.items():
            if key.stream == result.stream:
                attributes: dict[str, str | int] = {"slots_changed": result.slots_changed}
                if result.error:
                    attributes["error"] = result.error
                self._mark(incident, "commit", wall_time, attributes, wall_time - result.duration_s)

    def close(self, wall_time: float) -> None:
        """End the open spans: the service ends."""
        for key in list(self._open):
            self._end(key, "service stopped", wall_time, {})

    def _begin(self, decision: Decision, wall_time: float) -> _Incident | None:
        if len(self._open) >= self._open_max:
            if not self._left_out_reported:
                self._left_out_reported = True
                _log.warning("too many incidents at a time: some are not traced")
            return None
        attributes = _attributes(decision)
        root = self._tracer.start_span("incident", attributes=attributes, start_time=_ns(wall_time))
        root.add_event("loss", dict(_evidence(decision)), _ns(wall_time))
        incident = _Incident(root=root, phase=root, ips=set(), links=set(), open_since=wall_time)
        incident.note(decision)
        incident.phase = self._child(incident, "hold", wall_time, attributes)
        self._open[decision.target] = incident
        return incident

    def _end(self, key: TargetKey, outcome: str, wall_time: float, attributes: Attributes) -> None:
        incident = self._open.pop(key)
        incident.phase.end(_ns(wall_time))
        incident.root.add_event(outcome, dict(attributes), _ns(wall_time))
        incident.root.set_attribute("lbguard.outcome", outcome)
        incident.root.end(_ns(wall_time))
        if not self._open:
            self._left_out_reported = False

    def _child(self, incident: _Incident, name: str, wall_time: float, attributes: Attributes) -> "Span":
        from opentelemetry.trace import set_span_in_context

        context = set_span_in_context(incident.root)
        return self._tracer.start_span(name, context, attributes=dict(attributes), start_time=_ns(wall_time))

    def _step(self, name: str, ips: set[Ip], wall_time: float, **attributes: str | int) -> None:
        for incident in self._open.values():
            if ips & incident.ips:
                self._mark(incident, name, wall_time, attributes)

    def _mark(
        self, incident: _Incident, name: str, wall_time: float, attributes: Attributes, since: float | None = None
    ) -> None:
        """Add a span of a step that has ended; a step that is only handed over takes no time here."""
        if incident.steps < STEPS_MAX:
            incident.steps += 1
            begun = max(wall_time if since is None else since, incident.open_since)
            named = {f"lbguard.{key}": value for key, value in attributes.items()}
            self._child(incident, name, begun, named).end(_ns(max(begun, wall_time)))


class TraceExport:
    """Connection of the tracer to a collector. `close` sends what is left, within a second.

    Args:
        exporter: sends spans.
        place: attributes of every trace (trench, conduit).
    """

    def __init__(self, exporter: "SpanExporter", place: Mapping[str, str]) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        named = {"service.name": "lbguard", "service.version": __version__, "service.instance.id": os.uname().nodename}
        attributes = named | {f"lbguard.{name}": value for name, value in place.items()}
        # What the environment says (OTEL_RESOURCE_ATTRIBUTES) is added by the library.
        self._provider = TracerProvider(resource=Resource.create(attributes), shutdown_on_exit=False)
        self._exporter = exporter
        self._provider.add_span_processor(BatchSpanProcessor(exporter, max_queue_size=_QUEUE_SPANS))
        self.incidents = IncidentTracer(self._provider.get_tracer("lbguard", __version__))

    def close(self) -> None:
        """End the open incidents and send what is left; it may wait a second, so call it in a thread."""
        self.incidents.close(time.time())
        # The library waits for a collector that is away as long as it takes, whatever limit it is given.
        flush = threading.Thread(target=self._provider.force_flush, name="traces", daemon=True)
        flush.start()
        flush.join(_FLUSH_S)
        if flush.is_alive():
            _log.warning(
                "traces not sent", extra=fields(remedy="look whether the collector of tracing.endpoint answers")
            )
        self._exporter.shutdown()


def make_trace_export(endpoint: str, place: Mapping[str, str]) -> TraceExport:
    """Return an export to a collector of OTLP over gRPC.

    Args:
        endpoint: `http://HOST:PORT`, or `https://HOST:PORT` with the authorities of the system.
        place: attributes of every trace (trench, conduit).

    Raises:
        StartError: the extra is not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    except ImportError:
        raise StartError(
            f"tracing.endpoint = {endpoint}: needs the extra otel: pip install 'lbguard[otel]', or unset it"
        ) from None
    return TraceExport(OTLPSpanExporter(endpoint=endpoint, timeout=_EXPORT_TIMEOUT_S), place)


def _trace_of(incident: _Incident) -> str:
    return f"{incident.root.get_span_context().trace_id:032x}"


def _ns(wall_time: float) -> int:
    return round(wall_time * 1e9)


def _attributes(decision: Decision) -> dict[str, str | int | float]:
    attributes: dict[str, str | int | float] = {
        "lbguard.stream": decision.target.stream,
        "lbguard.identifier": decision.target.identifier,
        "lbguard.action": str(decision.action),
        "lbguard.cause": decision.cause,
        "lbguard.sequence": decision.sequence,
    }
    if decision.deadline is not None:
        attributes["lbguard.deadline_in_s"] = round(max(0.0, decision.deadline - decision.at), 6)
    if decision.duration_s is not None:
        attributes["lbguard.duration_s"] = round(decision.duration_s, 6)
    return attributes


def _evidence(decision: Decision) -> Iterator[tuple[str, str]]:
    for item in decision.evidence:
        if item.condition is not Condition.OK:
            yield f"lbguard.path.{format_ip(item.ip)}", f"{item.condition} {item.ifname}".strip()
