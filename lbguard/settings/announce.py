"""Settings of group `announce`: gratuitous ARP and unsolicited neighbour advertisements."""

from pydantic import BaseModel, Field, model_validator
from pydantic_core import PydanticCustomError

from lbguard.settings.durations import format_duration
from lbguard.settings.fields import GROUP, Durations, number


class AnnounceSettings(BaseModel):
    """Gratuitous ARP and unsolicited neighbour advertisements."""

    model_config = GROUP
    repeats: Durations = Field(
        default=(0.0, 0.1, 1.1, 2.2),
        max_length=16,
        description="Times at which the addresses of a new link are announced, after its appearance; 0 first,"
        " ascending.",
        json_schema_extra={"unit": "list of durations"},
    )
    max_pending: int = number(
        4096,
        "addresses",
        "The most addresses, of all links, that wait to be announced or announced again.",
        low=1,
        high=1_000_000,
    )

    @model_validator(mode="after")
    def _ascending(self) -> "AnnounceSettings":
        if self.repeats[:1] != (0.0,) or list(self.repeats) != sorted(set(self.repeats)):
            raise PydanticCustomError(
                "across",
                "does not start with 0 and ascend",
                {
                    "setting": "announce.repeats",
                    "value": ",".join(format_duration(item) for item in self.repeats),
                    "allowed": "0 and then durations in ascending order, such as 0s,100ms,1.1s,2.2s",
                },
            )
        return self
