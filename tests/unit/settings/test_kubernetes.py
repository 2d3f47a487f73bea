"""Settings of source kubernetes: what they accept, and what they refuse together."""

import pytest

from lbguard.core.addr import parse_prefix
from lbguard.settings.model import SettingsError, load

WEB = {"kubernetes.services": "web,dns"}


def refusal(**flags: object) -> str:
    names = {f"kubernetes.{name}": value for name, value in flags.items()}
    with pytest.raises(SettingsError) as caught:
        load(flags=names)
    (problem,) = caught.value.problems
    return f"{problem.setting}: {problem.reason}"


def test_services_with_vips_of_both_families() -> None:
    kubernetes = load(
        flags={**WEB, "kubernetes.vips": "web=20.0.0.1, web=2000::/64,dns=20.0.0.2/32"}
    ).settings.kubernetes
    assert kubernetes.streams == ("web", "dns")
    assert [(stream, str(vip)) for stream, vip in kubernetes.stream_vips] == [
        ("web", "20.0.0.1/32"),
        ("web", "2000::/64"),
        ("dns", "20.0.0.2/32"),
    ]
    assert kubernetes.stream_vips[0].vip == parse_prefix("20.0.0.1/32")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"services": "web", "gateway": "g"}, "kubernetes.gateway: not together with kubernetes.services"),
        ({"distribution_groups": "g"}, "kubernetes.gateway: needed for kubernetes.distribution_groups g"),
        ({"services": "web,web"}, "kubernetes.services: a stream is named twice"),
        ({"gateway": "g", "distribution_groups": "a,a"}, "kubernetes.distribution_groups: a stream is named twice"),
        ({"url": "https://api", "kubeconfig": "/k"}, "kubernetes.url: not together with kubernetes.kubeconfig"),
        ({"services": "web", "vips": "other=20.0.0.1"}, "kubernetes.vips: other is none of the streams"),
        ({"services": "a,b", "vips": "a=20.0.0.1,b=20.0.0.0/24"}, "kubernetes.vips: streams b and a share VIP"),
        ({"vips": "20.0.0.1"}, "kubernetes.vips: not a VIP of a stream"),
        ({"vips": "web=127.0.0.1"}, "kubernetes.vips: 127.0.0.1 cannot be a VIP"),
        ({"services": "a/b"}, "kubernetes.services: not a name"),
        ({"gateway": "a/b/c"}, "kubernetes.gateway: not a name"),
        ({"gateway": "/a"}, "kubernetes.gateway: not a name"),
        ({"namespace": "a b"}, "kubernetes.namespace: not a name"),
        ({"url": "http://api.example.org"}, "kubernetes.url: http would send the token in plaintext"),
        ({"url": "ftp://127.0.0.1"}, "kubernetes.url: not the URL"),
        ({"url": "https://user@api"}, "kubernetes.url: not the URL"),
        ({"url": "https://api:port"}, "kubernetes.url: not a URL"),
        ({"url": "https://[::1"}, "kubernetes.url: not a URL"),
        ({"max_targets": "0"}, "kubernetes.max_targets:"),
    ],
)
def test_refusals(flags: dict[str, object], said: str) -> None:
    assert refusal(**flags).startswith(said)


@pytest.mark.parametrize("url", ["", "https://api:6443", "http://127.0.0.1:8001", "http://[::1]:1", "http://localhost"])
def test_urls(url: str) -> None:
    assert load(flags={"kubernetes.url": url}).settings.kubernetes.url == url


def test_the_source_needs_objects_to_follow() -> None:
    with pytest.raises(SettingsError) as caught:
        load(flags={"source": "kubernetes"})
    assert caught.value.problems[0].setting == "kubernetes.services"
    assert (
        load(flags={"source": "kubernetes", "kubernetes.gateway": "here/gateway-a"}).settings.kubernetes.streams == ()
    )
