"""A reporter that speaks to a Guard: generations and sequences count by themselves unless a test wants others."""

from lbguard.core import effects as fx
from lbguard.core.events import VerdictReported
from lbguard.core.model import LinkSubject, Subject, TargetSubject, Verdict, VerdictState
from tests.unit.core.harness import Guard, ip, ipv4_of

FOR_EVER_S = 1e6


def of_target(number: int, proxy: int = 0) -> TargetSubject:
    """A target, by its IPv4 address."""
    return TargetSubject(ip=ipv4_of(number, proxy))


def links_of(number: int, proxy: int = 0) -> tuple[LinkSubject, LinkSubject]:
    """Both families of link `number` to a proxy."""
    return (
        LinkSubject(lb_ip=ip(f"172.16.{proxy}.{number}"), proxy_ip=ip(f"172.16.{proxy}.250")),
        LinkSubject(lb_ip=ip(f"fd00:{proxy}::{number}"), proxy_ip=ip(f"fd00:{proxy}::fa")),
    )


class Reporter:
    """One reporter, by name."""

    def __init__(self, guard: Guard, name: str = "proxy-a") -> None:
        self.guard = guard
        self.name = name
        self.generation = 1
        self.sequence = 0

    def say(
        self,
        state: VerdictState,
        *subjects: Subject,
        lease: float = FOR_EVER_S,
        heal: float = 0.0,
        new_mac: bytes = b"",
        generation: int | None = None,
        sequence: int | None = None,
    ) -> list[fx.Effect]:
        """Say the same of every subject, in one batch."""
        events = []
        for subject in subjects:
            self.sequence += 1
            verdict = Verdict(
                subject=subject,
                state=state,
                generation=self.generation if generation is None else generation,
                sequence=self.sequence if sequence is None else sequence,
                lease_s=lease,
                heal_s=heal,
                new_mac=new_mac,
            )
            events.append(VerdictReported(reporter=self.name, verdict=verdict, ticket=self.sequence))
        return self.guard.tell(*events)

    def reasons(self) -> list[str]:
        """Return what became of each verdict of the last call: an empty text, or why it was dropped."""
        return [answer.reason for answer in self.guard.of(fx.VerdictAnswered)]
