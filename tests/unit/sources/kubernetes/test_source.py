"""The source against the model of the API server: what it lists, follows, believes, and survives."""

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from lbguard.core.addr import parse_ip
from tests.fakes.kubernetes_api import FakeKubernetesApi, endpoint, service_slice
from tests.unit.api.certificates import Authority
from tests.unit.sources.kubernetes.followed import MemoryKept, followed, services_config, with_times

ONE = endpoint("one", "10.0.0.1")
TWO = endpoint("two", "10.0.0.2")
THREE = endpoint("three", "10.0.0.3")


@pytest.fixture
async def api() -> AsyncIterator[FakeKubernetesApi]:
    server = FakeKubernetesApi()
    await server.start()
    yield server
    await server.stop()


async def test_a_list_and_every_change(api: FakeKubernetesApi, tmp_path: Path) -> None:
    await api.put(service_slice("web", ONE, TWO), service_slice("other", endpoint("foreign", "10.9.0.1")))
    async with followed(services_config(api, tmp_path, "web")) as source:
        await source.until(lambda: source.targets() == {1: False, 2: False})
        await api.put(service_slice("web", ONE, endpoint("two", "10.0.0.2", ready=False)))
        await source.until(lambda: source.targets() == {1: False, 2: True})
        await api.put(service_slice("web", ONE))
        await source.until(lambda: source.targets() == {1: False})
        await api.put(service_slice("web", endpoint("one", "10.0.0.1", terminating=True)))
        await source.until(lambda: source.targets() == {1: True})
        assert len(api.lists) == 1
        assert [stream.name for stream in source.streams] == ["web"]


async def test_both_families_of_a_pod_are_one_target(api: FakeKubernetesApi, tmp_path: Path) -> None:
    await api.put(service_slice("web", ONE), service_slice("web", endpoint("one", "fd00::1"), family="IPv6"))
    async with followed(services_config(api, tmp_path, "web")) as source:
        await source.until(source.targets)
        (target,) = source.streams[0].targets
        assert target.ips == (parse_ip("10.0.0.1"), parse_ip("fd00::1"))


async def test_a_list_of_many_pages(api: FakeKubernetesApi, tmp_path: Path) -> None:
    api.page_objects_max = 2
    for number in range(1, 8):
        await api.put(service_slice("web", endpoint(f"pod-{number}", f"10.0.0.{number}"), name=f"web-{number}"))
    async with followed(services_config(api, tmp_path, "web")) as source:
        await source.until(lambda: len(source.targets()) == 7)
        assert len(api.lists) == 4


async def test_a_list_whose_pages_expire_begins_again(api: FakeKubernetesApi, tmp_path: Path) -> None:
    api.page_objects_max = 1
    await api.put(service_slice("web", ONE, name="a"), service_slice("web", TWO, name="b"))
    api.fail_once("expired_page")
    async with followed(services_config(api, tmp_path, "web")) as source:
        await source.until(lambda: len(source.targets()) == 2)
        assert source.source.counters.losses == 0
        assert len(source.events) == 1


async def test_targets_that_leave_while_the_server_is_away_are_removed(api: FakeKubernetesApi, tmp_path: Path) -> None:
    await api.put(service_slice("web", ONE, TWO, name="a"), service_slice("web", THREE, name="b"))
    async with followed(services_config(api, tmp_path, "web")) as source:
        await source.until(lambda: len(source.targets()) == 3)
        await api.stop()
        await source.until(lambda: source.lost)
        assert source.lost.startswith("API server: cannot be reached: Connection refused; since 2")
        assert len(source.targets()) == 3
        await api.put(service_slice("web", ONE, name="a"))
        await api.delete(service_slice("web", name="b"))
        await api.start()
        await source.until(lambda: source.targets() == {1: False})
        assert not source.lost
        assert source.source.counters.sessions == 2
        assert source.source.counters.losses == 1


@pytest.mark.parametrize("fault", ["gone_event", "gone_status"])
async def test_a_forgotten_version_lists_again(api: FakeKubernetesApi, tmp_path: Path, fault: str) -> None:
    await api.put(service_slice("web", ONE, TWO))
    api.fail_once(fault)
    async with followed(services_config(api, tmp_path, "web")) as source:
        await source.until(lambda: len(api.lists) == 2 and api.watches)
        await api.put(service_slice("web", ONE))
        await source.until(lambda: source.targets() == {1: False})
        assert source.source.counters.losses == 0
        assert not any("lost" in type(event).__name__.lower() for event in source.events)


async def test_a_watch_goes_on_at_the_version_of_the_last_bookmark(api: FakeKubernetesApi, tmp_path: Path) -> None:
    await api.put(service_slice("web", ONE))
    config = with_times(services_config(api, tmp_path, "web"), watch_s=1.0)
    async with followed(config) as source:
        await source.until(lambda: api.watches)
        await api.bookmark()
        at = str(api.revision)
        await source.until(lambda: any(request.query.get("resourceVersion") == at for request in api.requests))
        api.compact()
        assert len(api.lists) == 1


@pytest.mark.parametrize("fault", ["cut", "cut_in_line", "endless_line", "unknown_event"])
async def test_a_watch_that_breaks_loses_no_change(api: FakeKubernetesApi, tmp_path: Path, fault: str) -> None:
    await api.put(service_slice("web", ONE))
    async with followed(services_config(api, tmp_path, "web")) as source:
        await source.until(lambda: api.watches and source.targets())
        api.fail_once(fault)
        await api.put(service_slice("web", ONE, TWO))
        await source.until(lambda: source.targets() == {1: False, 2: False})
        await source.until(lambda: not source.lost)


@pytest.mark.parametrize("fault", ["unavailable", "garbage", "wrong_list", "not_an_object"])
async def test_an_answer_of_another_form_changes_nothing(api: FakeKubernetesApi, tmp_path: Path, fault: str) -> None:
    await api.put(service_slice("web", ONE, TWO))
    async with followed(services_config(api, tmp_path, "web")) as source:
        await source.until(source.targets)
        api.fail(fault)
        source.source.reload()
        await source.until(lambda: source.lost)
        assert source.targets() == {1: False, 2: False}
        api.heal()
        await source.until(lambda: not source.lost)
        assert source.targets() == {1: False, 2: False}


async def test_a_server_that_ends_every_watch_is_not_asked_without_pause(
    api: FakeKubernetesApi, tmp_path: Path
) -> None:
    await api.put(service_slice("web", ONE))
    api.fail("end_at_once")
    async with followed(services_config(api, tmp_path, "web")) as source:
        await source.until(source.targets)
        before = len(api.requests)
        await asyncio.sleep(1.0)
        assert len(api.requests) - before < 20  # the longest wait is a tenth of a second here


async def test_a_slow_server_is_lost_and_found(api: FakeKubernetesApi, tmp_path: Path) -> None:
    await api.put(service_slice("web", ONE))
    config = with_times(services_config(api, tmp_path, "web"), page_s=0.5)
    api.fail("slow")
    async with followed(config) as source:
        await source.until(lambda: source.lost)
        assert "no answer in time" in source.lost
        api.heal()
        api.go_on.set()
        await source.until(lambda: source.targets() == {1: False})


async def test_a_silent_watch_ends(api: FakeKubernetesApi, tmp_path: Path) -> None:
    await api.put(service_slice("web", ONE))
    config = with_times(services_config(api, tmp_path, "web"), watch_s=0.2, late_s=0.3)
    async with followed(config) as source:
        await source.until(source.targets)
        api.fail("slow")
        await api.cut()
        await source.until(lambda: "no answer in time" in source.lost)
        api.heal()
        api.go_on.set()
        await source.until(lambda: not source.lost)


async def test_a_token_that_was_renewed_is_read_again(api: FakeKubernetesApi, tmp_path: Path) -> None:
    await api.put(service_slice("web", ONE))
    (tmp_path / "token").write_text("old")
    api.token = "old"
    async with followed(with_times(services_config(api, tmp_path, "web"), watch_s=1.0)) as source:
        await source.until(lambda: api.watches and source.targets())
        api.token = "new"
        await source.until(lambda: "401" in source.lost)
        assert str(tmp_path) in source.lost
        (tmp_path / "token").write_text("new\n")
        await source.until(lambda: not source.lost)
        assert source.targets() == {1: False}


async def test_the_server_has_to_have_a_certificate_of_the_authority(tmp_path: Path) -> None:
    authority, other = Authority(), Authority("another authority")
    chain, key = authority.issue(dns=("localhost",)).write(tmp_path)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(chain, key)
    api = FakeKubernetesApi(tls=tls, token="secret")
    await api.start()
    await api.put(service_slice("web", ONE))
    account = tmp_path / "account"
    account.mkdir()
    (account / "token").write_text("secret")
    (account / "ca.crt").write_bytes(other.root)
    async with followed(services_config(api, account, "web")) as source:
        await source.until(lambda: "certificate verify failed" in source.lost)
        assert not api.requests
        (account / "ca.crt").write_bytes(authority.root)
        await source.until(lambda: source.targets() == {1: False})
        assert not source.lost
    await api.stop()


async def test_a_token_that_is_no_line_of_text_is_not_shown(
    api: FakeKubernetesApi, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "token").write_bytes(b"secret\r\nX-Other: 1")
    async with followed(services_config(api, tmp_path, "web")) as source:
        await source.until(lambda: source.lost)
        assert "the token is not a line of text" in source.lost
        assert "secret" not in source.lost + "".join(str(record.__dict__) for record in caplog.records)


@pytest.mark.parametrize("spoil", ["token", "ca.crt"])
async def test_files_of_the_account_that_cannot_be_used_are_named(
    api: FakeKubernetesApi, tmp_path: Path, spoil: str
) -> None:
    (tmp_path / spoil).write_bytes(b"\xff\xfe")
    await api.put(service_slice("web", ONE))
    async with followed(services_config(api, tmp_path, "web")) as source:
        await source.until(lambda: source.lost)
        assert "cannot be" in source.lost
        (tmp_path / spoil).unlink()
        await source.until(lambda: source.targets() == {1: False})


async def test_a_refusal_names_the_missing_rule(api: FakeKubernetesApi, tmp_path: Path) -> None:
    api.forbidden = True
    async with followed(services_config(api, tmp_path, "web")) as source:
        await source.until(lambda: source.lost)
        for words in ("HTTP 403", "Role", "list", "watch", "endpointslices", "discovery.k8s.io", "namespace default"):
            assert words in source.lost
        assert "cannot list resource" in source.lost


async def test_a_kind_that_is_not_installed_is_named(api: FakeKubernetesApi, tmp_path: Path) -> None:
    api.kinds.clear()
    async with followed(services_config(api, tmp_path, "web")) as source:
        await source.until(lambda: source.lost)
        assert "endpointslices.discovery.k8s.io/v1 is not installed" in source.lost


async def test_the_loss_of_all_targets_waits(
    api: FakeKubernetesApi, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await api.put(service_slice("web", ONE, TWO))
    async with followed(services_config(api, tmp_path, "web", settle_s=1.5)) as source:
        await source.until(lambda: len(source.targets()) == 2)
        await api.delete(service_slice("web"))
        await source.until(lambda: source.source.counters.waiting == 2)
        said = [record.message for record in caplog.records]
        assert said.count("a stream loses all its targets at once: they stay for kubernetes.settle_time") == 1
        assert source.targets() == {1: False, 2: False}
        await source.until(lambda: source.targets() == {})
        assert source.source.counters.waiting == 0


async def test_a_server_that_comes_back_empty_is_believed_after_the_wait(
    api: FakeKubernetesApi, tmp_path: Path
) -> None:
    await api.put(service_slice("web", ONE, TWO))
    async with followed(services_config(api, tmp_path, "web", settle_s=1.5)) as source:
        await source.until(lambda: len(source.targets()) == 2)
        await api.stop()
        await source.until(lambda: source.lost)
        await asyncio.sleep(2.0)  # no time that counts: nothing was said
        assert source.targets() == {1: False, 2: False}
        await api.delete(service_slice("web"))
        api.fail("unavailable")
        await api.start()
        await source.until(lambda: "HTTP 503" in source.lost)
        assert source.targets() == {1: False, 2: False}
        api.heal()
        await source.until(lambda: source.source.counters.waiting == 2)
        assert source.targets() == {1: False, 2: False}
        await source.until(lambda: source.targets() == {})


async def test_targets_keep_identifiers_over_a_restart(api: FakeKubernetesApi, tmp_path: Path) -> None:
    memory = MemoryKept()
    await api.put(service_slice("web", ONE, TWO))
    async with followed(services_config(api, tmp_path, "web"), memory) as source:
        await source.until(lambda: len(source.targets()) == 2)
    zero = endpoint("zero", "10.0.0.0")
    await api.put(service_slice("web", zero, ONE, TWO))
    async with followed(services_config(api, tmp_path, "web"), memory) as source:
        await source.until(lambda: len(source.targets()) == 3)
        ips = {target.identifier: target.ips for target in source.streams[0].targets}
        assert ips == {number: (parse_ip(f"10.0.0.{number % 3}"),) for number in (1, 2, 3)}


async def test_what_could_not_be_kept_is_kept_later_and_a_list_without_news_writes_nothing(
    api: FakeKubernetesApi, tmp_path: Path
) -> None:
    memory = MemoryKept(full=True)
    await api.put(service_slice("web", ONE))
    async with followed(services_config(api, tmp_path, "web"), memory) as source:
        await source.until(source.targets)
        memory.full = False
        await api.put(service_slice("web", ONE))
        await source.until(lambda: memory.saves == 1)
        before = source.source.counters.lists["event"]
        await api.put(service_slice("web", ONE))
        await source.until(lambda: source.source.counters.lists["event"] > before)
        await api.put(service_slice("web", ONE, TWO))
        await source.until(lambda: len(source.targets()) == 2)
        assert memory.saves == 2


async def test_the_client_library_does_not_log_requests(
    api: FakeKubernetesApi, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await api.put(service_slice("web", ONE))
    with caplog.at_level(logging.INFO):
        async with followed(services_config(api, tmp_path, "web")) as source:
            await source.until(source.targets)
    assert {record.name for record in caplog.records} == {"lbguard.sources.kubernetes"}


async def test_a_start_without_the_server_serves_the_list_of_the_earlier_run(
    api: FakeKubernetesApi, tmp_path: Path
) -> None:
    memory = MemoryKept()
    await api.put(service_slice("web", ONE, TWO))
    config = services_config(api, tmp_path, "web")
    async with followed(config, memory) as source:
        await source.until(lambda: len(source.targets()) == 2)
    await api.stop()
    async with followed(config, memory) as source:
        await source.until(lambda: source.lost)
        assert source.targets() == {1: False, 2: False}
        await api.put(service_slice("web", TWO))
        await api.start()
        await source.until(lambda: source.targets() == {2: False})


async def test_a_bad_object_keeps_its_last_good_list(
    api: FakeKubernetesApi, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await api.put(service_slice("web", ONE, TWO, name="a"), service_slice("web", THREE, name="b"))
    async with followed(services_config(api, tmp_path, "web")) as source:
        await source.until(lambda: len(source.targets()) == 3)
        with caplog.at_level(logging.WARNING):
            await api.put({**service_slice("web", name="a"), "endpoints": "none"})
            await source.until(lambda: source.source.counters.skipped["bad_object"] == 1)
        await api.put(service_slice("web", endpoint("three", "10.0.0.3", ready=False), name="b"))
        await source.until(lambda: source.targets() == {1: False, 2: False, 3: True})
        said = [getattr(record, "fields", {}).get("what", "") for record in caplog.records]
        assert any("object 'a'" in what for what in said)
