from prometheus_client import CollectorRegistry

from lbguard.core.model import Action, ManualAction, Override, TargetKey
from lbguard.telemetry.metrics.guard import Metrics
from tests.unit.examples import decision


def test_overrides_and_commands_are_counted() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    hold = Override(action=ManualAction.HOLD, since=0.0, until=9.0)
    metrics.control.record(["a", "b"], {TargetKey("a", 1): hold, TargetKey("gone", 1): hold}, {("hold", "done"): 2})

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(name, labels)

    assert value("lbguard_overrides", stream="a", action="hold") == 1
    assert value("lbguard_overrides", stream="b", action="drain") == 0
    assert value("lbguard_overrides", stream="gone", action="hold") is None
    assert value("lbguard_override_commands_total", action="hold", outcome="done") == 2
    assert value("lbguard_override_commands_total", action="drain", outcome="would_empty_stream") == 0
    metrics.control.record(["b"], {}, {("hold", "done"): 3})
    assert value("lbguard_overrides", stream="a", action="hold") is None
    assert value("lbguard_override_commands_total", action="hold", outcome="done") == 3


def test_what_an_operator_withdrew_heals_nothing_when_it_is_back() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    for action in (Action.TAKE_OUT, Action.READMIT):
        metrics.streams.record_decision(decision(action, duration_s=500.0))
    heals = next(m for m in registry.collect() if m.name == "lbguard_heal_duration_seconds")
    assert not any(sample.value for sample in heals.samples)
