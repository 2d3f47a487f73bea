"""All settings of lbguard: `Settings`, their reading from all sources (`load`), and the engine's configuration.

Priority: flags (`--set key=value`), environment (`LBGUARD_GRACE__WINDOW`), YAML file, defaults. A refusal
(`sources.py`) names the setting, its source, its value and the allowed values, not the terms of the validation library.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from lbguard import DEFAULT_SOCKET
from lbguard.core.config import DampingConfig, EngineConfig, EvidenceConfig, FreezeConfig, GraceConfig
from lbguard.core.model import Condition
from lbguard.settings.datapath import (
    AffinitySettings,
    AnnounceSettings,
    DistributorSettings,
    KernelSettings,
    LinkSettings,
    NeighborSettings,
    ParkingSettings,
)
from lbguard.settings.decisions import (
    AvailabilitySettings,
    ControlSettings,
    DampingSettings,
    DrainSettings,
    EvidenceSettings,
    FreezeSettings,
    GraceSettings,
)
from lbguard.settings.fields import (
    ACROSS,
    LIVE,
    OptionalPath,
    SocketPath,
    group,
)
from lbguard.settings.kubernetes import KubernetesSettings, check_objects
from lbguard.settings.notation import parse_amount
from lbguard.settings.observability import LogSettings, MetricsSettings, RecordingSettings, TracingSettings
from lbguard.settings.probe import ProbeSettings
from lbguard.settings.sources import (
    DEFAULT,
    ENV_DELIMITER,
    ENV_PREFIX,
    EnvironmentSource,
    FileSource,
    Given,
    NamedSource,
    SettingsError,
    explain,
    leaves,
)
from lbguard.settings.surroundings import (
    InterposerSettings,
    KernelSourceSettings,
    MeshSettings,
    NsmEventSettings,
    NspSettings,
    ReadinessSettings,
    check_place,
)
from lbguard.settings.verdicts import VerdictSettings

CONFIG_VARIABLE = f"{ENV_PREFIX}CONFIG"
"""Environment variable that names the YAML file when no `--config` is given."""

_SOURCES = "sources"
"""Name by which `load` hands its sources to `Settings.settings_customise_sources`."""


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
    source: Literal["file", "nsp", "kubernetes", "interposer", "kernel"] = Field(
        default="file",
        description="Source of streams and targets: targets_file, Meridio's registry (nsp), objects of the Kubernetes"
        " API (kubernetes), the calls of nfqlb that an unmodified load balancer makes (interposer), or its rules and"
        " routes (kernel; not with enforce).",
    )
    targets_file: OptionalPath = Field(default=None, description="YAML file that lists streams and targets; watched.")
    socket: SocketPath = Field(default=Path(DEFAULT_SOCKET), description="Unix socket of the API, made with mode 0660.")
    withdraw_on_exit: bool = Field(
        default=False,
        description="Withdraw every target and remove routes and rules at exit; off: leave everything in place.",
        json_schema_extra=LIVE,
    )
    log: LogSettings = group()
    grace: GraceSettings = group()
    freeze: FreezeSettings = group()
    damping: DampingSettings = group()
    availability: AvailabilitySettings = group()
    affinity: AffinitySettings = group()
    drain: DrainSettings = group()
    control: ControlSettings = group()
    parking: ParkingSettings = group()
    evidence: EvidenceSettings = group()
    distributor: DistributorSettings = group()
    links: LinkSettings = group()
    neighbors: NeighborSettings = group()
    announce: AnnounceSettings = group()
    kernel: KernelSettings = group()
    metrics: MetricsSettings = group()
    tracing: TracingSettings = group()
    verdicts: VerdictSettings = group()
    nsp: NspSettings = group()
    kubernetes: KubernetesSettings = group()
    interposer: InterposerSettings = group()
    readiness: ReadinessSettings = group()
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

    @property
    def steers_flows(self) -> bool:
        """Return whether the kernel gets rules of flow affinity."""
        return self.mode == "enforce" and self.affinity.mode != "off"

    @property
    def parks_packets(self) -> bool:
        """Return whether packets of held targets are kept."""
        return self.mode == "enforce" and self.parking.enabled

    @property
    def flavour(self) -> str:
        """The load balancer beside it: `auto`, `meridio` or `meridio-2`; empty with a source that has none."""
        return {"interposer": self.interposer.flavour, "kernel": self.kernel_source.flavour}.get(self.source, "")

    @model_validator(mode="after")
    def _source_is_told(self) -> "Settings":
        if self.source == "nsp":
            check_place(self.nsp)
        if self.source == "kubernetes":
            check_objects(self.kubernetes)
        if self.source == "kernel" and self.mode == "enforce":
            raise PydanticCustomError(
                ACROSS,
                "lbguard would read its own rules and routes back as the source",
                {"setting": "mode", "value": "enforce", "allowed": "companion or observe with source kernel"},
            )
        if self.source == "interposer" and self.distributor.kind == "nftables":
            raise PydanticCustomError(
                ACROSS,
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

    `notes` are warnings for the operator, such as an unknown environment variable. `flags` are those that `load` got.
    """

    settings: Settings
    origins: Mapping[str, str]
    notes: tuple[str, ...]
    config_path: Path | None
    flags: Mapping[str, object] = field(default_factory=dict)

    def again(self, content: bytes, path: Path | None = None) -> "Loaded":
        """Read all sources again, with this content of the file. `path`: for the errors; None: the same as before.

        Raises:
            SettingsError: see `load`.
        """
        return load(config=path or self.config_path, flags=self.flags, content=content)


def load(
    *, config: Path | None = None, flags: Mapping[str, object] | None = None, content: bytes | None = None
) -> Loaded:
    """Read all sources and validate them once.

    Args:
        config: the YAML file; None takes the one that LBGUARD_CONFIG names, if any.
        flags: values by dotted name, such as `{"grace.window": "5s"}`.
        content: of the file, where it was read already.

    Raises:
        SettingsError: a source cannot be read, or a setting is unknown, invalid or contradicts another.
    """
    if config is None and os.environ.get(CONFIG_VARIABLE):
        config = Path(os.environ[CONFIG_VARIABLE])
    flag, environment = NamedSource(Settings, "flag", flags or {}), EnvironmentSource(Settings)
    file = FileSource(Settings, config, content)
    sources: dict[str, Any] = {_SOURCES: (flag, environment, file)}
    given: dict[str, Given] = {}
    for source in reversed(sources[_SOURCES]):
        given |= source.given
    problems = file.problems + environment.problems + flag.problems
    try:
        settings = Settings(**sources)
    except ValidationError as error:
        raise SettingsError(problems + explain(error, Settings, given)) from None
    if problems:
        raise SettingsError(problems)
    origins = {leaf.name: given.get(leaf.name, DEFAULT).origin for leaf in leaves(Settings)}
    return Loaded(
        settings=settings, origins=origins, notes=environment.notes, config_path=config, flags=dict(flags or {})
    )


def engine_config(settings: Settings) -> EngineConfig:
    """Return the engine's configuration from the settings."""
    grace = settings.grace
    by_cause = {Condition.NEIGHBOR_FAILED: grace.neighbor_window, Condition.VERDICT_DOWN: grace.verdict_window}
    return EngineConfig(
        grace=GraceConfig(
            window_s=grace.window,
            max_s=grace.max,
            by_cause_s={cause: window for cause, window in by_cause.items() if window is not None},
            adaptive=grace.adaptive,
            adaptive_quantile=grace.adaptive_quantile,
        ),
        freeze=FreezeConfig(threshold=settings.freeze.threshold, limit_s=settings.freeze.limit),
        damping=DampingConfig(
            half_life_s=settings.damping.half_life, step_s=settings.damping.step, max_s=settings.damping.max
        ),
        availability_grace_s=settings.availability.grace,
        availability_quorum=parse_amount(settings.availability.quorum),
        availability_hysteresis=parse_amount(settings.availability.hysteresis),
        soft_budget=settings.evidence.soft_budget,
        evidence=EvidenceConfig(
            confirm_k=settings.evidence.verdict_confirm,
            confirm_n=settings.evidence.verdict_memory,
            veto_window_s=settings.evidence.veto_window,
            opinions_max=settings.verdicts.max_subjects_total,
            remembered_max=settings.verdicts.max_subjects_total,
        ),
        observe=settings.mode == "observe",
        affinity=settings.steers_flows,
        parking=settings.parks_packets,
        learn_s=settings.affinity.learn,
        drain_window_s=settings.drain.window,
        manages_paths=settings.mode != "companion",
        superseded_link_down=settings.links.superseded == "down",
        excluded_links=settings.links.exclude,
        neighbor_probe_interval_s=settings.neighbors.probe_interval,
        neighbor_failures_needed=settings.evidence.neighbor_failures,
        tune_neighbors=settings.neighbors.tune,
        solicit_neighbors=settings.neighbors.solicit,
    )


__all__ = ["CONFIG_VARIABLE", "Loaded", "Settings", "SettingsError", "engine_config", "load"]
