"""Settings of the decisions: grace, freeze, damping, availability, evidence, drains and operators' commands."""

from pydantic import BaseModel, Field, model_validator
from pydantic_core import PydanticCustomError

from lbguard.settings.fields import (
    ACROSS,
    GROUP,
    LIVE,
    AmountText,
    Duration,
    OptionalDuration,
    OptionalSocketPath,
    amount,
    number,
    ratio,
    seconds,
)
from lbguard.settings.notation import format_duration


class GraceSettings(BaseModel):
    """Time for which a target with a broken path stays in the distributor."""

    model_config = GROUP
    window: Duration = seconds(
        3.0, "A target is held this long after its path broke, then withdrawn.", high=3600, live=True
    )
    max: Duration = seconds(30.0, "The longest hold, counted from the loss, extensions included.", high=3600, live=True)
    neighbor_window: OptionalDuration = seconds(
        None,
        "Window when the neighbour entry failed while the link is fine; unset: grace.window.",
        high=3600,
        live=True,
    )
    verdict_window: OptionalDuration = seconds(
        None, "Window when a proxy's verdict is DOWN while the link is fine; unset: grace.window.", high=3600, live=True
    )
    adaptive: bool = Field(
        default=False,
        description="Learn the window from the durations of past heals in a subnet; only for causes without a window of"
        " their own.",
        json_schema_extra=LIVE,
    )
    adaptive_quantile: float = ratio(
        0.95, "The share of past heals that the adaptive window covers.", low=0.5, live=True
    )

    @model_validator(mode="after")
    def _windows_within_max(self) -> "GraceSettings":
        for name in ("window", "neighbor_window", "verdict_window"):
            value = getattr(self, name)
            if value is not None and value > self.max:
                raise PydanticCustomError(
                    ACROSS,
                    "longer than grace.max",
                    {
                        "setting": f"grace.{name}",
                        "value": format_duration(value),
                        "allowed": f"at most grace.max, which is {format_duration(self.max)}",
                    },
                )
        return self


class FreezeSettings(BaseModel):
    """Freeze of withdrawals: when many targets break at once, the fault is probably on this node."""

    model_config = GROUP
    threshold: float = ratio(
        0.5,
        "No target is withdrawn while more than this share of a stream's admitted targets, and at least two,"
        " are broken.",
        live=True,
    )
    limit: Duration = seconds(60.0, "The longest freeze.", high=3600, live=True)


class DampingSettings(BaseModel):
    """Delay of the re-admission of targets that were withdrawn repeatedly."""

    model_config = GROUP
    half_life: Duration = seconds(30.0, "The penalty of past losses halves in this time.", low=0.1, live=True)
    step: Duration = seconds(2.0, "Delay per penalty above one; the first recovery never waits.", high=3600, live=True)
    max: Duration = seconds(30.0, "The longest delay of a re-admission.", high=3600, live=True)


class AvailabilitySettings(BaseModel):
    """Availability of streams that routers see."""

    model_config = GROUP
    grace: Duration = seconds(
        1.0,
        "A stream below its quorum is reported unavailable after this time; its table does not change.",
        high=3600,
        live=True,
    )
    quorum: AmountText = amount(
        "1", "A stream is available while so many of its targets, or this share of them, get new traffic; at most all."
    )
    hysteresis: AmountText = amount(
        "0", "A stream that is unavailable needs so many targets more than the quorum, or all, to be available again."
    )
    lame_duck: Duration = seconds(
        0.0,
        "At SIGTERM lbguard first reports that it is unavailable and not ready, and stops this much later; a second"
        " signal stops it at once.",
        high=3600,
        live=True,
    )
    readyz: bool = Field(
        default=False,
        description="/readyz and `health --ready` say no while no stream is available.",
        json_schema_extra=LIVE,
    )
    socket: OptionalSocketPath = Field(
        default=None,
        description="Unix socket on which Meridio's frontend learns whether this load balancer can forward, in place"
        " of Meridio's own (/var/lib/meridio/lb.sock); with TLS where nsp has certificates. Unset: not served.",
    )


class EvidenceSettings(BaseModel):
    """Weight of soft evidence (failed neighbours, verdicts)."""

    model_config = GROUP
    soft_budget: float = ratio(
        0.5, "Soft evidence alone withdraws at most this share of a stream's admitted targets.", live=True
    )
    verdict_confirm: int = number(
        1,
        "verdicts",
        "A reporter's DOWN counts when this many of its last verdicts are DOWN.",
        low=1,
        high=100,
        live=True,
    )
    verdict_memory: int = number(
        3, "verdicts", "Number of a reporter's last verdicts that are considered.", low=1, high=100, live=True
    )
    veto_window: Duration = seconds(
        2.5,
        "A DOWN verdict is vetoed by a neighbour that answered, or packets that arrived, less than this ago.",
        high=3600,
        live=True,
    )
    neighbor_failures: int = number(
        2,
        "failures",
        "A path counts as broken after this many failed resolutions in a row.",
        low=1,
        high=100,
        live=True,
    )


class DrainSettings(BaseModel):
    """Drain of a target that leaves the list: its connections go on, it gets no new ones. It needs flow affinity."""

    model_config = GROUP
    window: Duration = seconds(
        0.0,
        "A target that leaves the list keeps its connections for this time. 0: it is removed at once. A lost path ends"
        " the drain.",
        high=86_400,
        live=True,
    )
    idle: Duration = seconds(
        30.0, "A drain ends after this time without a packet for the target.", low=1, high=86_400, live=True
    )


class ControlSettings(BaseModel):
    """Commands of operators on the unix socket: drain, hold, withdraw and release targets, each with an end."""

    model_config = GROUP
    enabled: bool = Field(
        default=True,
        description="Take the commands `lbguard drain`, `hold`, `withdraw` and `release` on the unix socket. Every"
        " process that may open the socket (mode 0660) may give them. Off: commands that an earlier run left open end"
        " at the start.",
    )
    duration: Duration = seconds(600.0, "Time to the end of a command that names none.", low=1, high=604_800)
    max_duration: Duration = seconds(28_800.0, "The longest time to the end of a command.", low=1, high=604_800)

    @model_validator(mode="after")
    def _duration_within_max(self) -> "ControlSettings":
        if self.duration > self.max_duration:
            raise PydanticCustomError(
                ACROSS,
                "longer than control.max_duration",
                {
                    "setting": "control.duration",
                    "value": format_duration(self.duration),
                    "allowed": f"at most control.max_duration, which is {format_duration(self.max_duration)}",
                },
            )
        return self
