"""All settings of lbguard, each with unit, default, bounds and help; `load` reads and checks them.

Priority: flags (`--set key=value`), environment (`LBGUARD_GRACE__WINDOW`), YAML file, defaults. A refusal
(`sources.py`) names the setting, its source, its value and the allowed values, not the terms of the validation library.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from lbguard import DEFAULT_SOCKET
from lbguard.settings.affinity import AffinitySettings
from lbguard.settings.announce import AnnounceSettings
from lbguard.settings.durations import format_duration
from lbguard.settings.fields import (
    GROUP,
    Duration,
    FilePath,
    Listen,
    OptionalDuration,
    OptionalPath,
    OptionalSocketPath,
    Patterns,
    SocketPath,
    group,
    number,
    ratio,
    seconds,
)
from lbguard.settings.interposer import InterposerSettings
from lbguard.settings.kernel_source import KernelSourceSettings
from lbguard.settings.mesh import MeshSettings
from lbguard.settings.nsm import NsmEventSettings
from lbguard.settings.nsp import NspSettings, check_place
from lbguard.settings.probe import ProbeSettings
from lbguard.settings.recording import RecordingSettings
from lbguard.settings.sources import (
    DEFAULT,
    ENV_DELIMITER,
    ENV_PREFIX,
    EnvironmentSource,
    FileSource,
    NamedSource,
    SettingsError,
    explain,
    leaves,
)
from lbguard.settings.verdicts import VerdictSettings

CONFIG_VARIABLE = f"{ENV_PREFIX}CONFIG"
"""Environment variable that names the YAML file when no `--config` is given."""

_SOURCES = "sources"
"""Name by which `load` hands its sources to `Settings.settings_customise_sources`."""


class LogSettings(BaseModel):
    """Content and format of the log."""

    model_config = GROUP
    format: Literal["auto", "json", "text"] = Field(
        default="auto", description="JSON lines, readable text, or auto: text on a terminal and JSON otherwise."
    )
    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="The least severe level logged."
    )


class GraceSettings(BaseModel):
    """Time for which a target with a broken path stays in the distributor."""

    model_config = GROUP
    window: Duration = seconds(3.0, "A target is held this long after its path broke, then withdrawn.", high=3600)
    max: Duration = seconds(30.0, "The longest hold, counted from the loss, extensions included.", high=3600)
    neighbor_window: OptionalDuration = seconds(
        None, "Window when the neighbour entry failed while the link is fine; unset: grace.window.", high=3600
    )
    verdict_window: OptionalDuration = seconds(
        None, "Window when a proxy's verdict is DOWN while the link is fine; unset: grace.window.", high=3600
    )
    adaptive: bool = Field(
        default=False,
        description="Learn the window from the durations of past heals in a subnet; only for causes without a window of"
        " their own.",
    )
    adaptive_quantile: float = ratio(0.95, "The share of past heals that the adaptive window covers.", low=0.5)

    @model_validator(mode="after")
    def _windows_within_max(self) -> "GraceSettings":
        for name in ("window", "neighbor_window", "verdict_window"):
            value = getattr(self, name)
            if value is not None and value > self.max:
                raise PydanticCustomError(
                    "across",
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
    )
    limit: Duration = seconds(60.0, "The longest freeze.", high=3600)


class DampingSettings(BaseModel):
    """Delay of the re-admission of targets that were withdrawn repeatedly."""

    model_config = GROUP
    half_life: Duration = seconds(30.0, "The penalty of past losses halves in this time.", low=0.1)
    step: Duration = seconds(2.0, "Delay per penalty above one; the first recovery never waits.", high=3600)
    max: Duration = seconds(30.0, "The longest delay of a re-admission.", high=3600)


class AvailabilitySettings(BaseModel):
    """Availability of streams that routers see."""

    model_config = GROUP
    grace: Duration = seconds(
        1.0,
        "A stream without a usable path is reported unavailable after this time; its table does not change.",
        high=3600,
    )
    socket: OptionalSocketPath = Field(
        default=None,
        description="Unix socket on which Meridio's frontend learns whether this load balancer can forward, in place"
        " of Meridio's own (/var/lib/meridio/lb.sock); with TLS where nsp has certificates. Unset: not served.",
    )


class EvidenceSettings(BaseModel):
    """Weight of soft evidence (failed neighbours, verdicts)."""

    model_config = GROUP
    soft_budget: float = ratio(0.5, "Soft evidence alone withdraws at most this share of a stream's admitted targets.")
    verdict_confirm: int = number(
        1, "verdicts", "A reporter's DOWN counts when this many of its last verdicts are DOWN.", low=1, high=100
    )
    verdict_memory: int = number(
        3, "verdicts", "Number of a reporter's last verdicts that are considered.", low=1, high=100
    )
    veto_window: Duration = seconds(
        2.5,
        "A DOWN verdict is vetoed by a neighbour that answered, or packets that arrived, less than this ago.",
        high=3600,
    )
    neighbor_failures: int = number(
        2, "failures", "A path counts as broken after this many failed resolutions in a row.", low=1, high=100
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
    probe_interval: Duration = seconds(1.0, "Each target's entry is verified this often; 0 turns it off.", high=3600)
    tune: bool = Field(
        default=True, description="Set the kernel's neighbour timers (below) on links that face targets."
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
        description="Address of /metrics, /healthz and /readyz, IPv4 and IPv6; empty turns it off.",
        json_schema_extra={"unit": "host:port"},
    )


class Settings(BaseSettings):
    """All settings; `load` reads them from their sources."""

    # Text in a variable is not parsed as JSON.
    model_config = SettingsConfigDict(
        frozen=True, env_prefix=ENV_PREFIX, env_nested_delimiter=ENV_DELIMITER, enable_decoding=False
    )

    mode: Literal["enforce", "companion", "observe"] = Field(
        default="enforce",
        description="observe: lbguard decides, counts and logs, and changes nothing. companion: it also repairs"
        " neighbours and announces addresses, beside a load balancer that manages its table, routes and rules itself.",
    )
    source: Literal["file", "nsp", "interposer", "kernel"] = Field(
        default="file",
        description="Source of streams and targets: targets_file, Meridio's registry (nsp), the calls of nfqlb that an"
        " unmodified load balancer makes (interposer), or its rules and routes (kernel; not with enforce).",
    )
    targets_file: OptionalPath = Field(default=None, description="YAML file that lists streams and targets; watched.")
    socket: SocketPath = Field(default=Path(DEFAULT_SOCKET), description="Unix socket of the API, made with mode 0660.")
    withdraw_on_exit: bool = Field(
        default=False,
        description="Withdraw every target and remove routes and rules at exit; off: leave everything in place.",
    )
    log: LogSettings = group()
    grace: GraceSettings = group()
    freeze: FreezeSettings = group()
    damping: DampingSettings = group()
    availability: AvailabilitySettings = group()
    affinity: AffinitySettings = group()
    evidence: EvidenceSettings = group()
    distributor: DistributorSettings = group()
    links: LinkSettings = group()
    neighbors: NeighborSettings = group()
    announce: AnnounceSettings = group()
    kernel: KernelSettings = group()
    metrics: MetricsSettings = group()
    verdicts: VerdictSettings = group()
    nsp: NspSettings = group()
    interposer: InterposerSettings = group()
    kernel_source: KernelSourceSettings = group()
    nsm: NsmEventSettings = group()
    mesh: MeshSettings = group()
    probe: ProbeSettings = group()
    recording: RecordingSettings = group()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return the sources that `load` made, the strongest first; without them, only the caller's values count."""
        sources: tuple[PydanticBaseSettingsSource, ...] = init_settings().get(_SOURCES, (init_settings,))
        return sources

    @model_validator(mode="after")
    def _source_is_told(self) -> "Settings":
        if self.source == "nsp":
            check_place(self.nsp)
        if self.source == "kernel" and self.mode == "enforce":
            raise PydanticCustomError(
                "across",
                "lbguard would read its own rules and routes back as the source",
                {"setting": "mode", "value": "enforce", "allowed": "companion or observe with source kernel"},
            )
        if self.source == "interposer" and self.distributor.kind == "nftables":
            raise PydanticCustomError(
                "across",
                "the load balancer's packets follow nfqlb's memory, so an nftables table would have no effect",
                {
                    "setting": "distributor.kind",
                    "value": "nftables",
                    "allowed": "auto, nfqlb-shm or observe with source interposer",
                },
            )
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """Settings, and the source of each value by dotted name (`default`, or text such as `flag --set`).

    `notes` are warnings for the operator, such as an unknown environment variable.
    """

    settings: Settings
    origins: Mapping[str, str]
    notes: tuple[str, ...]
    config_path: Path | None


def load(*, config: Path | None = None, flags: Mapping[str, object] | None = None) -> Loaded:
    """Read all sources and validate them once.

    Args:
        config: the YAML file; None takes the one that LBGUARD_CONFIG names, if any.
        flags: values by dotted name, such as `{"grace.window": "5s"}`.

    Raises:
        SettingsError: a source cannot be read, or a setting is unknown, invalid or contradicts another.
    """
    if config is None and os.environ.get(CONFIG_VARIABLE):
        config = Path(os.environ[CONFIG_VARIABLE])
    flag, environment = NamedSource(Settings, "flag", flags or {}), EnvironmentSource(Settings)
    file = FileSource(Settings, config)
    sources: dict[str, Any] = {_SOURCES: (flag, environment, file)}
    given = file.given | environment.given | flag.given
    problems = file.problems + environment.problems + flag.problems
    try:
        settings = Settings(**sources)
    except ValidationError as error:
        raise SettingsError(problems + explain(error, Settings, given)) from None
    if problems:
        raise SettingsError(problems)
    origins = {leaf.name: given.get(leaf.name, DEFAULT).origin for leaf in leaves(Settings)}
    return Loaded(settings=settings, origins=origins, notes=environment.notes, config_path=config)


__all__ = ["CONFIG_VARIABLE", "Loaded", "Settings", "SettingsError", "load"]
