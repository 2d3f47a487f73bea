"""The service sends a trace of an incident, with the steps of its repair, to a collector."""

import pytest

from tests.netns.service.guarded import PATIENT, Guarded, wait_until
from tests.otlp_collector import Collector

pytestmark = pytest.mark.netns


def test_a_link_that_comes_back_is_a_trace_of_each_target(guarded: Guarded) -> None:
    with guarded.lb.entered():
        collector = Collector()
    try:
        settings = {**PATIENT, "LBGUARD_TRACING__ENDPOINT": f"http://127.0.0.1:{collector.port}"}
        with guarded.service(settings) as service:
            guarded.delete_link("nse-a")
            guarded.wait_for(t1="held", t2="held", t3="active", t4="active")
            guarded.make_link("nse-a")
            guarded.wait_for(t1="active", t2="active")
            assert service.terminate() == 0
        wait_until(lambda: any(span.name == "incident" for span in collector.spans()), "a trace")
    finally:
        collector.close()
    spans = collector.spans()
    roots = [span for span in spans if not span.parent_span_id]
    targets = {entry.value.int_value for root in roots for entry in root.attributes if entry.key.endswith("identifier")}
    assert targets == {1, 2}
    for root in roots:
        names = {span.name for span in spans if span.trace_id == root.trace_id}
        assert {"incident", "hold", "routes", "neighbors", "announce"} <= names
        for span in spans:
            if span.trace_id == root.trace_id:
                assert root.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano
