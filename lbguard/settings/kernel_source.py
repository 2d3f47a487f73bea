"""Settings of the source `kernel`: group `kernel_source`, environment `LBGUARD_KERNEL_SOURCE__...`."""

import itertools
from typing import Annotated, NamedTuple

from pydantic import BaseModel, BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from lbguard.core.stream_limits import MAX_MARK, NAME_PATTERN
from lbguard.settings.fields import GROUP, Duration, checked, seconds, split

EXAMPLE = "stream-a=5001-5100"


class MarkRange(NamedTuple):
    """The marks of a stream: identifier 1 has `first`."""

    name: str
    first: int
    last: int


def parse_range(text: str) -> MarkRange:
    """Read `NAME=FIRST-LAST`.

    Raises:
        ValueError: the text is not a range of marks.
    """
    name, _, marks = text.strip().partition("=")
    first, dash, last = marks.partition("-")
    if NAME_PATTERN.fullmatch(name) is None or not dash or not (first.isdecimal() and last.isdecimal()):
        raise ValueError(f"not a range of marks, such as {EXAMPLE}")
    if not 1 <= int(first) <= int(last) <= MAX_MARK:
        raise ValueError(f"the marks of a range ascend from 1 to {MAX_MARK}, such as {EXAMPLE}")
    return MarkRange(name, int(first), int(last))


Ranges = Annotated[tuple[Annotated[str, checked(parse_range)], ...], BeforeValidator(split)]


class KernelSourceSettings(BaseModel):
    """Targets from the load balancer's own rules and routes (source kernel)."""

    model_config = GROUP
    streams: Ranges = Field(
        default=(),
        description="Marks of each stream; a target with any other mark belongs to the stream `kernel`, with its mark"
        " as the identifier.",
        json_schema_extra={"unit": "list", "allowed": f"NAME=FIRST-LAST between commas, such as {EXAMPLE}"},
    )
    keep: Duration = seconds(
        600.0,
        "A target is kept this long after the load balancer removed its rules while its path was broken.",
        high=86400.0,
    )

    @model_validator(mode="after")
    def _apart(self) -> "KernelSourceSettings":
        ranges = sorted(self.ranges, key=lambda each: each.first)
        for one, other in itertools.pairwise(ranges):
            if other.first <= one.last:
                raise PydanticCustomError(
                    "across",
                    "two streams share marks",
                    {
                        "setting": "kernel_source.streams",
                        "value": f"{one.name} and {other.name}",
                        "allowed": "ranges that do not overlap",
                    },
                )
        if len({each.name for each in ranges}) < len(ranges):
            raise PydanticCustomError(
                "across",
                "a stream is named twice",
                {"setting": "kernel_source.streams", "value": ",".join(self.streams), "allowed": "one range a stream"},
            )
        return self

    @property
    def ranges(self) -> tuple[MarkRange, ...]:
        """The ranges, in the given order."""
        return tuple(parse_range(text) for text in self.streams)
