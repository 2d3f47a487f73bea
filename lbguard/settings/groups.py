"""Groups of settings: log, grace, evidence, distributor, links, announcements, recording, affinity and others."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from lbguard.settings.fields import (
    ACROSS,
    GROUP,
    LIVE,
    AmountText,
    CollectorAddress,
    Duration,
    Durations,
    FilePath,
    Listen,
    OptionalDuration,
    OptionalSocketPath,
    Patterns,
    amount,
    number,
    ratio,
    seconds,
    unit,
)
from lbguard.settings.notation import COLLECTOR_EXAMPLES, format_duration


class LogSettings(BaseModel):
    """Content and format of the log."""

    model_config = GROUP
    format: Literal["auto", "json", "text"] = Field(
        default="auto", description="JSON lines, readable text, or auto: text on a terminal and JSON otherwise."
    )
    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="The least severe level logged.", json_schema_extra=LIVE
    )


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


class DistributorSettings(BaseModel):
    """Distributor that maps packets to targets."""

    model_config = GROUP
    kind: Literal["auto", "nfqlb-shm", "nftables", "observe"] = Field(
        default="auto",
        description="The distributor; auto: nfqlb-shm where a stream's memory file exists, else nftables.",
    )
    table: Literal["anchored", "maglev"] = Field(
        default="anchored",
        description="anchored: withdrawing a target moves no slot of another; maglev: the table of stock nfqlb.",
    )
    hash_seed: int = number(
        0, "number", "Seed of the embedded distributor; the same on every load balancer.", low=0, high=2**32 - 1
    )
    slots_per_target: int = number(
        100, "slots", "Size of the embedded table: slots for each of max_targets.", low=1, high=10_000
    )
    shm_dir: FilePath = Field(default=Path("/dev/shm"), description="Directory of nfqlb's memory files (tshm-...).")


class LinkSettings(BaseModel):
    """Links to the targets."""

    model_config = GROUP
    superseded: Literal["down", "ignore"] = Field(
        default="ignore",
        description="Treatment of the older of two links in one subnet. ignore: do not change it. down: set it down"
        " once if nothing else needs it, and up again when the newer link is gone.",
    )
    exclude: Patterns = Field(
        default=("lo",),
        description="Names of links (shell patterns) that never lead to targets.",
        json_schema_extra={"unit": "list"},
    )


class NeighborSettings(BaseModel):
    """Neighbour (ARP, NDP) entries of the targets and the timers of their links."""

    model_config = GROUP
    probe_interval: Duration = seconds(
        1.0, "Each target's entry is verified this often; 0 turns it off.", high=3600, live=True
    )
    tune: bool = Field(
        default=True,
        description="On links that face targets, set the kernel's neighbour timers (below) and arp_notify: the kernel"
        " announces their IPv4 addresses as they come up.",
    )
    solicit: bool = Field(
        default=True, description="Send own solicitations for unresolved targets of a new link until they answer."
    )
    retrans: Duration = seconds(0.2, "Time between two solicitations.", low=0.001, high=60)
    delay_probe: Duration = seconds(0.5, "Time in DELAY before the first probe.", low=0.001, high=60)
    base_reachable: Duration = seconds(
        10.0, "Base of the random time that an entry stays REACHABLE.", low=0.1, high=3600
    )
    ucast_probes: int = number(1, "probes", "Unicast probes before the entry counts as failed.", low=1, high=100)
    mcast_probes: int = number(15, "probes", "Broadcast or multicast probes of an unknown entry.", low=1, high=100)
    mcast_reprobes: int = number(
        4, "probes", "Broadcast or multicast probes after the unicast ones: finds a new MAC.", low=0, high=100
    )


class KernelSettings(BaseModel):
    """The mirror of the kernel's state."""

    model_config = GROUP
    reconcile_interval: Duration = seconds(
        10.0, "The kernel's whole state is read again this often; 0 turns it off.", high=3600
    )
    receive_buffer: int = number(8 * 2**20, "bytes", "Receive buffer of the netlink socket.", low=2**16, high=2**30)
    inbox_limit: int = number(
        65_536, "events", "The most events that wait; beyond it the whole state is read again.", low=64, high=2**24
    )


class MetricsSettings(BaseModel):
    """The endpoint for Prometheus and the health checks."""

    model_config = GROUP
    listen: Listen = Field(
        default=":9464",
        description="Address of /metrics, /healthz, /readyz and a page for people, IPv4 and IPv6; empty turns it off.",
        json_schema_extra={"unit": "host:port"},
    )
    per_target: Literal["off", "active", "all"] = Field(
        default="all",
        description=(
            "Targets with series of their own (six each). all: each; active: each from its first loss on; off: none."
            " Streams have their sums in any case."
        ),
    )


class TracingSettings(BaseModel):
    """Traces of incidents for OpenTelemetry; needs the extra `otel`."""

    model_config = GROUP
    endpoint: CollectorAddress = Field(
        default="",
        description=(
            "Collector that gets a trace of each incident (OTLP over gRPC); https verifies it by the system's"
            " authorities. Empty: no traces."
        ),
        json_schema_extra={"unit": "address", "allowed": COLLECTOR_EXAMPLES},
    )


class AnnounceSettings(BaseModel):
    """Gratuitous ARP and unsolicited neighbour advertisements."""

    model_config = GROUP
    repeats: Durations = Field(
        default=(0.0, 0.1, 1.1, 2.2),
        max_length=16,
        description="Times at which the addresses of a new link are announced, after its appearance; 0 first,"
        " ascending.",
        json_schema_extra=unit("list of durations", live=True),
    )
    max_pending: int = number(
        4096,
        "addresses",
        "The most addresses, of all links, that wait to be announced or announced again.",
        low=1,
        high=1_000_000,
        live=True,
    )

    @model_validator(mode="after")
    def _ascending(self) -> "AnnounceSettings":
        if self.repeats[:1] != (0.0,) or list(self.repeats) != sorted(set(self.repeats)):
            raise PydanticCustomError(
                ACROSS,
                "does not start with 0 and ascend",
                {
                    "setting": "announce.repeats",
                    "value": ",".join(format_duration(item) for item in self.repeats),
                    "allowed": "0 and then durations in ascending order, such as 0s,100ms,1.1s,2.2s",
                },
            )
        return self


class RecordingSettings(BaseModel):
    """Recording of the engine's inputs and decisions, in files for `lbguard replay` and `lbguard tune`."""

    model_config = GROUP
    enabled: bool = Field(
        default=False, description="Record every input of the decisions: addresses and names, no secrets."
    )
    directory: FilePath = Field(
        default=Path("/var/lib/lbguard/recording"),
        description="Directory of the files; made if it is missing. The oldest files are deleted first. Other programs"
        " should not use it.",
    )
    max_file: int = number(
        16 * 2**20, "bytes", "The largest size of a file; a new one is begun before.", low=2**20, high=2**32
    )
    max_files: int = number(16, "files", "At most this many files are kept.", low=2, high=10_000)
    flush: Duration = seconds(1.0, "Recorded entries are in the file after at most this time.", low=0.1, high=60)
    queue_limit: int = number(
        262_144,
        "entries",
        "The most entries that wait to be written; beyond it there is a gap, and a new file begins.",
        low=1024,
        high=2**24,
    )


class ParkingSettings(BaseModel):
    """Parking: packets of a target whose path is broken are kept, and given back when the path is repaired."""

    model_config = GROUP
    enabled: bool = Field(
        default=False,
        description="Keep packets of held targets and give them back. It needs /dev/net/tun. Only in mode enforce.",
    )
    bytes: int = number(
        16 * 2**20,
        "bytes",
        "The most memory for kept packets, of all targets together.",
        low=2**16,
        high=2**32,
        live=True,
    )
    packets: int = number(
        16_384, "packets", "The most packets that are kept, of all targets together.", low=16, high=2**20, live=True
    )
    max_age: Duration = seconds(15.0, "A packet that was kept this long is dropped.", low=0.1, high=300, live=True)
    revert_backoff: bool = Field(
        default=True,
        description="Tell the target of each TCP connection whose packets are given back by ICMP (destination"
        " unreachable, RFC 6069) to repeat lost replies at once.",
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


class AffinitySettings(BaseModel):
    """Flow affinity: new connections avoid a target that is cut off, and stay with the target that answered them."""

    model_config = GROUP
    mode: Literal["incident", "all", "off"] = Field(
        default="incident",
        description="incident: flows that begin while a registered target is not active are remembered; all: every new"
        " flow is. In both, the kernel gives new connections to a healthy target while theirs is cut off. Only in mode"
        " enforce.",
    )
    max_flows: int = number(
        65_536, "flows", "The most flows that are remembered, of each protocol and family.", low=1, high=2**24
    )
    idle: Duration = seconds(900.0, "A flow without packets is forgotten after this.", low=10, high=86_400)
    learn: Duration = seconds(
        5.0,
        "A change of a stream's list of targets takes effect this much later; flows seen meanwhile stay with their"
        " target.",
        high=300,
        live=True,
    )
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
