"""Status of the engine: plain immutable values for `lbguard status`, the API and the metrics.

Times are seconds of the engine's clock (monotonic in the service); `GuardStatus.now` is that clock at the moment of the
snapshot, so that a reader can compute ages and time left.
"""

from dataclasses import dataclass

from lbguard.core.model import Action, TargetState, VerdictState


@dataclass(frozen=True, slots=True, kw_only=True)
class VerdictStatus:
    """One reporter's live opinion that concerns a path, and its weight in the decision.

    `weight`: `counts`, `unconfirmed` (not yet k of n), `contradicted` (another reporter gets through) or `vetoed`
    (passive evidence). `at` and `expires_at` are moments of the engine's clock.
    """

    reporter: str
    subject: str
    state: VerdictState
    weight: str
    at: float
    expires_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PathStatus:
    """One path: a target's IP, its condition (`ok` or a named reason), the owning link and the neighbour entry.

    `verdict` is what all reporters come to, in a word (empty: no opinion). Of the live opinions `verdicts_left_out` are
    not among `verdicts`.
    """

    ip: str
    condition: str
    ifname: str
    ifindex: int
    neighbor: str
    mac: str
    verdict: str = ""
    verdicts: tuple[VerdictStatus, ...] = ()
    verdicts_left_out: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """Next action on a target if nothing changes, computed by the code that decides.

    Attributes:
        action: what is done; STAY: nothing.
        at: when; None: at no moment by itself. ADMIT and READMIT without it wait for the paths, HOLD goes on.
        until: when a FREEZE or PARDON that begins at `at` ends; with STAY, when what lasts now ends.
        wait_s: how long a re-admission waits once the paths are ok, seconds.
        why: why it is not withdrawn at once, in words; empty: only the grace window keeps it.
    """

    action: Action
    at: float | None = None
    until: float | None = None
    wait_s: float = 0.0
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetStatus:
    """One target. `since` is when its state began, `deadline` when it is looked at again unless its paths change.

    `prediction` says what follows; None: the target is active and nothing is due.
    """

    stream: str
    identifier: int
    mark: int
    state: TargetState
    cause: str
    since: float
    deadline: float | None
    penalty: float
    paths: tuple[PathStatus, ...]
    prediction: Prediction | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamStatus:
    """One stream: availability and how many targets are in each state.

    `local_vips` are VIPs (`address/length`) that hold an address of the load balancer itself: the kernel delivers their
    packets locally, before any mark counts.
    """

    name: str
    max_targets: int
    identifier_offset: int
    available: bool
    availability_reason: str
    mass_failure: bool
    counts: dict[TargetState, int]
    table_committed: bool
    local_vips: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkStatus:
    """One link that has an address in a target's subnet. `role` is `owner`, `superseded` or `unusable`."""

    name: str
    ifindex: int
    generation: int
    up: bool
    mac: str
    addresses: tuple[str, ...]
    role: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardStatus:
    """The whole state at one moment."""

    now: float
    observe: bool
    in_sync: bool
    sync_reason: str
    source_ok: bool
    source_reason: str
    streams: tuple[StreamStatus, ...]
    targets: tuple[TargetStatus, ...]
    links: tuple[LinkStatus, ...]
