"""How replies become verdicts. Pure."""

from dataclasses import dataclass
from enum import StrEnum


class Detector(StrEnum):
    """The ways to judge. NSM is Network Service Mesh's own rule and is here to compare with."""

    ROUNDS = "rounds"
    PHI = "phi"
    NSM = "nsm"


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeSettings:
    """How often is pinged and how replies are judged.

    Attributes:
        interval_s: a round starts this often.
        timeout_s: how long a round lasts; its pings are spread over it. None: the interval.
        pings: pings of a round, for each pair.
        down_rounds: DOWN needs this many bad rounds among the last `window_rounds`.
        window_rounds: see `down_rounds`.
        up_rounds: a family that was down is up after this many good rounds in a row.
        detector: which judge.
        phi_threshold: suspicion from which the phi detector calls a family down.
    """

    interval_s: float = 2.0
    timeout_s: float | None = None
    pings: int = 4
    down_rounds: int = 2
    window_rounds: int = 3
    up_rounds: int = 1
    detector: Detector = Detector.ROUNDS
    phi_threshold: float = 8.0
