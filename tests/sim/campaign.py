"""Plays runs by seed: trouble first, then calm, then everything has to be in order."""

import argparse
import functools
import multiprocessing
import sys
import time
import traceback
from collections.abc import Callable

from lbguard.core.config import EngineConfig
from lbguard.core.model import Condition
from tests.sim.affinity import AffinityWorld
from tests.sim.faults import Scenario
from tests.sim.manual import ManualWorld
from tests.sim.settled import check_settled
from tests.sim.world import MENDED_WITHIN_S, RECONCILE_S, World
from tests.unit.core.consistency import at_rest

SLACK_S = 5.0


def settling_s(config: EngineConfig) -> float:
    """Return how long after the last fault everything has to be in order, in seconds.

    What is still to be mended is; a lost message is made up for by the next full view; then a loss is held for the
    longest window, frozen to the limit, and whoever is back waits out the damping; what was refused is tried again.
    """
    windows = config.grace.max_s + config.freeze.limit_s + config.damping.max_s
    return MENDED_WITHIN_S + RECONCILE_S + windows + config.retry_max_s + SLACK_S


def play(world: World) -> None:
    """Play a run in a new world. Raises AssertionError (or what the core raised), leaving everything as it was."""
    scenario = Scenario(world)
    rng = world.random
    world.run(2.0)
    for _ in range(rng.randint(5, 25)):
        scenario.any()
        world.run(rng.choice((0.001, 0.01, 0.1, 0.5, 1.0, 2.0, 4.0, 8.0)))
        if rng.random() < 0.1:
            quiet_restart(world)
    calm_down(world)
    check_settled(world)
    quiet_restart(world)


def calm_down(world: World) -> None:
    """End all faults and give the guard the time that it may take."""
    world.calm = True
    if not world.running:
        world.run(3.1)
    world.run(MENDED_WITHIN_S)
    world.distributor.fail_next.clear()
    world.kernel.refusing.clear()
    if world.running and not world.mirror_in_sync:
        world.run(6.1)
    world.run(settling_s(world.config) - MENDED_WITHIN_S)


def quiet_restart(world: World) -> None:
    """Restart the guard while the world stands still: no slot and no route may change.

    Only when nothing is pending that a restart would do at once: a damped re-admission (a new start knows no penalty),
    a repair that waits for its retry, a commit, a leftover that the next full view ends, a drain (the next process is
    told of it by a file that is not here), the end of an operator's override. Soft evidence is forgotten
    too, so runs with any are out.
    And which of two links of one subnet is the newer is told by their ifindexes after a restart.
    """
    engine, belief = world.engine, world.belief
    targets = engine.targets()
    by_age = sorted(belief.links.values(), key=lambda link: link.order)
    settled = (
        world.idle()
        and not (world.profile.soft or world.profile.verdicts)
        and engine.running
        and engine.in_sync
        and by_age == sorted(by_age, key=lambda link: link.seen.ifindex)
        and set(engine.stream_names()) == set(world.streams)
        and at_rest(engine)
        and not any(target.waiting or target.unlisted for target in targets)
        and not any(override.until < world.now + 1.0 for override in engine.overrides().values())
        and not any(belief.target(t.mark, tuple(t.paths)) is Condition.ROUTE_MISSING for t in targets)
    )
    if not settled:
        return
    world.quiet_restarts += 1
    before = (world.distributor.state(), world.kernel.ours())
    world.restart_in_standing_world(0.45)
    assert all(stream.adopted for stream in world.engine.streams()), "not adopted after a restart"
    after = (world.distributor.state(), world.kernel.ours())
    assert before == after, f"a restart changed {before} to {after}"


def report(seed: int, make: Callable[[int], World] = World) -> str:
    """Play a run and return what went wrong, or an empty string."""
    world = make(seed)
    try:
        play(world)
    except Exception:
        trace = traceback.format_exc()
        history = "\n".join(f"{at:.4f} {what}" for at, what in world.history)
        where = f"step {world.steps}, t={world.now:.4f}, {world.profile}, {world.config}"
        return f"seed {seed} failed at {where}\n{history}\n{trace}"
    return ""


def campaign(
    first: int, count: int, jobs: int, tell: Callable[[str], None], make: Callable[[int], World] = World
) -> list[int]:
    """Play `count` runs from seed `first` on, in worlds that `make` makes; returns the seeds that failed."""
    failed: list[int] = []
    seeds = range(first, first + count)
    started = time.monotonic()

    def note(number: int, text: str) -> None:
        if text:
            failed.append(seeds[number])
            tell(text)
        if (number + 1) % 1000 == 0:
            rate = (number + 1) / (time.monotonic() - started)
            tell(f"{number + 1} runs, {len(failed)} failed, {rate:.1f} runs/s")

    if jobs == 1:
        for number, seed in enumerate(seeds):
            note(number, report(seed, make))
        return failed
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        for number, text in enumerate(pool.imap(functools.partial(report, make=make), seeds, chunksize=8)):
            note(number, text)
    return failed


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--first", type=int, default=1, help="the first seed")
    parser.add_argument("--seeds", type=int, default=1000, help="how many runs")
    parser.add_argument("--jobs", type=int, default=1, help="how many processes")
    parser.add_argument("--manual", action="store_true", help="with operators that steer targets, and flow affinity")
    parser.add_argument("--affinity", action="store_true", help="with clients, and flow affinity in force")
    arguments = parser.parse_args()
    make: Callable[[int], World] = AffinityWorld if arguments.affinity else World
    if arguments.manual:
        make = ManualWorld
    failed = campaign(arguments.first, arguments.seeds, arguments.jobs, lambda text: print(text, flush=True), make)
    print(f"{arguments.seeds} runs, {len(failed)} failed{': ' + ', '.join(map(str, failed[:50])) if failed else ''}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
