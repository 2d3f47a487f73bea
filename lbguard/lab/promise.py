"""Promises of lbguard for a scenario, as data, and the check whether a run kept them."""

from dataclasses import dataclass

from lbguard.lab.measure import AT_ONCE_S, WAITED_OVER_S, Decided, Measurement


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """Conditions that must hold in lbguard's column. `None` means nothing is promised.

    `median_over_outage_s` bounds the median gap of the disturbed connections: at most the outage plus this many
    seconds; `longest_over_outage_s` bounds the longest gap of all in the same way.
    `longest_gap_s` is a strict bound. `udp_lost_max`:
    so many UDP packets may be lost. Lost targets are those whose path never comes back; `lost_within_s`
    bounds how long they stay in the table, and `lost_silent_max` how many of their connections get neither an answer
    nor a reset. `holds_max`, `withdrawals_max`: how often others may be held and withdrawn.
    `dropped_min`: so many verdicts at least were dropped by name. `new_waited_max` and `new_broken_max` bound how many
    new connections wait to be connected and how many break. `new_on_removed_max` bounds how many of them reach a target
    that left the list, `new_on_added_min` is how many at least reach one that joined it.
    """

    broken_max: int = 0
    moved_max: int | None = 0
    median_over_outage_s: float | None = None
    longest_over_outage_s: float | None = None
    longest_gap_s: float | None = None
    udp_lost_max: int | None = None
    lost_within_s: float | None = None
    lost_silent_max: int | None = None
    holds_max: int | None = None
    withdrawals_max: int | None = None
    dropped_min: int = 0
    new_waited_max: int | None = None
    new_broken_max: int | None = None
    new_on_removed_max: int | None = None
    new_on_added_min: int | None = None

    def misses(self, measured: Measurement, outage_s: float, decided: Decided | None = None) -> list[str]:
        """Return in words what was missed; an empty list means the promise was kept."""
        missed = []
        if measured.opened == 0 or (measured.disturbed == 0 and self.new_on_added_min is None):
            missed.append("no connection was disturbed, so nothing was shown")
        if measured.broken > self.broken_max:
            missed.append(f"{measured.broken} connections broken, {self.broken_max} promised")
        if self.moved_max is not None and measured.moved > self.moved_max:
            missed.append(f"{measured.moved} connections moved to another target, {self.moved_max} promised")
        if self.median_over_outage_s is not None:
            limit = outage_s + self.median_over_outage_s
            if measured.median_gap_s > limit:
                missed.append(f"median gap {measured.median_gap_s:.2f} s, at most {limit:.2f} s promised")
        if self.longest_over_outage_s is not None:
            limit = outage_s + self.longest_over_outage_s
            if measured.longest_gap_s > limit:
                missed.append(f"longest gap {measured.longest_gap_s:.2f} s, at most {limit:.2f} s promised")
        if self.udp_lost_max is not None and measured.udp_lost > self.udp_lost_max:
            missed.append(f"{measured.udp_lost} UDP packets lost, {self.udp_lost_max} promised")
        if self.longest_gap_s is not None and measured.longest_gap_s >= self.longest_gap_s:
            missed.append(f"longest gap {measured.longest_gap_s:.2f} s, under {self.longest_gap_s:g} s promised")
        if self.lost_silent_max is not None and measured.lost_silent > self.lost_silent_max:
            missed.append(
                f"{measured.lost_silent} of {measured.lost_connections} connections of lost targets got no reset,"
                f" {self.lost_silent_max} promised"
            )
        return missed + self._misses_of_newcomers(measured) + self._misses_of_decisions(decided or Decided())

    def _misses_of_newcomers(self, measured: Measurement) -> list[str]:
        if self.new_waited_max is None and self.new_broken_max is None:
            return []
        if measured.new_opened == 0:
            return ["no new connection was opened, so nothing was shown"]
        missed = []
        if self.new_waited_max is not None and measured.new_waited > self.new_waited_max:
            missed.append(
                f"{measured.new_waited} of {measured.new_opened} new connections waited, up to"
                f" {measured.new_longest_connect_s:.2f} s, {self.new_waited_max} promised"
            )
        if self.new_broken_max is not None and measured.new_broken > self.new_broken_max:
            missed.append(
                f"{measured.new_broken} of {measured.new_opened} new connections broken, {self.new_broken_max} promised"
            )
        reached = measured.new_on_relisted
        if self.new_on_removed_max is not None and reached > self.new_on_removed_max:
            missed.append(
                f"{reached} new connections reached the removed target later than {AT_ONCE_S * 1000:g} ms,"
                f" {self.new_on_removed_max} promised"
            )
        if self.new_on_added_min is not None and reached < self.new_on_added_min:
            missed.append(
                f"{reached} new connections reached the added target, at least {self.new_on_added_min} promised"
            )
        return missed

    def _misses_of_decisions(self, decided: Decided) -> list[str]:
        missed = []
        if self.lost_within_s is not None:
            if decided.lost_after_s is None:
                missed.append("not every lost target was withdrawn")
            elif decided.lost_after_s > self.lost_within_s:
                limits = f"{decided.lost_after_s:.2f} s, within {self.lost_within_s:g} s promised"
                missed.append(f"lost targets withdrawn after {limits}")
        if self.holds_max is not None and decided.holds > self.holds_max:
            missed.append(f"targets held {decided.holds} times, {self.holds_max} promised")
        if self.withdrawals_max is not None and decided.withdrawals > self.withdrawals_max:
            missed.append(f"targets withdrawn {decided.withdrawals} times, {self.withdrawals_max} promised")
        if decided.dropped < self.dropped_min:
            missed.append(f"{decided.dropped} verdicts dropped by name, {self.dropped_min} promised")
        return missed

    def sentence(self, outage_s: float) -> str:
        """Return the promise in words."""
        parts = [f"{self.broken_max} broken"]
        if self.moved_max is not None:
            parts.append(f"{self.moved_max} moved")
        if self.median_over_outage_s is not None:
            parts.append(f"median gap at most {outage_s + self.median_over_outage_s:g} s")
        if self.longest_over_outage_s is not None:
            parts.append(f"longest gap at most {outage_s + self.longest_over_outage_s:g} s")
        if self.udp_lost_max is not None:
            parts.append(f"at most {self.udp_lost_max} UDP packets lost")
        if self.longest_gap_s is not None:
            parts.append(f"longest gap under {self.longest_gap_s:g} s")
        if self.lost_within_s is not None:
            parts.append(f"lost targets withdrawn within {self.lost_within_s:g} s")
        if self.lost_silent_max is not None:
            parts.append(f"{self.lost_silent_max} connections of lost targets without a reset")
        if self.holds_max is not None:
            parts.append(f"{self.holds_max} held")
        if self.withdrawals_max is not None:
            parts.append(f"{self.withdrawals_max} withdrawn")
        if self.dropped_min:
            parts.append(f"at least {self.dropped_min} verdicts dropped by name")
        if self.new_waited_max is not None:
            parts.append(f"{self.new_waited_max} new ones wait over {WAITED_OVER_S * 1000:g} ms")
        if self.new_broken_max is not None:
            parts.append(f"{self.new_broken_max} new ones broken")
        if self.new_on_removed_max is not None:
            parts.append(f"{self.new_on_removed_max} new ones reach the removed target after {AT_ONCE_S * 1000:g} ms")
        if self.new_on_added_min is not None:
            parts.append("new ones reach the added target")
        return ", ".join(parts)
