"""How many examples a property is tried with: all of them, or a tenth in the profile `quick` of `make check`."""

from collections.abc import Sequence

from hypothesis import HealthCheck, settings

QUICK = "quick"


def register_profiles() -> None:
    """Make `--hypothesis-profile=quick` known, and take the time of an example for no measure of anything."""
    settings.register_profile("full", deadline=None)
    settings.register_profile(QUICK, deadline=None, max_examples=10)
    settings.load_profile("full")


def examples(number: int, suppress: Sequence[HealthCheck] = ()) -> settings:
    """Return the settings of a property that wants so many examples."""
    quick = settings.get_current_profile_name() == QUICK
    return settings(max_examples=max(5, number // 10) if quick else number, suppress_health_check=suppress)
