"""One run as a picture: links, target states, answers per target and every pause, over one time axis; pure SVG text.

Colours are CSS classes that the page defines, so the picture follows light and dark. Time 0 is the start of the
scenario.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import median

from lbguard.lab.measure import WAITED_OVER_S, connect_s, is_stalled, newcomers
from lbguard.lab.play import Run
from lbguard.lab.scenario_model import Do, Step
from lbguard.lab.traffic import BIN_S, OPEN, Channel, TrafficResult
from lbguard.printable import html_text

WIDTH = 1100
LEFT = 150
RIGHT = 12
BEFORE_S = 1.0
LANE = 16
LANE_STEP = 20
ANSWERS_HEIGHT = 30
GAPS_HEIGHT = 130

SCALE_WIDTH = 52
"""Room for the numbers of a scale, between a label and the picture."""

_CHARACTER = 6.5
"""Width of a character in a lane; a little more than most take."""

_COLOUR_OF = {
    "up": "ok",
    "active": "ok",
    "away": "out",
    "withdrawn": "out",
    "held": "held",
    "frozen": "frozen",
    "draining": "draining",
}
"""Colours of the states whose names are written into their lanes."""

Interval = tuple[float, float, str]
"""From, to (seconds after the start of the scenario) and the CSS class of what was then."""

_GOES = {
    Do.DELETE_LB_LINK: "LB link to proxy {}",
    Do.DELETE_TARGET_LINK: "link of target {}",
    Do.BLOCK_TARGET_IPV6: "IPv6 of target {}",
    Do.DISABLE_LB_IPV6: "IPv6 of the link to proxy {}",
    Do.KILL_CONTROLLER: "controller",
    Do.STOP_CONTROLLER: "controller",
    Do.REMOVE_TARGET: "registration of target {}",
    Do.CUT_DATAPATH: "datapath of proxy {}",
    Do.CUT_DATAPATH_IPV6: "datapath of proxy {}",
    Do.LOSE_PACKETS: "datapath of proxy {}",
    Do.STARVE_MONITORS: "CPU of the monitors",
    Do.CLOSE_CONNECTION: "connection of proxy {}",
    Do.LIE: "honest reports",
}
_COMES = {
    Do.CREATE_LB_LINK: "LB link to proxy {}",
    Do.CREATE_TARGET_LINK: "link of target {}",
    Do.UNBLOCK_TARGET_IPV6: "IPv6 of target {}",
    Do.START_CONTROLLER: "controller",
    Do.CONTINUE_CONTROLLER: "controller",
    Do.ADD_TARGET: "registration of target {}",
    Do.MEND_DATAPATH: "datapath of proxy {}",
    Do.FEED_MONITORS: "CPU of the monitors",
    Do.STOP_LYING: "honest reports",
}


def link_lanes(steps: Sequence[tuple[float, Step]], start: float, end_s: float) -> dict[str, list[Interval]]:
    """Return, by name, when each thing that the scenario takes away was there and when it was not."""
    lanes: dict[str, list[Interval]] = {}
    present: dict[str, tuple[float, str]] = {}

    def change(name: str, at_s: float, state: str) -> None:
        since, before = present.get(name, (-BEFORE_S, "away" if state == "up" else "up"))
        lanes.setdefault(name, []).append((since, at_s, before))
        present[name] = (at_s, state)

    for at, step in steps:
        at_s = at - start
        if step.do in _GOES:
            change(_GOES[step.do].format(step.number), at_s, "away")
        elif step.do is Do.DELETE_SUPERSEDED_LINK:
            change(_GOES[Do.DELETE_LB_LINK].format(step.number), at_s, "none")
        elif step.do is Do.CREATE_LB_LINK and _COMES[step.do].format(step.number) not in present:
            name = f"its new link to proxy {step.number}"
            present[name] = (-BEFORE_S, "none")
            lanes[_COMES[step.do].format(step.number)] = []
            change(name, at_s, "up")
        elif step.do in _COMES:
            change(_COMES[step.do].format(step.number), at_s, "up")
    for name, (since, state) in present.items():
        lanes[name].append((since, end_s, state))
    return lanes


def state_lanes(run: Run, identifiers: Iterable[int], end_s: float) -> dict[int, list[Interval]]:
    """Return the states of each target over time, from the log of the process that decides."""
    lanes: dict[int, list[Interval]] = {}
    for identifier in identifiers:
        lanes[identifier] = []
        since, state = -BEFORE_S, "pending"
        for record in run.records:
            if record.get("event") != "decision" or record.get("identifier") != identifier:
                continue
            at_s = max(record["ts"] - run.started, -BEFORE_S)
            if at_s > since:
                lanes[identifier].append((since, at_s, state))
            since, state = at_s, str(record.get("state_to") or "removed")
        lanes[identifier].append((since, end_s, state))
    return lanes


def answer_series(traffic: TrafficResult) -> dict[int, list[int]]:
    """Return the answers per target and time bin, TCP and UDP together."""
    series: dict[int, list[int]] = {}
    for bins in (traffic.tcp_bins, traffic.udp_bins):
        for target, counts in bins.items():
            have = series.setdefault(int(target), [])
            have.extend([0] * (len(counts) - len(have)))
            for index, count in enumerate(counts):
                have[index] += count
    return dict(sorted(series.items()))


class _Drawing:
    """Collects SVG elements from top to bottom."""

    def __init__(self, end_s: float) -> None:
        self.end_s = end_s
        self.y = 6.0
        self.parts: list[str] = []

    def x(self, at_s: float) -> float:
        at_s = min(max(at_s, -BEFORE_S), self.end_s)
        return LEFT + (at_s + BEFORE_S) / (self.end_s + BEFORE_S) * (WIDTH - LEFT - RIGHT)

    def heading(self, text: str) -> None:
        self.parts.append(f'<text class="head" x="4" y="{self.y + 11:.0f}">{html_text(text)}</text>')
        self.y += LANE_STEP

    def scale(self, text: str, y: float) -> None:
        """Write a value of a vertical scale beside its place."""
        self.parts.append(f'<text class="scale" x="{LEFT - 4}" y="{y:.1f}" text-anchor="end">{html_text(text)}</text>')

    def label(self, text: str, height: float = LANE, right: float = LEFT - 8) -> None:
        self.parts.append(
            f'<text class="label" x="{right}" y="{self.y + height / 2 + 4:.1f}" text-anchor="end">'
            f"{html_text(text)}</text>"
        )

    def lane(self, name: str, intervals: Iterable[Interval]) -> None:
        self.label(name)
        for since, until, state in intervals:
            left, right = self.x(since), self.x(until)
            if state == "none" or right <= left:
                continue
            title = f"{html_text(name)}: {html_text(state)}, {since:.2f} s to {until:.2f} s"
            self.parts.append(
                f'<rect class="s-{html_text(state)}" x="{left:.1f}" y="{self.y:.1f}" '
                f'width="{max(right - left, 1.5):.1f}" height="{LANE}" rx="2"><title>{title}</title></rect>'
            )
            # The word tells states apart without colours, where it fits.
            if state in _COLOUR_OF and right - left > _CHARACTER * (len(state) + 1):
                self.parts.append(
                    f'<text class="in on-{_COLOUR_OF[state]}" x="{left + 5:.1f}" y="{self.y + 12:.1f}">{state}</text>'
                )
        self.y += LANE_STEP

    def marks(self, marks: Iterable[Interval], y: float, height: float, start: float) -> None:
        """Draw the marks of one connection (epoch seconds) as its line; `start` is when the scenario started."""
        for since, until, kind in marks:
            left, right = self.x(since - start), self.x(until - start)
            if until > start - BEFORE_S:
                self.parts.append(
                    f'<rect class="g-{kind}" x="{left:.1f}" y="{y:.2f}" width="{max(right - left, 1):.1f}" '
                    f'height="{height:.2f}"/>'
                )

    def svg(self, name: str) -> str:
        height = self.y + 40
        return (
            f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{html_text(name)}">'
            f"{self._grid(self.y)}{''.join(self.parts)}</svg>"
        )

    def _grid(self, bottom: float) -> str:
        parts = []
        for second in range(-int(BEFORE_S), int(self.end_s) + 1):
            x = self.x(second)
            kind = "zero" if second == 0 else "grid"
            parts.append(f'<line class="{kind}" x1="{x:.1f}" x2="{x:.1f}" y1="4" y2="{bottom:.0f}"/>')
            parts.append(f'<text class="tick" x="{x:.1f}" y="{bottom + 15:.0f}" text-anchor="middle">{second} s</text>')
        middle = (LEFT + WIDTH - RIGHT) / 2
        title = "time since the scenario began (seconds)"
        parts.append(f'<text class="tick" x="{middle}" y="{bottom + 32:.0f}" text-anchor="middle">{title}</text>')
        return "".join(parts)


def draw(run: Run) -> str:
    """Draw the timeline of a run. A run without traffic (it failed) has none: an empty string."""
    traffic = run.traffic
    if traffic is None:
        return ""
    end_s = traffic.ended - run.started
    drawing = _Drawing(end_s)
    series = answer_series(traffic)
    drawing.heading("Links")
    for name, intervals in link_lanes(run.steps, run.started, end_s).items():
        drawing.lane(name, intervals)
    drawing.y += 6
    drawing.heading("State of each target")
    for identifier, intervals in state_lanes(run, series, end_s).items():
        drawing.lane(f"target {identifier}", intervals)
    drawing.y += 6
    drawing.heading("Answers per target and second, peaks above the scale cut off")
    top = answers_top(series, traffic, run.started)
    for identifier, counts in series.items():
        _answers(drawing, identifier, counts, traffic.started - run.started, top)
    drawing.y += 6
    drawing.heading("Connections, one line each")
    _gaps(drawing, traffic, run.started)
    if new := newcomers(traffic, run.stepped):
        drawing.y += 6
        drawing.heading("New connections, one line each, from the moment it is opened")
        _newcomers(drawing, new, traffic.ended, run)
    return drawing.svg(f"{run.scenario}, {run.column}")


def answers_top(series: dict[int, list[int]], traffic: TrafficResult, start: float) -> float:
    """Return the height of the scale: a little above what the busiest target answered before the scenario.

    What a connection had queued is answered all at once when its path is back; that peak is cut off.
    """
    until = max(int((start - traffic.started) / BIN_S), 1)
    since = max(until - int(BEFORE_S / BIN_S), 0)  # what came earlier was the opening of connections
    return 1.6 * max((median(counts[since:until] or [0]) for counts in series.values()), default=0) or 1.0


def _answers(drawing: _Drawing, identifier: int, counts: Sequence[int], offset_s: float, top: float) -> None:
    drawing.label(f"target {identifier}", ANSWERS_HEIGHT, LEFT - SCALE_WIDTH)
    base = drawing.y + ANSWERS_HEIGHT
    drawing.scale(f"{top / BIN_S:.0f}/s", drawing.y + 9)
    drawing.scale("0/s", base)
    points = []
    # The last bin is not whole, it would look like a loss.
    for index, count in enumerate(counts[:-1]):
        at_s = offset_s + index * BIN_S
        if at_s >= -BEFORE_S:
            y = base - min(count / top, 1.0) * (ANSWERS_HEIGHT - 2)
            points.append(f"{drawing.x(at_s):.1f},{y:.1f} {drawing.x(at_s + BIN_S):.1f},{y:.1f}")
    if points:
        first, last = points[0].split(",")[0], points[-1].split(" ")[1].split(",")[0]
        area = f"{first},{base:.1f} {' '.join(points)} {last},{base:.1f}"
        drawing.parts.append(f'<polygon class="answers" points="{area}"><title>target {identifier}</title></polygon>')
    drawing.parts.append(f'<line class="base" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{base:.1f}" y2="{base:.1f}"/>')
    drawing.y += ANSWERS_HEIGHT + 6


def _gaps(drawing: _Drawing, traffic: TrafficResult, start: float) -> None:
    channels = sorted(traffic.connections, key=lambda channel: (channel.target, channel.number))
    step = GAPS_HEIGHT / max(len(channels), 1)
    height = max(step * 0.8, 0.4)
    first_of: dict[int, float] = {}
    drawing.parts.append(
        f'<rect class="gapback" x="{LEFT}" y="{drawing.y:.1f}" width="{WIDTH - LEFT - RIGHT}" height="{GAPS_HEIGHT}"/>'
    )
    for index, channel in enumerate(channels):
        y = drawing.y + index * step
        first_of.setdefault(channel.target, y)
        drawing.marks(channel_marks(channel, traffic.ended), y, height, start)
    top = drawing.y
    counts = Counter(channel.target for channel in channels)
    for target, y in first_of.items():
        drawing.y = y
        drawing.label(f"{counts[target]} of target {target}", LANE)
        drawing.parts.append(f'<line class="base" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
    drawing.y = top + GAPS_HEIGHT + 4


def _newcomers(drawing: _Drawing, channels: Sequence[Channel], ended: float, run: Run) -> None:
    """Draw the lines of new connections from top to bottom as they were opened."""
    start, measured = run.started, run.measured
    top, bottom = drawing.y, drawing.y + GAPS_HEIGHT
    step = GAPS_HEIGHT / len(channels)
    right = WIDTH - RIGHT
    births = " ".join(f"{drawing.x(c.opened_at - start):.1f},{top + n * step:.2f}" for n, c in enumerate(channels))
    last = drawing.x(channels[-1].opened_at - start)
    for text in (f"{len(channels)} opened", f"{measured.new_waited} waited", f"{measured.new_broken} broken"):
        drawing.label(text, LANE)
        drawing.y += LANE
    drawing.parts.append(
        f'<polygon class="gapback" points="{births} {last:.1f},{bottom:.2f} {right},{bottom:.2f} {right},{top:.2f}"/>'
    )
    for index, channel in enumerate(channels):
        drawing.marks(channel_marks(channel, ended), top + index * step, max(step * 0.8, 0.4), start)
    drawing.y = bottom + 4


def channel_marks(channel: Channel, ended: float) -> list[Interval]:
    """Return the pauses of a connection, and the rest of the run when it broke: (from, to, kind), epoch seconds.

    The kinds: `wait` until a new connection is connected, `gap` between two answers, `broken`, `stalled`.
    """
    marks: list[Interval] = [(start, start + length, "gap") for start, length in channel.gaps]
    since = channel.last_at
    if channel.opened_at and (waited_s := connect_s(channel, ended)) > WAITED_OVER_S:
        marks.insert(0, (channel.opened_at, channel.opened_at + waited_s, "wait"))
    if channel.opened_at and not channel.answered:
        since = channel.opened_at + connect_s(channel, ended)
    if channel.ending != OPEN:
        if channel.ended_at > since:
            marks.append((since, channel.ended_at, "gap"))
        marks.append((channel.ended_at, ended, "broken"))
    elif is_stalled(channel, ended):
        marks.append((since, ended, "stalled"))
    return marks
