"""Recommendation of one of the candidates by their costs, with its reasons in sentences; pure."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from lbguard.settings.notation import format_duration
from lbguard.tuning.candidates import AFFINITY, Candidate, has_margin, round_up, with_margin
from lbguard.tuning.cost import Cost, Remembered

SAME_COST = 0.02
"""Costs that differ by no more than this share count as equal: then the shorter window is better."""

HEALS_NEEDED = 10
"""So many losses have to heal in a recording before values are recommended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One set of values and its cost."""

    variant: Candidate
    cost: Cost


def choose(
    results: Sequence[Result], heals: Sequence[float], losses: int, *, by_window: bool
) -> tuple[int | None, str]:
    """Return the index of the result to recommend, or None and why there is none.

    Where windows were tried, only those count that leave a margin above every heal they cover.
    """
    if not heals:
        # The cheapest is then to hold nothing: but how long healing takes was not recorded.
        return None, _why_none(losses)
    best = recommend(results, by_window=by_window)
    if best is None:
        return None, _why_same(results)
    if len(heals) < HEALS_NEEDED:
        return None, (
            f"Too few samples ({len(heals)}): record at least {HEALS_NEEDED} losses that heal. Nothing is recommended: "
            "keep what is in force."
        )
    if not by_window:
        return best, ""
    fit = [index for index, result in enumerate(results) if has_margin(_window_s(result), heals)]
    if all(_window_s(results[index]) < _window_s(results[best]) for index in fit):
        return None, _why_no_margin(results[best], heals)
    return _shortest(results, _cheapest(results, fit)), ""


def recommend(results: Sequence[Result], *, by_window: bool) -> int | None:
    """Return the index of the result with the lowest cost; among equals the shortest window or the current one.

    The cost does not include new connections, which wait without flow affinity: among equals it is better on.

    None: all costs are equal, so something else decided. A window of zero needs a lower cost than every other.
    """
    good = _cheapest(results, range(len(results)))
    if len(good) == len(results) > 1:
        return None
    if by_window:
        return _shortest(results, good)
    return next((index for index in good if results[index].variant.recorded), good[0])


def _cheapest(results: Sequence[Result], indices: Sequence[int]) -> list[int]:
    least = min(results[index].cost.total_s for index in indices)
    return [index for index in indices if results[index].cost.total_s <= least * (1 + SAME_COST) + 1e-9]


def _shortest(results: Sequence[Result], indices: Sequence[int]) -> int:
    held = [index for index in indices if _window_s(results[index]) > 0]

    def order(index: int) -> tuple[bool, float, int]:
        return results[index].variant.remembered is Remembered.NONE, _window_s(results[index]), index

    return min(held or indices, key=order)


def _window_s(result: Result) -> float:
    return result.variant.config.grace.window_s


def reasons_for(results: Sequence[Result], chosen: int, heals: Sequence[float]) -> list[str]:
    """Return in sentences why a result is recommended."""
    best = results[chosen]
    cost, name = best.cost, best.variant.named
    reasons = [
        f"With {name}, {cost.in_time} of {counted(cost.losses, 'loss', 'losses')} recover while the target is held; "
        f"{cost.too_soon} are withdrawn although the path comes back.",
        *_compared(results, best, heals),
        *_next_windows(results, best),
    ]
    if cost.frozen:
        were = "withdrawal was" if cost.frozen == 1 else "withdrawals were"
        reasons.append(
            f"{cost.frozen} {were} suppressed as mass failures (freeze.threshold); the window has no part in those."
        )
    if cost.families:
        reasons.append(
            f"{counted(cost.families, 'family is', 'families are')} withdrawn alone, and {cost.families_too_soon} of "
            "them although the path comes back; the other family of the target is not touched."
        )
    longest_s = best.variant.config.grace.max_s
    beyond = sum(heal > longest_s for heal in heals)
    if beyond:
        reasons.append(f"{beyond} healed only after grace.max ({format_duration(longest_s)}): no window reaches them.")
    return reasons


def counted(number: int, one: str, many: str) -> str:
    """Return a number with its noun."""
    return f"{number} {one if number == 1 else many}"


def _why_none(losses: int) -> str:
    if not losses:
        return "No target lost its path in this recording: there is nothing to choose by."
    were = "loss, which did not heal" if losses == 1 else "losses, none of which healed"
    return (
        f"{losses} {were} while it was recorded: it does not show how long your links take to come back, so nothing "
        "is recommended. Record incidents that heal."
    )


def _why_no_margin(best: Result, heals: Sequence[float]) -> str:
    """Return which window would have the margin that the best of those tried lacks."""
    needed_s = _window_s(best)
    while not has_margin(needed_s, heals):
        needed_s = round_up(max(with_margin(heal) for heal in heals if heal <= needed_s))
    needed, longest_s = format_duration(needed_s), best.variant.config.grace.max_s
    try_it = f"try {needed}" if needed_s <= longest_s else f"{needed} would, beyond grace.max: raise that, and try it"
    return (
        f"{best.variant.named} would be best, but leaves no margin above the longest heal that it covers, nor does any "
        f"longer window that was tried: {try_it}."
    )


def _why_same(results: Sequence[Result]) -> str:
    other = "other settings decided, such as the windows of single causes (grace.neighbor_window, grace.verdict_window)"
    if any(result.cost.frozen for result in results):
        other = "with windows that were too short, mass failures kept the targets in (freeze.threshold)"
    return f"Every value tried costs the same, within 2 %: {other}. Nothing is recommended: keep what is in force."


def _compared(results: Sequence[Result], best: Result, heals: Sequence[float]) -> list[str]:
    """Compare the best result with the current settings, and with the cheapest result."""
    cost = best.cost.total_s
    recorded = next((result for result in results if result.variant.recorded), best)
    least = min(results, key=lambda result: result.cost.total_s)
    reasons = []
    if recorded is best:
        reasons.append("That is what was in force already.")
    elif not cost / (1 + SAME_COST) <= recorded.cost.total_s <= cost * (1 + SAME_COST):
        reasons.append(
            f"It costs {cost:.0f}; {recorded.variant.named}, which was in force, {recorded.cost.total_s:.0f}."
        )
    else:
        reasons.append(f"It costs the same, within 2 %, as {recorded.variant.named}, which was in force.")
    if least.cost.total_s < cost - 0.5:
        why = "which is the same within 2 %: then the shorter window is better"
        if not has_margin(_window_s(least), heals):
            why = "but leaves no margin above the longest heal that it covers"
        reasons.append(f"{least.variant.named} costs {least.cost.total_s:.0f}, {why}.")
    return reasons


def _next_windows(results: Sequence[Result], best: Result) -> list[str]:
    """Return the effect of the next shorter and of the next longer window, with all other values equal."""
    window_s = best.variant.config.grace.window_s
    alike = [result for result in results if result.variant.besides_window == best.variant.besides_window]
    shorter = [result for result in alike if result.variant.config.grace.window_s < window_s]
    longer = [result for result in alike if result.variant.config.grace.window_s > window_s]
    reasons = []
    if shorter:
        near = max(shorter, key=lambda result: result.variant.config.grace.window_s)
        extra = near.cost.too_soon - best.cost.too_soon
        more = f"{extra} more would be withdrawn too soon: " if extra > 0 else ""
        reasons.append(
            f"With {near.variant.named}, {more}the cost would be {near.cost.total_s:.0f} instead of "
            f"{best.cost.total_s:.0f}."
        )
    if longer:
        near = min(longer, key=lambda result: result.variant.config.grace.window_s)
        gained = near.cost.in_time - best.cost.in_time
        waited = near.cost.vain_s - best.cost.vain_s
        if gained > 0:
            reasons.append(
                f"With {near.variant.named}, {gained} more would be kept, and the cost would be "
                f"{near.cost.total_s:.0f} instead of {best.cost.total_s:.0f}."
            )
        elif waited > 0:
            reasons.append(
                f"With {near.variant.named}, no more would be kept, and targets that are withdrawn all the same would "
                f"be held {waited:.1f} s longer altogether."
            )
        else:
            reasons.append(
                f"With {near.variant.named}, no more would be kept; a real loss would only be noticed later."
            )
    return reasons


def changes_of_list(cost: Cost) -> list[str]:
    """Return what the changes of the list cost; nothing where they cost nothing."""
    sentences = []
    if cost.drains:
        sentences.append(
            f"{counted(cost.drains, 'target', 'targets')} drained, {cost.drained} of them until no packet came any "
            "more."
        )
    if round(cost.moved_by_list):
        sentences.append(
            f"Changes of the list moved {cost.moved_by_list:.0f} connections of each 1000; the cost does not include "
            "them."
        )
    return sentences


def saved_by_affinity(without: Cost, with_affinity: Cost) -> list[str]:
    """Return what flow affinity would have saved with the recorded settings; nothing where it is nothing."""
    moved = without.moved - with_affinity.moved
    by_list = without.moved_by_list - with_affinity.moved_by_list
    waited_s = without.new_waited_s - with_affinity.new_waited_s
    saved = [
        text
        for amount, text in (
            (round(moved), f"{moved:.0f} connections of each 1000 not moved"),
            (round(by_list), f"{by_list:.0f} of each 1000 not moved by changes of the list"),
            (round(waited_s, 1), f"the new connections that a stream gets in {waited_s:.1f} s not held up"),
        )
        if amount > 0
    ]
    return [f"With {AFFINITY}={Remembered.INCIDENTS} and the recorded settings: {', '.join(saved)}."] if saved else []


def what_happened(heals: Sequence[float], losses: int) -> list[str]:
    """Return how many losses there were and how long they took to heal; nothing where none did."""
    if not heals:
        return []
    took = f"{heals[0]:.2f} s" if len(heals) == 1 else f"{heals[0]:.2f} s to {heals[-1]:.2f} s"
    median = f" (median {statistics.median(heals):.2f} s)" if len(heals) > 2 else ""
    never = f"; {losses - len(heals)} did not while it was recorded" if losses > len(heals) else ""
    return [f"{counted(losses, 'loss', 'losses')}: {len(heals)} healed, after {took}{median}{never}."]
