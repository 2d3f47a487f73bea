"""Settings of the datapath: distributor, links, neighbours, announcements, parking, affinity, the kernel's mirror."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from lbguard.settings.fields import (
    ACROSS,
    GROUP,
    Duration,
    Durations,
    FilePath,
    Patterns,
    number,
    seconds,
    unit,
)
from lbguard.settings.notation import format_duration


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
