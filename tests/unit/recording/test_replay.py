import dataclasses
import gzip
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import get_args

import pytest

from lbguard.core import events as ev
from lbguard.core.addr import parse_prefix
from lbguard.core.checkpoint import CheckpointError, freeze, restore
from lbguard.core.config import EngineConfig
from lbguard.core.events import KernelSnapshot, SourceSnapshot
from lbguard.core.model import (
    Condition,
    LinkKey,
    ManualAction,
    NeighborState,
    StreamSpec,
    TargetKey,
    TargetSpec,
    TargetSubject,
    Verdict,
    VerdictState,
)
from lbguard.recording.codec import decode_nodes, encode_nodes
from lbguard.recording.format import GOES_ON, Header, Limits, RecordingError
from lbguard.recording.reader import Began, Ended, Told, find_files
from lbguard.recording.recorder import RecordedEngine
from lbguard.recording.replay import Continuity, Replayer, items_of, replay
from lbguard.recording.show import report_json, report_text
from lbguard.recording.writer import RecordingWriter
from tests.fakes.direct_tape import DirectTape
from tests.unit.core.harness import STREAM, Guard, ipv4_of, ipv6_of, mac

CONFIG = EngineConfig(neighbor_probe_interval_s=0.0, solicit_neighbors=False)


class _Tape(DirectTape):
    due = False

    @property
    def wanted(self) -> int:
        due, self.due = self.due, False
        return 2 if due else 0


@pytest.fixture
def two_files(tmp_path: Path) -> list[Path]:
    """A recording whose second file begins while a target is held."""
    guard = Guard(CONFIG, start=False)
    writer = RecordingWriter(tmp_path, CONFIG, wall_offset=lambda: 1e9)
    tape = _Tape(writer)
    guard.engine = RecordedEngine(CONFIG, tape)
    guard.tell(KernelSnapshot())
    guard.link(1)
    guard.link(2, proxy=1)
    guard.source()
    guard.register(1, 2, 3)
    guard.unlink(1)
    guard.now += 1.0
    tape.due = True
    guard.tell()
    guard.link(3)
    guard.wait(5.0)
    writer.close()
    return find_files([tmp_path])


def rewrite_header(path: Path, **values: object) -> None:
    first, *rest = gzip.decompress(path.read_bytes()).decode().splitlines()
    lines = [json.dumps({**json.loads(first), **values}), *rest]
    path.write_bytes(gzip.compress(("\n".join(lines) + "\n").encode()))


def said(files: Sequence[Path]) -> int:
    report = replay(files)
    assert report.difference is None
    return report.decisions


def test_each_file_alone_tells_its_part(two_files: list[Path]) -> None:
    first, second = two_files
    assert said([first]) + said([second]) == said(two_files)
    assert said([second]) >= 3


def every_kind_of_event(guard: Guard) -> Iterator[ev.Event]:
    """Yield events that mean something to an engine with targets 1 and 2 behind link 1, one of each kind at least."""
    neighbor = mac(9)
    route, rule = min(guard.routes), min(guard.rules)
    verdict = Verdict(
        subject=TargetSubject(ip=ipv4_of(1)), state=VerdictState.DOWN, generation=1, sequence=1, lease_s=30.0
    )
    yield ev.NeighborSeen(ifindex=1, ip=ipv4_of(1), state=NeighborState.REACHABLE, mac=neighbor)
    yield ev.TrafficSeen(ifindex=1, rx_packets=100)
    yield ev.VerdictReported(reporter="proxy-a", verdict=verdict, ticket=7)
    yield ev.VerdictReported(reporter="proxy-a", verdict=dataclasses.replace(verdict, sequence=2), ticket=8)
    yield ev.NeighborGone(ifindex=1, ip=ipv4_of(1))
    yield ev.NeighborsProbed(entries=((1, ipv4_of(1)),))
    yield ev.NeighborsOutdated(ips=(ipv4_of(1), ipv4_of(2)), new_mac=neighbor)
    yield ev.RuleGone(rule=rule)
    yield ev.RuleFailed(rule=rule, reason="EPERM")
    yield ev.RuleSeen(rule=rule)
    yield ev.RouteGone(route=route)
    yield ev.RouteFailed(route=route, reason="ENETUNREACH")
    yield ev.RouteSeen(route=route)
    yield ev.RoutesProgrammed(added=(route,))
    yield ev.CommitFailed(stream=STREAM, reason="disk full")
    yield ev.DistributorLost(stream=STREAM, reason="replaced")
    yield ev.DistributorSeen(stream=STREAM, active=frozenset({2}))
    yield ev.CommitDone(stream=STREAM, registered=frozenset({1, 2}), active=frozenset({1, 2}))
    yield ev.StreamsPruned()
    yield ev.SourceLost(reason="registry away")
    spec = guard.stream().spec
    yield ev.SourceSnapshot(streams=(spec,))
    yield ev.SourceSnapshot(streams=(dataclasses.replace(spec, targets=spec.targets[:1]),))
    yield ev.TargetsIdle(marks=(spec.mark(2),))
    yield ev.AffinityReported(in_force=False)
    yield ev.AffinityReported(in_force=True)
    yield ev.SourceSnapshot(streams=(spec,))
    keys = (TargetKey(STREAM, 1),)
    yield ev.OverrideRequested(action=ManualAction.WITHDRAW, targets=keys, duration_s=60.0, who="anna", reason="disk")
    yield ev.OverrideRequested(action=ManualAction.RELEASE, targets=keys)
    yield guard.link_seen(2)
    yield guard.address(2, "172.16.0.2/24")
    prefix = parse_prefix("172.16.9.0/24")
    yield ev.LinkRouteSeen(ifindex=2, prefix=prefix)
    yield ev.LinkRouteGone(ifindex=2, prefix=prefix)
    yield ev.LinkSetDown(link=LinkKey(1, 1), reason="EPERM")
    yield guard.address_gone(2, "172.16.0.2/24")
    yield ev.Stalled(duration_s=1.0)
    yield ev.SettingsChanged(config=dataclasses.replace(CONFIG, affinity=True, drain_window_s=9.0, soft_budget=0.25))
    hold = ev.OpenHold(
        stream=STREAM, identifier=2, ips=(ipv4_of(2),), cause=Condition.NO_LINK, broken_s=0.5, frozen_s=None
    )
    yield ev.HoldsRemembered(
        holds=(hold, dataclasses.replace(hold, stream="stream-b", frozen_s=0.25)),
        subnets=(parse_prefix("10.0.0.0/8"),),
        drains=(ev.OpenDrain(stream=STREAM, identifier=3, ips=(ipv4_of(3),), left_s=5.0),),
        overrides=(
            ev.OpenOverride(
                stream=STREAM, identifier=2, ips=(ipv4_of(2),), action=ManualAction.HOLD, age_s=1.0, left_s=5.0
            ),
        ),
    )
    yield ev.KernelOutOfSync(reason="overrun")
    yield ev.KernelSnapshot(
        links=(guard.link_seen(1), guard.link_seen(2)),
        addresses=(guard.address(1, "172.16.0.1/24"),),
        neighbors=(ev.NeighborSeen(ifindex=1, ip=ipv4_of(2), state=NeighborState.FAILED),),
        routes=tuple(sorted(guard.routes)),
        rules=tuple(sorted(guard.rules)),
    )
    yield ev.LinkGone(ifindex=1)


def test_every_kind_of_event_is_replayed_to_the_same_state(tmp_path: Path) -> None:
    """After each event a new file begins; from every one of them the replay ends in the very state of the engine."""
    config = dataclasses.replace(CONFIG, affinity=True, drain_window_s=20.0)
    guard = Guard(config, start=False)
    writer = RecordingWriter(tmp_path, config, limits=Limits(files=100), wall_offset=lambda: 1e9)
    tape = _Tape(writer)
    guard.engine = RecordedEngine(config, tape)
    guard.tell(ev.KernelSnapshot())
    guard.link(1)
    guard.register(1, 2)
    told = set()
    for event in every_kind_of_event(guard):
        told.add(type(event))
        guard.now += 0.125
        tape.due = True
        guard.tell(event)
    guard.wait(100.0)
    writer.close()
    assert told == set(get_args(ev.Event))
    files = find_files([tmp_path])
    assert len(files) > len(told)
    state = list(encode_nodes(freeze(guard.engine)))
    for first in range(len(files)):
        replayer = Replayer()
        for item in items_of(files[first:]):
            assert replayer.take(item) is None
        assert replayer.engine is not None
        assert list(encode_nodes(freeze(replayer.engine))) == state, files[first]
    assert guard.states() == {1: "withdrawn", 2: "withdrawn"}


def test_what_drained_and_which_family_was_withdrawn_is_told(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, affinity=True, drain_window_s=20.0)
    guard = Guard(config, start=False)
    writer = RecordingWriter(tmp_path, config, wall_offset=lambda: 1e9)
    guard.engine = RecordedEngine(config, DirectTape(writer))
    guard.tell(ev.KernelSnapshot())
    guard.link(1)
    guard.tell(guard.link_seen(2), guard.address(2, "fd00:0::2/64"))
    targets = (
        TargetSpec(identifier=1, ips=(ipv4_of(1), ipv6_of(1))),
        *(TargetSpec(identifier=i, ips=(ipv4_of(i),)) for i in (2, 3, 4)),
    )
    guard.source(StreamSpec(name=STREAM, targets=targets))
    guard.unlink(2)
    guard.wait(10.0)
    guard.source(StreamSpec(name=STREAM, targets=targets[:3]))
    guard.wait(30.0)
    writer.close()
    report = replay(find_files([tmp_path]))
    assert report.difference is None
    assert report.drained == {TargetKey(STREAM, 4): 1}
    assert report.families == {(TargetKey(STREAM, 1), "IPv6"): 1}
    text = report_text(report)
    assert "began to drain: stream-a/4" in text
    assert "withdrawn alone: IPv6 of stream-a/1" in text
    values = report_json(report)
    assert values["drained"] == {"stream-a/4": 1}
    assert values["families_withdrawn"] == [{"target": "stream-a/1", "family": "IPv6", "count": 1}]


def test_a_state_of_another_core_is_not_guessed_at(two_files: list[Path]) -> None:
    first, second = two_files
    for path in two_files:
        rewrite_header(path, core="0123456789abcdef", lbguard="0.0.9")
    # From its beginning a recording can be replayed by any version; it says that a difference may be a change.
    report = replay([first, second])
    assert report.difference is None
    assert report.core_differs == {"0.0.9"}
    with pytest.raises(RecordingError, match=r"another version of the core.*lbguard 0\.0\.9.*file 1"):
        replay([second])


def test_the_engine_goes_on_only_where_nothing_is_missing() -> None:
    header = Header(lbguard="", core="", series="a", number=1, begins="start", now=0.0, offset=0.0)

    def goes_on(before: Header, after: Header, *, torn: bool = False) -> bool:
        continuity = Continuity()
        continuity.begins(before)
        continuity.ended(Ended(Path(), torn))
        return continuity.begins(after)

    following = dataclasses.replace(header, number=2, begins=GOES_ON)
    assert goes_on(header, following)
    assert not goes_on(header, following, torn=True)
    assert not goes_on(header, dataclasses.replace(following, number=3))
    assert not goes_on(header, dataclasses.replace(following, series="b"))
    assert not goes_on(header, dataclasses.replace(following, begins="after_loss"))
    assert not Continuity().begins(following)


def test_a_frozen_state_is_a_copy(two_files: list[Path]) -> None:
    guard = Guard(CONFIG)
    nodes = freeze(guard.engine)
    before = list(encode_nodes(nodes))
    guard.unlink(1)
    guard.wait(10.0)
    guard.engine.observe(SourceSnapshot(streams=()), guard.now)
    assert list(encode_nodes(nodes)) == before
    restored = restore(decode_nodes(json.loads(json.dumps(before))))
    assert restored.status(100.0).targets[0].state == "active"
    assert list(encode_nodes(freeze(restored))) == before


def test_a_state_that_does_not_fit_is_refused() -> None:
    rows = json.loads(json.dumps(list(encode_nodes(freeze(Guard(CONFIG).engine)))))
    for wrong in (
        rows[1:],
        [],
        [["Engine", None, "view", {"@": 10**6}]],
        [["Nobody", None]],
        [["Engine", None, {"z": 1}]],
    ):
        with pytest.raises(CheckpointError):
            restore(decode_nodes(wrong))


@pytest.fixture
def changed(tmp_path: Path) -> list[Path]:
    """A recording in which the window is made longer during a hold, and another file begins after that."""
    guard = Guard(CONFIG, start=False)
    writer = RecordingWriter(tmp_path, CONFIG, wall_offset=lambda: 1e9)
    tape = _Tape(writer)
    guard.engine = RecordedEngine(CONFIG, tape)
    guard.tell(KernelSnapshot())
    guard.link(1)
    guard.link(2, proxy=1)
    guard.register(1)
    guard.unlink(1)
    guard.wait(1.0)
    longer = dataclasses.replace(CONFIG, grace=dataclasses.replace(CONFIG.grace, window_s=8.0))
    guard.tell(ev.SettingsChanged(config=longer))
    tape.due = True
    guard.tell()
    guard.wait(3.0)
    guard.tell()
    guard.wait(7.0)
    assert [decision.duration_s for decision in guard.decisions()] == [8.0]
    writer.close()
    return find_files([tmp_path])


def test_a_change_of_settings_is_replayed(changed: list[Path]) -> None:
    assert said(changed) > 0
    # Without it, the withdrawal comes after three seconds.
    text = gzip.decompress(changed[0].read_bytes()).decode().splitlines()
    [number] = [number for number, line in enumerate(text) if number > 1 and line.startswith('["EngineConfig"')]
    changed[0].write_bytes(gzip.compress(("\n".join(text[:number] + text[number + 1 :]) + "\n").encode()))
    assert replay(changed).difference is not None


def test_a_file_after_a_change_begins_with_the_changed_settings(changed: list[Path]) -> None:
    configs = [item.config for path in changed for item in items_of([path]) if isinstance(item, Began)]
    assert [config.grace.window_s for config in configs] == [3.0, 8.0]
    assert said(changed[1:]) == 1


def test_a_change_of_settings_is_read_by_the_names_of_its_fields(changed: list[Path]) -> None:
    """Fields may be put between others in a later version."""
    first, *rest = gzip.decompress(changed[0].read_bytes()).decode().splitlines()
    header = json.loads(first)
    header["types"]["EngineConfig"] = header["types"]["EngineConfig"][::-1]
    rows = [json.loads(line) for line in rest]
    turned = [[row[0], *row[:0:-1]] if row[0] == "EngineConfig" else row for row in rows]
    lines = [json.dumps(each) for each in (header, *turned)]
    changed[0].write_bytes(gzip.compress(("\n".join(lines) + "\n").encode()))
    told = [item.event for item in items_of(changed[:1]) if isinstance(item, Told)]
    [event] = [event for event in told if isinstance(event, ev.SettingsChanged)]
    assert event.config.grace.window_s == 8.0
