""""""

import os
from pathlib import Path

import pytest

from lbguard.core.model import Condition
from lbguard.settings.model import Settings, SettingsError, engine_config, load
from lbguard.settings.sources import MAX_BYTES, MAX_PROBLEMS, leaves


def refused(**arguments: object) -> dict[str, str]:
    """Load settings that must be refused and return the text of each problem by setting."""
    with pytest.raises(SettingsError) as caught:
        load(**arguments)  # type: ignore[arg-type]
    assert "pydantic" not in str(caught.value)
    return {problem.setting: str(problem) for problem in caught.value.problems}


def test_defaults_are_the_documented_ones() -> None:
    settings = load().settings
    assert settings.mode == "enforce"
    assert settings.socket == Path("/run/lbguard/lbguard.sock")
    assert (settings.grace.window, settings.grace.max) == (3.0, 30.0)
    assert (settings.freeze.threshold, settings.freeze.limit) == (0.5, 60.0)
    assert settings.announce.repeats == (0.0, 0.1, 1.1, 2.2)
    assert settings.distributor.table == "anchored"
    assert settings.metrics.listen == ":9464"
    assert not settings.withdraw_on_exit


def test_flag_beats_environment_beats_file_beats_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "lbguard.yaml"
    config.write_text("grace:\n  window: 1s\n  max: 11s\n  adaptive: true\n")
    monkeypatch.setenv("LBGUARD_GRACE__WINDOW", "2s")
    monkeypatch.setenv("LBGUARD_GRACE__MAX", "12s")
    loaded = load(config=config, flags={"grace.window": "3500ms"})
    grace = loaded.settings.grace
    assert (grace.window, grace.max, grace.adaptive, grace.adaptive_quantile) == (3.5, 12.0, True, 0.95)
    assert [loaded.origins[f"grace.{name}"] for name in ("window", "max", "adaptive", "adaptive_quantile")] == [
        "flag",
        "environment LBGUARD_GRACE__MAX",
        f"file {config}",
        "default",
    ]


def test_the_file_is_found_through_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "lbguard.yaml"
    config.write_text("mode: observe\n")
    monkeypatch.setenv("LBGUARD_CONFIG", str(config))
    loaded = load()
    assert loaded.settings.mode == "observe"
    assert loaded.config_path == config


def test_the_names_that_others_rely_on(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "LBGUARD_TARGETS_FILE": "/etc/lbguard/targets.yaml",
        "LBGUARD_MODE": "observe",
        "LBGUARD_DISTRIBUTOR__KIND": "nfqlb-shm",
        "LBGUARD_DISTRIBUTOR__TABLE": "maglev",
        "LBGUARD_GRACE__WINDOW": "500ms",
        "LBGUARD_GRACE__MAX": "2m",
        "LBGUARD_FREEZE__THRESHOLD": "0.75",
        "LBGUARD_METRICS__LISTEN": "",
        "LBGUARD_SOCKET": "/run/x.sock",
        "LBGUARD_LOG__FORMAT": "json",
    }.items():
        monkeypatch.setenv(name, value)
    loaded = load()
    settings = loaded.settings
    assert settings.targets_file == Path("/etc/lbguard/targets.yaml")
    assert (settings.mode, settings.distributor.kind, settings.distributor.table) == ("observe", "nfqlb-shm", "maglev")
    assert (settings.grace.window, settings.grace.max, settings.freeze.threshold) == (0.5, 120.0, 0.75)
    assert (settings.metrics.listen, settings.socket, settings.log.format) == ("", Path("/run/x.sock"), "json")
    assert loaded.notes == ()


def test_lists_come_from_text_and_from_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "lbguard.yaml"
    config.write_text("announce:\n  repeats: [0, 100ms, 1]\n")
    monkeypatch.setenv("LBGUARD_LINKS__EXCLUDE", "lo, eth*")
    settings = load(config=config).settings
    assert settings.announce.repeats == (0.0, 0.1, 1.0)
    assert settings.links.exclude == ("lo", "eth*")


def test_empty_text_unsets_an_optional_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LBGUARD_GRACE__VERDICT_WINDOW", "")
    monkeypatch.setenv("LBGUARD_TARGETS_FILE", "")
    settings = load(flags={"grace.neighbor_window": ""}).settings
    assert settings.grace.verdict_window is None
    assert settings.grace.neighbor_window is None
    assert settings.targets_file is None


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("mode", "off", "enforce | companion | observe"),
        ("grace.window", "soon", "500ms, 3s, 2m"),
        ("grace.window", "-1s", "0s to 60m"),
        ("grace.window", "2h", "0s to 60m"),
        ("grace.adaptive", "perhaps", "true | false"),
        ("freeze.threshold", "1.5", "0 to 1"),
        ("freeze.threshold", "half", "0 to 1"),
        ("kernel.inbox_limit", "1.5", "64 to 16777216"),
        ("kernel.receive_buffer", "1", "bytes"),
        ("metrics.listen", "9464", ":9464"),
        ("links.exclude", 7, "names between commas"),
    ],
)
def test_a_wrong_value_is_refused_by_name_with_what_is_allowed(name: str, value: object, allowed: str) -> None:
    problems = refused(flags={name: value})
    assert list(problems) == [name]
    assert str(value).split(",")[0] in problems[name]
    assert allowed in problems[name]


def test_every_problem_is_reported_with_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "lbguard.yaml"
    config.write_text("grace:\n  windw: 3s\n  max: forever\nfreeze: 3\ngraze: {window: 4s}\nqqq: {a: 1}\n")
    monkeypatch.setenv("LBGUARD_MODE", "maybe")
    problems = refused(config=config, flags={"damping.stp": "1s"})
    assert set(problems) == {"grace.windw", "grace.max", "freeze", "graze", "qqq", "mode", "damping.stp"}
    assert "unknown group of settings; did you mean grace?" in problems["graze"]
    assert problems["qqq"].endswith("unknown setting")
    assert "unknown setting; did you mean grace.window?" in problems["grace.windw"]
    assert str(config) in problems["grace.max"]
    assert "grace.max = 'forever'" in problems["grace.max"]
    assert "LBGUARD_MODE" in problems["mode"]
    assert "did you mean damping.step?" in problems["damping.stp"]


@pytest.mark.parametrize("text", ["[1, 2]", "a: b: c", "just words", "\x00"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    config = tmp_path / "lbguard.yaml"
    config.write_text(text)
    assert str(config) in refused(config=config)["config"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("grace:\n  window: 1s\n  window: 2s", "line 3, column 3: the key window is given twice"),
        ("grace: {window: 1s}\ngrace.window: 2s", "gives grace.window twice"),
        ("grace: {window: 1:30}", "line 1, column 17: 1:30 would be read to the base 60"),
        ("kernel: {inbox_limit: 0100}", "0100 would be read to the base 8"),
        ("grace: &a {window: 1s}\ndamping: *a", "anchors (&a) are refused"),
        ("grace: {window: !!int 1}", "tags (tag:yaml.org,2002:int) are refused"),
        ("a: 1\n---\nb: 1", "a second document begins"),
        ("grace: " + "[" * 5000, "is nested deeper than 20 levels"),
        ("#" * (MAX_BYTES + 1), "is larger than 1 MiB"),
    ],
)
def test_a_file_that_could_be_misread_is_refused_with_its_place(tmp_path: Path, text: str, words: str) -> None:
    config = tmp_path / "lbguard.yaml"
    config.write_text(text)
    said = refused(config=config)["config"]
    assert str(config) in said
    assert words in said


def test_switches_may_be_written_as_yaml_has_them(tmp_path: Path) -> None:
    config = tmp_path / "lbguard.yaml"
    config.write_text("grace: {adaptive: on}\nneighbors: {tune: no}\n")
    settings = load(config=config).settings
    assert (settings.grace.adaptive, settings.neighbors.tune) == (True, False)


def test_a_fifo_in_place_of_the_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "lbguard.yaml")
    assert "is a FIFO, not a regular file" in refused(config=tmp_path / "lbguard.yaml")["config"]


def test_a_file_of_nothing_but_unknown_names_is_given_up_early(tmp_path: Path) -> None:
    config = tmp_path / "lbguard.yaml"
    config.write_text("".join(f"k{number}: 1\n" for number in range(500)))
    assert len(refused(config=config)) == MAX_PROBLEMS


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert "No such file" in refused(config=tmp_path / "none.yaml")["config"]


def test_an_empty_file_and_an_empty_group_change_nothing(tmp_path: Path) -> None:
    config = tmp_path / "lbguard.yaml"
    config.write_text("# nothing\n")
    assert load(config=config).settings == load().settings
    config.write_text("grace:\nlog:\n  level: debug\n")
    assert load(config=config).settings.log.level == "debug"


@pytest.mark.parametrize("name", ["grace.window", "grace.neighbor_window", "grace.verdict_window"])
def test_a_window_beyond_the_maximum_is_refused(name: str) -> None:
    problems = refused(flags={name: "20s", "grace.max": "10s"})
    assert list(problems) == [name]
    assert "20s" in problems[name]
    assert "grace.max, which is 10s" in problems[name]


def test_what_was_removed_is_refused_with_what_replaces_it(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = refused(flags={"distributor.kind": "nfqlb-cli"})["distributor.kind"]
    assert "was removed; use nfqlb-shm" in kind
    assert "auto | nfqlb-shm | nftables | observe" in kind
    assert "use nfqlb-shm" in refused(flags={"distributor.nfqlb_binary": "nfqlb"})["distributor.nfqlb_binary"]
    monkeypatch.setenv("LBGUARD_DISTRIBUTOR__NFQLB_BINARY", "nfqlb")
    (text,) = refused().values()
    assert "environment LBGUARD_DISTRIBUTOR__NFQLB_BINARY" in text
    assert "was removed" in text


def test_unknown_environment_variables_are_noted_with_the_nearest_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LBGUARD_GRACE_WINDOW", "9s")
    monkeypatch.setenv("LBGUARD_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("LBGUARD_PORT_9464_TCP_ADDR", "10.0.0.1")
    loaded = load()
    assert loaded.settings.grace.window == 3.0
    assert len(loaded.notes) == 1
    assert "LBGUARD_GRACE_WINDOW" in loaded.notes[0]
    assert "LBGUARD_GRACE__WINDOW" in loaded.notes[0]


def test_every_setting_has_help_and_says_what_is_allowed() -> None:
    for leaf in leaves(Settings):
        assert leaf.help.endswith("."), leaf.name
        assert leaf.allowed, leaf.name
        assert leaf.unit, leaf.name


def test_a_shown_default_reads_back_as_the_default() -> None:
    shown = {leaf.name: leaf.show(leaf.default) for leaf in leaves(Settings)}
    assert load(flags=shown).settings == load().settings


@pytest.mark.parametrize("name", ["socket", "distributor.shm_dir", "recording.directory", "interposer.directory"])
def test_a_path_that_no_file_can_have_is_refused_at_once(name: str) -> None:
    for path in ("", " ", "/a\0b", "/" + "x" * 256, "/" + "x/" * 2100):
        assert list(refused(flags={name: path})) == [name]


def test_an_optional_path_may_be_empty_and_nothing_else_that_no_file_has() -> None:
    assert load(flags={"targets_file": " ", "availability.socket": ""}).settings.targets_file is None
    for name in ("targets_file", "availability.socket", "verdicts.tls_cert", "probe.connections_file"):
        assert name in refused(flags={name: "/a\0b"})


def test_a_socket_has_a_shorter_path_than_a_file() -> None:
    path = "/run/" + "x" * 103
    assert load(flags={"recording.directory": path}).settings.recording.directory == Path(path)
    assert "107 bytes" in refused(flags={"socket": path})["socket"]
    assert "107 bytes" in refused(flags={"availability.socket": path})["availability.socket"]
    assert load(flags={"socket": path[:-1]}).settings.socket == Path(path[:-1])


@pytest.mark.parametrize("group", ["verdicts", "nsp", "probe"])
def test_the_address_of_a_workload_api_is_checked(group: str) -> None:
    name = f"{group}.spiffe_socket"
    for text in ("x", "unix:", "unix:///", "unix:run/agent.sock", "http://x", "tcp://1.2.3.4:1", "unix:///a\0b"):
        assert list(refused(flags={name: text})) == [name]
    for text in ("", "unix:///run/agent.sock", "unix:/run/agent.sock"):
        load(flags={name: text})


def test_the_address_of_a_collector_is_checked() -> None:
    for text in (
        "collector:4317",
        "grpc://x:1",
        "http://",
        "http://x",
        "http://x:0",
        "http://a b:1",
        "http://unix:/a",
        "x",
    ):
        (why,) = refused(flags={"tracing.endpoint": text}).values()
        assert "http://otel-collector:4317" in why
    for text in ("", "http://collector:4317", "https://[fd00::1]:4317", "http://127.0.0.1:4317/"):
        load(flags={"tracing.endpoint": text})


def test_digits_and_hosts_are_plain() -> None:
    for name, text in {"grace.window": "\uff13s", "nsp.address": "\uff10:80", "nsm.address": "a b:80"}.items():
        assert list(refused(flags={name: text})) == [name]


def test_the_engine_gets_what_was_set() -> None:
    settings = load(
        flags={
            "mode": "observe",
            "grace.window": "2s",
            "grace.verdict_window": "4s",
            "freeze.limit": "90s",
            "damping.half_life": "7s",
            "availability.grace": "1500ms",
            "links.superseded": "ignore",
            "links.exclude": "eth0",
            "neighbors.probe_interval": "0",
            "neighbors.tune": "false",
            "evidence.soft_budget": "0.25",
            "evidence.neighbor_failures": "5",
        }
    ).settings
    config = engine_config(settings)
    assert config.observe
    assert (config.grace.window_s, config.grace.by_cause_s) == (2.0, {Condition.VERDICT_DOWN: 4.0})
    assert (config.freeze.limit_s, config.damping.half_life_s, config.availability_grace_s) == (90.0, 7.0, 1.5)
    assert (config.superseded_link_down, config.excluded_links) == (False, ("eth0",))
    assert config.neighbor_failures_needed == 5
    assert (config.neighbor_probe_interval_s, config.tune_neighbors, config.soft_budget) == (0.0, False, 0.25)


def test_off_without_quotes_in_yaml_is_off(tmp_path: Path) -> None:
    (tmp_path / "lbguard.yaml").write_text("affinity: {mode: off}\n")
    assert load(config=tmp_path / "lbguard.yaml").settings.affinity.mode == "off"


@pytest.mark.parametrize(
    ("mode", "affinity", "steers"),
    [
        ("enforce", "off", False),
        ("enforce", "incident", True),
        ("enforce", "all", True),
        ("companion", "incident", False),
        ("observe", "all", False),
    ],
)
def test_flows_are_steered_only_in_mode_enforce(mode: str, affinity: str, steers: bool) -> None:
    settings = load(flags={"mode": mode, "affinity.mode": affinity}).settings
    assert settings.steers_flows is steers
    assert engine_config(settings).affinity is steers
