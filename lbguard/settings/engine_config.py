"""Conversion of the settings into the engine's configuration."""

from lbguard.core.config import DampingConfig, EngineConfig, EvidenceConfig, FreezeConfig, GraceConfig
from lbguard.core.model import Condition
from lbguard.settings.model import Settings


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
        soft_budget=settings.evidence.soft_budget,
        evidence=EvidenceConfig(
            confirm_k=settings.evidence.verdict_confirm,
            confirm_n=settings.evidence.verdict_memory,
            veto_window_s=settings.evidence.veto_window,
            opinions_max=settings.verdicts.max_subjects_total,
            remembered_max=settings.verdicts.max_subjects_total,
        ),
        observe=settings.mode == "observe",
        affinity=settings.mode == "enforce" and settings.affinity.mode != "off",
        manages_paths=settings.mode != "companion",
        superseded_link_down=settings.links.superseded == "down",
        excluded_links=settings.links.exclude,
        neighbor_probe_interval_s=settings.neighbors.probe_interval,
        neighbor_failures_needed=settings.evidence.neighbor_failures,
        tune_neighbors=settings.neighbors.tune,
        solicit_neighbors=settings.neighbors.solicit,
    )
