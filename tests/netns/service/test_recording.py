"""The service records what really happened to its links; the recording is replayed and tuned from."""

from pathlib import Path

import pytest

from lbguard.recording.format import RecordingError
from lbguard.recording.reader import find_files, read_header
from lbguard.recording.replay import replay, state_at
from lbguard.tuning.candidates import round_up, with_margin
from lbguard.tuning.tune import tune
from tests.netns.service.guarded import PATIENT, Guarded, wait_until

pytestmark = pytest.mark.netns


def recording(directory: Path) -> dict[str, str]:
    return {
        **PATIENT,
        "LBGUARD_RECORDING__ENABLED": "true",
        "LBGUARD_RECORDING__DIRECTORY": str(directory),
        "LBGUARD_RECORDING__FLUSH": "100ms",
    }


def decisions_on_disk(path: Path) -> int:
    """How many decisions a running service has written; it may be ready before it has written anything."""
    try:
        return replay(find_files([path])).decisions
    except RecordingError:
        return 0


def test_a_window_just_above_the_real_heals_is_recommended(guarded: Guarded, tmp_path: Path) -> None:
    directory = tmp_path / "recording"
    with guarded.service(recording(directory)):
        for link, targets in (("nse-a", ("t1", "t2")), ("nse-b", ("t3", "t4")), ("nse-a", ("t1", "t2"))):
            guarded.delete_link(link)
            guarded.wait_for(**dict.fromkeys(targets, "held"))
            guarded.make_link(link)
            guarded.wait_for(**dict.fromkeys(targets, "active"))
        decided = guarded.decisions()
        wait_until(lambda: (guarded.metric("lbguard_recording_bytes_total") or 0) > 0, "bytes are counted")
        for reason in ("queue_full", "file_full", "disk"):
            assert guarded.metric(f'lbguard_recording_dropped_total{{reason="{reason}"}}') == 0
    files = find_files([directory])
    report = replay(files)
    assert report.difference is None
    assert not report.torn
    assert report.decisions >= len(decided) == 16
    heals = [decision.duration_s or 0.0 for decision in decided if decision.action == "recover"]
    tuning = tune(files, {})
    assert len(heals) == len(tuning.heals_s) == 6
    assert tuning.recommended is None, "six losses are too few for that"
    (cost,) = (
        result.cost
        for result in tuning.results
        if result.variant.config.grace.window_s == round_up(with_margin(max(heals)))
    )
    assert cost.in_time == 6
    assert tuning.results[0].variant.label == "0s"
    assert tuning.results[0].cost.too_soon == 6
    assert tuning.real.losses == 6


def test_a_killed_service_leaves_a_recording_up_to_its_last_second(guarded: Guarded, tmp_path: Path) -> None:
    directory = tmp_path / "recording"
    settings = recording(directory)
    with guarded.service(settings) as service:
        guarded.delete_link("nse-a")
        guarded.wait_for(t1="held", t2="held")
        wait_until(lambda: decisions_on_disk(directory) >= 7, "the holds are on disk")
        service.kill()
    (torn,) = find_files([directory])
    with guarded.service(settings, admitted=2):
        wait_until(lambda: len(find_files([directory])) == 2, "a recording of the second run")
        first, second = find_files([directory])
        assert first == torn
        wait_until(lambda: decisions_on_disk(second) > 0, "its decisions are on disk")
        assert read_header(second).begins == "start"
    report = replay([first, second])
    assert report.difference is None
    assert report.torn == [first]
    assert report.restarts == 2
    assert report.ended is not None
    status, _, _ = state_at([first, second], f"{report.ended:.6f}")
    assert {target.identifier for target in status.targets} == {1, 2, 3, 4}
