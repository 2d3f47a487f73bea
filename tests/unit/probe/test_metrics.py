from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from lbguard.core.model import VerdictState
from lbguard.probe.datapath import ProbeCounters
from lbguard.probe.metrics import ProbeMetrics, list_probe_metrics


def samples(metrics: ProbeMetrics) -> dict[str, float]:
    text = generate_latest(metrics.registry).decode()
    return {
        sample.name + "".join(f"{{{name}={value}}}" for name, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_what_the_monitor_counts_is_shown() -> None:
    counters = ProbeCounters()
    metrics = ProbeMetrics(CollectorRegistry(), counters)
    counters.rounds["good"] += 3
    counters.pings[True] += 8
    counters.replies[True] += 7
    counters.late_replies[False] += 1
    counters.send_errors["ENETUNREACH"] += 2
    counters.changes[VerdictState.DOWN] += 1
    counters.stray_replies = 4
    counters.rtt[True].add(0.0002)
    counters.rtt[True].add(0.2)
    counters.rtt[True].add(9.0)
    counters.lag.add(0.0001, 5)
    found = samples(metrics)
    assert found["lbguard_probe_rounds_total{outcome=good}"] == 3
    assert found["lbguard_probe_pings_total{family=ipv4}"] == 8
    assert found["lbguard_probe_pings_total{family=ipv6}"] == 0
    assert found["lbguard_probe_replies_total{family=ipv4}"] == 7
    assert found["lbguard_probe_late_replies_total{family=ipv6}"] == 1
    assert found["lbguard_probe_send_errors_total{error=ENETUNREACH}"] == 2
    assert found["lbguard_probe_verdict_changes_total{state=down}"] == 1
    assert found["lbguard_probe_verdict_changes_total{state=up}"] == 0
    assert found["lbguard_probe_stray_replies_total"] == 4
    assert found["lbguard_probe_round_trip_seconds_bucket{family=ipv4}{le=0.0001}"] == 0
    assert found["lbguard_probe_round_trip_seconds_bucket{family=ipv4}{le=0.00025}"] == 1
    assert found["lbguard_probe_round_trip_seconds_bucket{family=ipv4}{le=0.25}"] == 2
    assert found["lbguard_probe_round_trip_seconds_bucket{family=ipv4}{le=+Inf}"] == 3
    assert found["lbguard_probe_round_trip_seconds_count{family=ipv4}"] == 3
    assert found["lbguard_probe_round_trip_seconds_sum{family=ipv4}"] == 9.2002
    assert found["lbguard_probe_send_lag_seconds_count"] == 5


def test_a_load_balancer_that_is_left_leaves_no_series() -> None:
    metrics = ProbeMetrics(CollectorRegistry(), ProbeCounters())
    metrics.report_stream("10.0.0.1:7443", connected=True)
    metrics.report_answered("10.0.0.1:7443", 3, ["late", "not a reason!"])
    found = samples(metrics)
    assert found["lbguard_probe_reports_total{to=10.0.0.1:7443}"] == 3
    assert found["lbguard_probe_report_failures_total{to=10.0.0.1:7443}"] == 0
    metrics.forget_report_stream("10.0.0.1:7443")
    found = samples(metrics)
    assert not [name for name in found if "10.0.0.1:7443" in name]
    assert found["lbguard_probe_reports_ignored_total{reason=late}"] == 1
    assert found["lbguard_probe_reports_ignored_total{reason=other}"] == 1


def test_every_series_that_is_shown_is_documented() -> None:
    metrics = ProbeMetrics(CollectorRegistry(), ProbeCounters())
    documented = {spec.name for spec in list_probe_metrics()}
    shown = {family.name for family in metrics.registry.collect() if family.name.startswith("lbguard_probe_")}
    assert {name.removesuffix("_total") for name in documented} == shown
    assert all(spec.help.endswith(".") for spec in list_probe_metrics())
