import pytest

from lbguard.core.model import StreamSpec, TargetSpec
from lbguard.settings.check import check_settings, check_targets
from lbguard.settings.model import load

TARGETS = {"targets_file": "/etc/lbguard/targets.yaml"}

# As Meridio sets them.
MESH = {"mesh.request_timeout": "15s", "mesh.max_backoff": "5s", "mesh.ip_release_delay": "20s"}


def test_the_defaults_with_targets_raise_no_warning() -> None:
    assert check_settings(load(flags=TARGETS).settings) == ()


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("observe-mode-writes-nothing", {"mode": "observe", "distributor.kind": "nftables"}),
        ("companion-decides-nothing", {"mode": "companion"}),
        ("affinity-without-effect", {"mode": "observe", "affinity.mode": "incident"}),
        ("drain-without-affinity", {"affinity.mode": "off", "drain.window": "1m"}),
        ("nothing-to-withdraw", {"mode": "observe", "withdraw_on_exit": "true"}),
        ("heal-time-beyond-grace-max", {"nsm.enabled": "true", "nsm.heal_time": "40s"}),
        ("heal-path-beyond-grace-window", {"mesh.request_timeout": "2s", "mesh.max_backoff": "1100ms"}),
        ("heal-path-beyond-grace-max", {"mesh.request_timeout": "15s", "grace.max": "14s"}),
        ("heal-path-beyond-heal-time", MESH | {"nsm.enabled": "true", "nsm.heal_time": "19s"}),
        ("address-released-before-heal", MESH | {"mesh.ip_release_delay": "19s", "grace.window": "20s"}),
        ("enforce-without-distributor", {"distributor.kind": "observe"}),
        ("no-targets", {"targets_file": ""}),
        ("exit-breaks-connections", {"withdraw_on_exit": "true"}),
        ("no-grace", {"grace.window": "0", "grace.neighbor_window": "3s"}),
        ("adaptive-has-no-room", {"grace.adaptive": "true", "grace.max": "3s"}),
        ("unavailable-after-withdrawal", {"availability.grace": "4s"}),
        ("grace-below-two-probe-rounds", {"grace.neighbor_window": "1900ms"}),
        ("no-neighbor-probes", {"neighbors.probe_interval": "0"}),
        ("probes-overlap", {"neighbors.retrans": "1200ms"}),
        ("grace-max-beyond-freeze-limit", {"grace.max": "2m"}),
        ("freeze-off", {"freeze.threshold": "1"}),
        ("damping-max-below-step", {"damping.max": "1s"}),
        ("no-reconcile", {"kernel.reconcile_interval": "0"}),
        ("verdicts-from-nobody", {"verdicts.listen": ":7443", "verdicts.spiffe_socket": "unix:///run/agent.sock"}),
        ("verdict-policy-without-listener", {"verdicts.policy": "dns:proxy=10.0.0.0/8"}),
        ("kubernetes-not-followed", {"kubernetes.services": "web"}),
        ("verdict-subjects-total-below-one-reporter", {"verdicts.max_subjects_total": "100"}),
    ],
)
def test_each_bad_combination_is_named_and_has_a_remedy(name: str, flags: dict[str, object]) -> None:
    warnings = check_settings(load(flags=TARGETS | flags).settings)
    assert [warning.name for warning in warnings] == [name]
    assert warnings[0].what
    assert warnings[0].remedy


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("kubernetes-without-vips", {"distributor.kind": "nftables"}),
        ("kubernetes-without-affinity", {"affinity.mode": "off", "kubernetes.vips": "web=20.0.0.1"}),
    ],
)
def test_combinations_with_source_kubernetes(name: str, flags: dict[str, object]) -> None:
    followed = {"source": "kubernetes", "kubernetes.services": "web"}
    assert [warning.name for warning in check_settings(load(flags=followed | flags).settings)] == [name]
    assert check_settings(load(flags=followed | {"kubernetes.vips": "web=20.0.0.1"}).settings) == ()


def test_a_source_of_its_own_needs_no_file_of_targets() -> None:
    settings = load(flags={"source": "kernel", "mode": "observe"}).settings
    assert check_settings(settings) == ()


@pytest.mark.parametrize(
    "flags",
    [
        {"nsm.enabled": "true", "nsm.heal_time": "20s"},
        {
            "verdicts.listen": ":7443",
            "verdicts.spiffe_socket": "unix:///run/agent.sock",
            "verdicts.policy": "dns:proxy=10.0.0.0/8",
        },
        {"grace.adaptive": "true"},
        {"grace.window": "20s"},
    ],
)
def test_a_long_heal_path_is_no_trouble_for_who_hears_of_repairs_or_waits(flags: dict[str, object]) -> None:
    assert check_settings(load(flags=TARGETS | MESH | flags).settings) == ()


@pytest.mark.parametrize(
    "flags",
    [
        {"drain.window": "1m"},
        {"affinity.mode": "incident", "drain.window": "1m"},
        {"affinity.mode": "all", "drain.window": "1m", "drain.idle": "2m"},
    ],
)
def test_a_drain_with_affinity_raises_no_warning(flags: dict[str, object]) -> None:
    assert check_settings(load(flags=TARGETS | flags).settings) == ()


def test_affinity_works_beside_an_unmodified_load_balancer() -> None:
    settings = load(flags={"source": "interposer", "drain.window": "1m"}).settings
    assert check_settings(settings) == ()
    assert settings.steers_flows


@pytest.mark.parametrize("mode", ["companion", "observe"])
def test_the_default_of_affinity_is_no_wish_of_the_users_where_it_has_no_effect(mode: str) -> None:
    def named(flags: dict[str, object]) -> bool:
        settings = load(flags=TARGETS | {"mode": mode} | flags).settings
        assert not settings.steers_flows
        return any(warning.name == "affinity-without-effect" for warning in check_settings(settings))

    assert not named({})
    assert not named({"affinity.max_flows": "100"})
    assert not named({"affinity.mode": "off"})
    assert named({"affinity.mode": "incident"})


def listed(*draining: int) -> StreamSpec:
    targets = (TargetSpec(identifier=i, ips=(bytes([10, 0, 0, i]),), draining=i in draining) for i in range(1, 10))
    return StreamSpec(name="a", targets=tuple(targets))


@pytest.mark.parametrize("flags", [{"affinity.mode": "off"}, {"mode": "companion", "affinity.mode": "incident"}])
def test_targets_listed_as_draining_without_affinity_are_named(flags: dict[str, object]) -> None:
    settings = load(flags=TARGETS | flags).settings
    (warning,) = check_targets(settings, [listed(2, 3)])
    assert warning.name == "draining-without-affinity"
    assert warning.what.endswith("get new connections: a/2, a/3")
    assert "affinity.mode" in warning.remedy
    (warning,) = check_targets(settings, [listed(*range(1, 8))])
    assert warning.what.endswith("a/4, a/5 and 2 more")


def test_targets_listed_as_draining_with_affinity_are_as_they_should_be() -> None:
    settings = load(flags=TARGETS).settings
    assert check_targets(settings, [listed(2)]) == ()
    assert check_targets(load(flags=TARGETS).settings, [listed()]) == ()
