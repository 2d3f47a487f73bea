"""Traces of incidents: the spans of OpenTelemetry's own library, and what a collector gets over gRPC."""

import dataclasses
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from lbguard.core.effects import Announce, FlushNeighbors, ProgramRoutes, ResolveNeighbors, SolicitNeighbors
from lbguard.core.model import Action, Condition, Evidence, LinkKey, Route, RouteKind, TargetKey
from lbguard.distributor.base import CommitResult
from lbguard.telemetry.tracing import STEPS_MAX, IncidentTracer, make_trace_export
from tests.otlp_collector import Collector
from tests.unit.examples import IPV4, IPV6, decision

KEY = TargetKey("stream-a", 1)
T0 = 1_700_000_000.0
BROKEN = (Evidence(ip=IPV4, condition=Condition.LINK_DOWN, ifname="nsm0"),)
ROUTE = Route(table=5001, ipv4=True, kind=RouteKind.UNICAST, metric=2048, gateway=IPV4, oif=7)
LINK = LinkKey(7, 1)
MAC = bytes(6)


class Traced:
    """A tracer, and the spans that ended."""

    def __init__(self, open_max: int = 10) -> None:
        self._exporter = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = IncidentTracer(provider.get_tracer("test"), open_max=open_max)

    def decided(self, action: Action, after_s: float, **more: object) -> str:
        made = dataclasses.replace(decision(action, evidence=BROKEN), **more)  # type: ignore[arg-type]
        return self.tracer.decided(made, T0 + after_s)

    def spans(self) -> list[ReadableSpan]:
        return list(self._exporter.get_finished_spans())

    def named(self) -> dict[str, tuple[float, float]]:
        """Return begin and end of each span by name, in seconds after T0."""
        return {
            span.name: (round((span.start_time or 0) / 1e9 - T0, 3), round((span.end_time or 0) / 1e9 - T0, 3))
            for span in self.spans()
        }


def test_a_hold_that_recovers_is_one_trace_with_its_repair() -> None:
    traced = Traced()
    trace = traced.decided(Action.HOLD, 0.0)
    traced.tracer.performed(ProgramRoutes(replace=(ROUTE,)), T0 + 0.4)
    traced.tracer.performed(FlushNeighbors(entries=((7, IPV4),)), T0 + 0.41)
    traced.tracer.performed(ResolveNeighbors(entries=((7, IPV4), (7, IPV6))), T0 + 0.42)
    announce = Announce(link=LINK, ifname="nsm0", mac=MAC, addresses=(IPV4, IPV6))
    traced.tracer.performed(announce, T0 + 0.43)
    assert traced.decided(Action.RECOVER, 0.5) == trace
    assert traced.named() == {
        "routes": (0.4, 0.4),
        "neighbors": (0.42, 0.42),
        "announce": (0.43, 0.43),
        "hold": (0.0, 0.5),
        "incident": (0.0, 0.5),
    }
    spans = traced.spans()
    root = spans[-1]
    assert root.context is not None
    assert {f"{span.context.trace_id:032x}" for span in spans if span.context} == {trace}
    assert all(span.parent and span.parent.span_id == root.context.span_id for span in spans[:-1])
    assert root.attributes is not None
    assert root.attributes["lbguard.outcome"] == "recovered"
    assert (root.attributes["lbguard.stream"], root.attributes["lbguard.identifier"]) == ("stream-a", 1)
    loss = root.events[0]
    assert loss.name == "loss"
    assert dict(loss.attributes or {}) == {"lbguard.path.172.16.1.10": "link_down nsm0"}


def test_a_target_that_is_frozen_withdrawn_and_readmitted() -> None:
    traced = Traced()
    traced.decided(Action.HOLD, 0.0)
    traced.decided(Action.REVISE, 1.0)
    traced.decided(Action.FREEZE, 3.0)
    traced.decided(Action.WITHDRAW, 5.0)
    traced.tracer.committed(CommitResult(stream="stream-a", slots_changed=25, duration_s=0.2), T0 + 5.3)
    traced.tracer.committed(CommitResult(stream="stream-b", slots_changed=1, duration_s=0.2), T0 + 5.3)
    traced.decided(Action.WAIT, 8.0)
    traced.decided(Action.READMIT, 9.0)
    assert traced.named() == {
        "hold": (0.0, 3.0),
        "freeze": (3.0, 5.0),
        "commit": (5.1, 5.3),
        "withdrawn": (5.0, 9.0),
        "incident": (0.0, 9.0),
    }
    hold = next(span for span in traced.spans() if span.name == "hold")
    assert [event.name for event in hold.events] == ["revise"]


def test_a_held_target_that_an_operator_withdraws() -> None:
    traced = Traced()
    traced.decided(Action.HOLD, 0.0)
    traced.decided(Action.TAKE_OUT, 1.0)
    traced.decided(Action.READMIT, 3.0)
    assert traced.named() == {"hold": (0.0, 1.0), "withdrawn": (1.0, 3.0), "incident": (0.0, 3.0)}


def test_steps_for_others_belong_to_no_trace() -> None:
    traced = Traced()
    traced.decided(Action.HOLD, 0.0)
    traced.tracer.performed(SolicitNeighbors(link=LINK, mac=MAC, pairs=((IPV4, IPV6),)), T0 + 0.1)
    traced.tracer.performed(Announce(link=LINK, ifname="nsm9", mac=MAC, addresses=(IPV6,)), T0 + 0.1)
    traced.decided(Action.RECOVER, 0.5, target=TargetKey("stream-a", 2))
    assert traced.spans() == []
    assert traced.decided(Action.ADMIT, 1.0, target=TargetKey("stream-a", 2)) == ""
    traced.decided(Action.REMOVE, 2.0)
    assert [span.name for span in traced.spans()] == ["hold", "incident"]


def test_incidents_and_steps_are_bounded() -> None:
    traced = Traced(open_max=2)
    traces = [traced.decided(Action.HOLD, 0.0, target=TargetKey("s", number)) for number in range(4)]
    assert [bool(trace) for trace in traces] == [True, True, False, False]
    for number in range(2 * STEPS_MAX):
        traced.tracer.performed(FlushNeighbors(entries=((7, IPV4),)), T0 + number / 10)
    assert sum(span.name == "neighbors" for span in traced.spans()) == 2 * STEPS_MAX
    traced.decided(Action.RECOVER, 20.0, target=TargetKey("s", 0))
    assert traced.decided(Action.HOLD, 21.0, target=TargetKey("s", 3)), "there is room again"


def test_open_spans_end_with_the_service() -> None:
    traced = Traced()
    traced.decided(Action.HOLD, 0.0)
    traced.tracer.close(T0 + 2.0)
    assert traced.named() == {"hold": (0.0, 2.0), "incident": (0.0, 2.0)}


@pytest.fixture
def collector() -> Iterator[Collector]:
    running = Collector()
    yield running
    running.close()


def test_a_collector_gets_the_trace_over_grpc(collector: Collector) -> None:
    export = make_trace_export(f"http://127.0.0.1:{collector.port}", {"trench": "red"})
    trace = export.incidents.decided(decision(Action.HOLD, evidence=BROKEN), T0)
    export.incidents.decided(decision(Action.RECOVER, evidence=BROKEN), T0 + 0.5)
    export.close()
    (of_service,) = [spans for request in collector.requests for spans in request.resource_spans]
    named = {entry.key: entry.value.string_value for entry in of_service.resource.attributes}
    assert named["service.name"] == "lbguard"
    assert named["lbguard.trench"] == "red"
    spans = collector.spans()
    assert {span.name for span in spans} == {"hold", "incident"}
    assert {span.trace_id.hex() for span in spans} == {trace}
    root = next(span for span in spans if not span.parent_span_id)
    assert (root.end_time_unix_nano - root.start_time_unix_nano) == 500_000_000


def test_a_collector_that_is_away_holds_nothing_up() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # taken, and nobody listens
        export = make_trace_export(f"http://127.0.0.1:{closed.getsockname()[1]}", {})
        for number in range(5_000):
            key = TargetKey("s", number)
            export.incidents.decided(dataclasses.replace(decision(Action.HOLD), target=key), T0)
            export.incidents.decided(dataclasses.replace(decision(Action.RECOVER), target=key), T0 + 1)
        export.close()


def test_without_the_extra_it_is_refused_with_a_remedy() -> None:
    program = (
        "import sys; sys.modules['opentelemetry.exporter'] = None\n"
        "from lbguard.telemetry.tracing import make_trace_export\n"
        "make_trace_export('http://collector:4317', {})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert "StartError: tracing.endpoint = http://collector:4317: needs the extra otel" in done.stderr
    assert "pip install 'lbguard[otel]'" in done.stderr


def test_a_service_without_traces_loads_nothing_of_the_library() -> None:
    program = "import sys, lbguard.service.daemon; print([name for name in sys.modules if 'opentelemetry' in name])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"
