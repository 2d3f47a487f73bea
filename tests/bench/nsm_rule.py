"""Network Service Mesh's own rule of when a connection is down, to compare the monitor's detectors with."""

from collections.abc import Sequence
from enum import StrEnum

from lbguard.core.model import VerdictState
from lbguard.probe.failure_detector import Detector, DetectorSettings, FamilyRound, make_judge
from lbguard.probe.monitor import JudgeFactory


class Judge(StrEnum):
    """The detectors of the monitor, and the mesh's rule."""

    ROUNDS = "rounds"
    PHI = "phi"
    NSM = "nsm"


class NsmDetector:
    """Any pair without a reply in a round is down."""

    wants_replies = False
    tests_again = False

    def replied(self, pair: int, at: float) -> None:
        """Do nothing: rounds tell."""

    def excuse(self, now: float) -> None:
        """Do nothing."""

    def down_at(self) -> float | None:
        """Return None: rounds tell."""
        return None

    def judge(self, rounds: Sequence[FamilyRound], now: float) -> VerdictState | None:
        """Judge a round by itself."""
        return VerdictState.DOWN if any(family.silent for family in rounds) else VerdictState.UP


def settings_of(judge: Judge, interval_s: float = DetectorSettings().interval_s) -> DetectorSettings:
    """Return the settings under which a judge works."""
    return DetectorSettings(interval_s=interval_s, detector=Detector.PHI if judge is Judge.PHI else Detector.ROUNDS)


def factory_of(judge: Judge) -> JudgeFactory:
    """Return what makes the judge of a connection."""
    return (lambda settings, families, now: NsmDetector()) if judge is Judge.NSM else make_judge
