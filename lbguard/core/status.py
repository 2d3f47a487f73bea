"""Status of the engine, as immutable values for `lbguard status`, the API and the metrics.

Times are seconds of the engine's clock (monotonic in the service); `GuardStatus.now` is that clock at the moment of the
snapshot, so that a reader can compute ages and time left.
"""

from dataclasses import dataclass

from lbguard.core.model import Action, Override, TargetState, VerdictState


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

    `verdict` is the fused opinion of all reporters, in one word (empty: no opinion). `verdicts` holds the first live
    opinions; `verdicts_left_out` is the number of the others. `withdrawn`: the target is held for another family, and
    this one was withdrawn alone. `steered`: flow affinity gives new flows of this family to another target.
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
    withdrawn: bool = False
    steered: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """Next action on a target if nothing changes, computed with the code of the decision.

    Attributes:
        action: the next action; STAY: none.
        at: its time; None: no time is set. ADMIT and READMIT then wait for the paths, HOLD continues.
        until: when a FREEZE or PARDON that begins at `at` ends; with STAY, when the running one ends; with HOLD, when a
            lost family no longer waits for the end of a mass failure; with KEEP, when the operator's hold ends.
        wait_s: how long a re-admission waits once the paths are ok, seconds.
        why: text that says why it is not withdrawn at once; empty: only because of the grace window.
    """

    action: Action
    at: float | None = None
    until: float | None = None
    wait_s: float = 0.0
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetStatus:
    """One target. `since` is when its state began, `deadline` when its state is decided again unless its paths change.

    `prediction` is the next action; None: the target is active and no action is due. `draining`: it is to get no new
    flow, because the source says so, an operator does, or the source no longer lists it (`unlisted`). `commit_at`: it
    was added to the list and is not in the table before, because the change waits for `affinity.learn`; None: it does
    not wait. `override`: what an operator ordered.
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
    draining: bool = False
    unlisted: bool = False
    commit_at: float | None = None
    override: Override | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyStatus:
    """One family of a stream. `held`: number of targets in the table whose path of this family is broken.

    `withdrawn`: number of targets in the table of which this family was withdrawn alone; they are not among the held.
    """

    ipv4: bool
    held: int
    withdrawn: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamStatus:
    """One stream: availability, the number of targets in each state, and both families.

    `local_vips` are VIPs (`address/length`) that contain an address of the load balancer itself: the kernel delivers
    their packets locally, whatever the mark. `commit_at`: when a change of its list, which waits for `affinity.learn`,
    is committed; None: no change waits.
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
    families: tuple[FamilyStatus, ...] = ()
    commit_at: float | None = None


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
class FlowMap:
    """One map of remembered flows, and the number of flows in it."""

    protocol: str
    ipv4: bool
    flows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AffinityStatus:
    """Flow affinity in the kernel.

    `mode` is the setting. `in_force`: the kernel has the rules; otherwise `problem` says why (empty: not yet tried).
    `maps` are as last counted, each with room for `flows_max` flows.
    """

    mode: str
    in_force: bool
    problem: str
    flows_max: int
    maps: tuple[FlowMap, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ParkedPackets:
    """Kept packets of one family of a target, which is named by its fwmark.

    `memory_bytes` is what they count for. `since`: when the oldest one arrived, seconds of the engine's clock.
    `given_back`: its path is good, and they are on their way; otherwise they wait.
    """

    mark: int
    ipv4: bool
    packets: int
    memory_bytes: int
    since: float
    given_back: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ParkingStatus:
    """Parking. `in_force`: packets are kept; otherwise `problem` says why not (empty: not yet tried).

    `packets` and `memory_bytes` are what is kept now, `packets_max` and `bytes_max` the bounds, `max_age_s` the age at
    which a packet is dropped. `parked` has only families with packets.
    """

    in_force: bool
    problem: str
    packets: int
    memory_bytes: int
    packets_max: int
    bytes_max: int
    max_age_s: float
    parked: tuple[ParkedPackets, ...] = ()

    def of(self, mark: int, *, ipv4: bool) -> ParkedPackets | None:
        """Return the kept packets of one family of a target; None when there are none."""
        return next((each for each in self.parked if (each.mark, each.ipv4) == (mark, ipv4)), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingSetting:
    """A setting that takes effect with a restart: the value in force, and the one that it gets then, as text."""

    name: str
    running: str
    wanted: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingsFileStatus:
    """The settings file that the service follows.

    `problem` says why its present content is refused (empty: it is not), `refused_since` since when, seconds of the
    engine's clock. `waiting` are settings of its last valid content that take effect with a restart.
    """

    path: str
    problem: str = ""
    refused_since: float | None = None
    waiting: tuple[WaitingSetting, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardStatus:
    """The whole state at one moment.

    `affinity` None: flow affinity is off; `parking` None: parking is off; `settings_file` None: none is followed.
    `wall_time`: the moment `now` by the wall clock, seconds since the epoch; None: unknown, as in a replay.
    """

    now: float
    observe: bool
    in_sync: bool
    sync_reason: str
    source_ok: bool
    source_reason: str
    streams: tuple[StreamStatus, ...]
    targets: tuple[TargetStatus, ...]
    links: tuple[LinkStatus, ...]
    affinity: AffinityStatus | None = None
    parking: ParkingStatus | None = None
    settings_file: SettingsFileStatus | None = None
    wall_time: float | None = None
