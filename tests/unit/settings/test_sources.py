"""What reaches the settings library of each source, and what does not."""

import itertools
from pathlib import Path

import pytest

from lbguard.settings.model import Settings, SettingsError, load

ORIGINS = {"flag": "flag", "environment": "environment LBGUARD_PROBE__NSM__ADDRESS", "file": "file "}


def refused(**arguments: object) -> list[str]:
    """Load settings that must be refused and return the text of each problem."""
    with pytest.raises(SettingsError) as caught:
        load(**arguments)  # type: ignore[arg-type]
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize("given", [set(some) for n in range(4) for some in itertools.combinations(ORIGINS, n)])
def test_the_strongest_source_that_gives_a_setting_counts_at_any_depth(
    given: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "lbguard.yaml"
    config.write_text("probe: {nsm: {address: file:1}}" if "file" in given else "probe: {nsm: {heal_time: 7s}}")
    monkeypatch.setenv("LBGUARD_PROBE__NSM__BACKOFF_MAX", "3s")
    if "environment" in given:
        monkeypatch.setenv("LBGUARD_PROBE__NSM__ADDRESS", "environment:1")
    loaded = load(config=config, flags={"probe.nsm.address": "flag:1"} if "flag" in given else {})
    strongest = next((source for source in ORIGINS if source in given), None)
    nsm = loaded.settings.probe.nsm
    assert nsm.address == (Settings().probe.nsm.address if strongest is None else f"{strongest}:1")
    assert loaded.origins["probe.nsm.address"].startswith("default" if strongest is None else ORIGINS[strongest])
    # What one source says of a group takes nothing away of what another says of it.
    assert nsm.backoff_max == 3.0
    assert nsm.heal_time == (15.0 if "file" in given else 7.0)


def test_json_in_a_variable_is_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LBGUARD_LINKS__EXCLUDE", '["lo"]')
    monkeypatch.setenv("LBGUARD_GRACE", '{"window": "9s"}')
    monkeypatch.setenv("LBGUARD_PROBE__NSM", "{")
    loaded = load()
    assert loaded.settings.links.exclude == ('["lo"]',)
    assert loaded.settings.grace.window == 3.0
    assert ["LBGUARD_GRACE " in note for note in loaded.notes] == [True, False]
    assert ["LBGUARD_PROBE__NSM " in note for note in loaded.notes] == [False, True]
    monkeypatch.setenv("LBGUARD_GRACE__WINDOW", '"9s"')
    assert "LBGUARD_GRACE__WINDOW" in refused()[0]


@pytest.mark.parametrize("name", ["lbguard_mode", "LBGUARD_mode", "MODE", "mode", "lbguard_grace__window"])
def test_a_variable_in_another_case_is_none(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "observe")
    assert load().settings == load(flags={"mode": "enforce", "grace.window": "3s"}).settings


def test_names_in_flags_and_file_have_one_case(tmp_path: Path) -> None:
    config = tmp_path / "lbguard.yaml"
    config.write_text("MODE: observe\nGrace: {window: 1s}\n")
    problems = refused(config=config, flags={"Mode": "observe"})
    assert [problem.split()[0] for problem in problems] == ["MODE", "Grace", "Mode"]


@pytest.mark.parametrize("name", ["mode", "socket", "grace.window", "links.exclude"])
def test_null_in_the_file_is_a_value_and_not_the_default(name: str, tmp_path: Path) -> None:
    config = tmp_path / "lbguard.yaml"
    config.write_text(f"{name}: null\n")
    (problem,) = refused(config=config)
    assert problem.startswith(f"{name} = None (file {config})")


def test_a_group_that_is_no_mapping_is_refused_though_a_stronger_source_gives_a_setting_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "lbguard.yaml"
    config.write_text("freeze: 3\n")
    monkeypatch.setenv("LBGUARD_FREEZE__LIMIT", "5s")
    (problem,) = refused(config=config)
    assert problem.startswith(f"freeze = 3 (file {config}): a group of settings, not a setting")


def test_bytes_that_are_no_text_are_refused_and_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LBGUARD_DISTRIBUTOR__NFQLB_BINARY", "nfqlb\udcff")
    (problem,) = refused()
    assert problem.startswith("distributor.nfqlb_binary")


def test_neither_a_dotenv_file_nor_the_working_directory_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".env").write_text("LBGUARD_MODE=observe\n")
    (tmp_path / "lbguard.yaml").write_text("mode: observe\n")
    monkeypatch.chdir(tmp_path)
    assert load().settings.mode == "enforce"


def test_settings_made_directly_read_no_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LBGUARD_MODE", "observe")
    assert Settings().mode == "enforce"
    assert load().settings.mode == "observe"
