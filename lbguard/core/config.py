"""Configuration of the engine. Times are seconds, shares are ratios; `settings/model.py` fills it."""

import math
from dataclasses import dataclass, field, replace

from lbguard.core.model import Condition


@dataclass(frozen=True, slots=True, kw_only=True)
class GraceConfig:
    """Time for which a target with a broken path stays in the distributor.

    `window_s` is the default; `by_cause_s` overrides it for a named condition. `max_s`, counted from the moment of the
    loss, bounds every extension. With `adaptive` the window of a link follows the given quantile of its own past heal
    durations, between `window_s` and `max_s`.
    """

    window_s: float = 3.0
    max_s: float = 30.0
    by_cause_s: dict[Condition, float] = field(default_factory=dict)
    adaptive: bool = False
    adaptive_quantile: float = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class FreezeConfig:
    """Deadlines freeze, up to `limit_s`, while at least two, and over `threshold` (ratio), of a stream are broken."""

    threshold: float = 0.5
    limit_s: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DampingConfig:
    """Each loss adds one penalty, which halves every `half_life_s`; re-admission waits `step_s` per penalty above one.

    The wait is at most `max_s`.
    """

    half_life_s: float = 30.0
    step_s: float = 2.0
    max_s: float = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EvidenceConfig:
    """Rules by which verdicts count.

    A reporter's DOWN counts when `confirm_k` of its last `confirm_n` verdicts on the subject are DOWN. A neighbour that
    answered, or packets that arrived, less than `veto_window_s` ago veto it. `opinions_max` bounds the live opinions,
    `remembered_max` the remembered sequence numbers of expired ones.
    """

    confirm_k: int = 1
    confirm_n: int = 3
    veto_window_s: float = 2.5
    opinions_max: int = 10_000
    remembered_max: int = 50_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Amount:
    """A number of targets: `count`, or a share (ratio) of a stream's, rounded up. The larger one counts."""

    count: int = 0
    share: float = 0.0

    def of(self, targets: int) -> int:
        """Return the number for a stream with so many targets."""
        # Without the margin, 10 % of 30 would be 4.
        return max(self.count, math.ceil(self.share * targets - 1e-9))


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """All of the engine's configuration.

    `availability_grace_s`: a stream with fewer usable targets than `availability_quorum` is reported unavailable after
    this; to be available again it needs `availability_hysteresis` more, or all. `soft_budget`: soft
    evidence alone may withdraw at most this ratio of a stream's admitted targets. `observe`: nothing is changed.
    `manages_paths`: lbguard manages routes, rules, superseded links and tables; without it (beside a load balancer that
    manages them) lbguard only maintains neighbour entries and announces addresses. `superseded_link_down`: set an older
    link of the same subnet down, once, where nothing else needs it. `excluded_links`: names (shell patterns) of links
    that never count as links to targets.
    `neighbor_probe_interval_s`: each target's neighbour entry is verified this often, 0 = never.
    `neighbor_failures_needed`: so many failed resolutions in a row make a path `neighbor_failed`. `affinity`: report
    the targets to which flows are steered; then a change of a stream's registered targets is committed `learn_s` after
    it is known, and a target that leaves the list is served for `drain_window_s` more. `parking`:
    report which targets' packets are kept, given back or dropped. `solicit_neighbors`: send our
    own solicitations for unresolved neighbours of a new link. `retry_*`: backoff of kernel and distributor operations
    that failed.
    """

    grace: GraceConfig = field(default_factory=GraceConfig)
    freeze: FreezeConfig = field(default_factory=FreezeConfig)
    damping: DampingConfig = field(default_factory=DampingConfig)
    evidence: EvidenceConfig = field(default_factory=EvidenceConfig)
    availability_grace_s: float = 1.0
    soft_budget: float = 0.5
    observe: bool = False
    superseded_link_down: bool = False
    excluded_links: tuple[str, ...] = ("lo",)
    neighbor_probe_interval_s: float = 1.0
    neighbor_failures_needed: int = 2
    tune_neighbors: bool = True
    solicit_neighbors: bool = True
    retry_min_s: float = 0.1
    retry_max_s: float = 5.0
    manages_paths: bool = True
    affinity: bool = False
    parking: bool = False
    learn_s: float = 5.0
    drain_window_s: float = 0.0
    availability_quorum: Amount = field(default_factory=lambda: Amount(count=1))
    availability_hysteresis: Amount = field(default_factory=Amount)

    @property
    def owns_paths(self) -> bool:
        """Return whether routes, rules, links and tables are programmed."""
        return self.manages_paths and not self.observe

    def with_live(self, wanted: "EngineConfig") -> "EngineConfig":
        """Return this configuration with those values of another that a running engine can take over."""
        return replace(
            self,
            grace=wanted.grace,
            freeze=wanted.freeze,
            damping=wanted.damping,
            evidence=replace(
                wanted.evidence, opinions_max=self.evidence.opinions_max, remembered_max=self.evidence.remembered_max
            ),
            availability_grace_s=wanted.availability_grace_s,
            availability_quorum=wanted.availability_quorum,
            availability_hysteresis=wanted.availability_hysteresis,
            soft_budget=wanted.soft_budget,
            neighbor_probe_interval_s=wanted.neighbor_probe_interval_s,
            neighbor_failures_needed=wanted.neighbor_failures_needed,
            learn_s=wanted.learn_s,
            drain_window_s=wanted.drain_window_s,
        )
