"""Every metric of the guard, by what its series tell of. The probe has its own (lbguard.probe.metrics)."""
