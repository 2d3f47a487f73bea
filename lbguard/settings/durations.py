"""Parser of durations: `500ms`, `3s`, `2m`; a plain number is seconds."""

import math
import re

_FACTORS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "": 1.0}
_PATTERN = re.compile(r"(\d+(?:\.\d+)?|\.\d+)\s*(us|ms|s|m|h)?", re.ASCII)

EXAMPLES = "500ms, 3s, 2m"
"""Examples in errors about durations."""


def parse_duration(value: object) -> float:
    """Parse a duration and return seconds.

    Args:
        value: text such as `500ms`, `1.5s` or `2m`, or a number of seconds.

    Raises:
        ValueError: it is not a duration, or a negative, infinite or undefined one.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"not a duration, such as {EXAMPLES}")
    if isinstance(value, int | float):
        seconds = float(value)
    else:
        match = _PATTERN.fullmatch(value.strip())
        if match is None:
            raise ValueError(f"not a duration, such as {EXAMPLES}")
        # Dividing keeps 100ms at exactly 0.1, which multiplying by 1e-3 would not for every value.
        number, unit = float(match[1]), match[2] or ""
        factor = _FACTORS[unit]
        seconds = number * factor if factor >= 1 else number / round(1 / factor)
    if not math.isfinite(seconds) or seconds < 0:
        raise ValueError("a duration is a finite number, zero or more")
    return seconds


def format_duration(seconds: float) -> str:
    """Return seconds as text from which `parse_duration` returns the same value."""
    if seconds and seconds < 1:
        return f"{round(seconds * 1000, 6):g}ms"
    if seconds >= 60 and seconds % 60 == 0:
        return f"{seconds / 60:g}m"
    return f"{round(seconds, 6):.10g}s"
