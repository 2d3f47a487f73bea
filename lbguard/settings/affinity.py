"""Settings of group `affinity`: flows that stay with the target that answered them."""

from typing import Literal

from pydantic import BaseModel, Field, field_validator

from lbguard.settings.fields import GROUP, Duration, number, seconds


class AffinitySettings(BaseModel):
    """Flow affinity: new connections avoid a target that is cut off, and stay with the target that answered them."""

    model_config = GROUP
    mode: Literal["incident", "all", "off"] = Field(
        default="off",
        description="incident: flows that begin while a registered target is not active are remembered; all: every new"
        " flow is. In both, the kernel gives new connections to a healthy target while theirs is cut off. Only in mode"
        " enforce.",
    )
    max_flows: int = number(
        65_536, "flows", "The most flows that are remembered, of each protocol and family.", low=1, high=2**24
    )
    idle: Duration = seconds(900.0, "A flow without packets is forgotten after this.", low=10, high=86_400)
    udp: bool = Field(
        default=False,
        description="Remember and steer UDP too. A UDP flow that began before an incident moves when its target is cut"
        " off, unless mode is all.",
    )

    @field_validator("mode", mode="before")
    @classmethod
    def _off_in_yaml(cls, value: object) -> object:
        # YAML reads the word `off` without quotes as false.
        return "off" if value is False else value
