import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from lbguard.api.gen.v1 import lbguard_pb2 as pb
from lbguard.api.gen.v1 import lbguard_pb2_grpc as pb_grpc
from lbguard.api.server import ApiError
from lbguard.api.verdicts.listener import ListenerOptions, VerdictListener
from lbguard.api.verdicts.policy import Policy
from lbguard.api.verdicts.server import VerdictIntake
from lbguard.rpc.channels import REPORTER_KEY
from lbguard.rpc.security import CertificateFiles
from lbguard.settings.notation import ListenAddress
from lbguard.settings.peers import parse_rule
from lbguard.settings.verdicts import VerdictLimits
from tests.unit.api.certificates import Authority, Issued
from tests.unit.api.core_stand_in import Core, settled, subject, verdict

LIMIT_S = 60.0
SERVER_NAME = "lb.test"
PROXY = "spiffe://example.org/ns/red/proxy"


class Served:
    """A listener on loopback, its certificates, and clients of it."""

    def __init__(
        self, directory: Path, host: str, options: ListenerOptions, rules: tuple[str, ...], limits: VerdictLimits
    ) -> None:
        self.directory = directory
        self.core = Core()
        self.authority = Authority()
        self.host = host
        ca = directory / "ca.crt"
        ca.write_bytes(self.authority.root)
        chain, key = self.authority.issue(dns=(SERVER_NAME,)).write(directory)
        self.intake = VerdictIntake(self.core.submit, Policy([parse_rule(rule) for rule in rules]), limits)
        files = CertificateFiles(chain, key, ca)
        self.listener = VerdictListener(ListenAddress(host, 0), self.intake, files, options)

    @asynccontextmanager
    async def channel(
        self, client: Issued | None, *, roots: bytes | None = None, host: str | None = None
    ) -> AsyncIterator[grpc.aio.Channel]:
        """Connect with a certificate, or (None) with none."""
        credentials = grpc.ssl_channel_credentials(
            roots or self.authority.root,
            client.key if client else None,
            client.chain if client else None,
        )
        host = host or self.host
        where = f"[{host}]:{self.listener.port}" if ":" in host else f"{host}:{self.listener.port}"
        options = [
            ("grpc.ssl_target_name_override", SERVER_NAME),
            # Channels of the same options share a connection, and with it the certificate.
            ("grpc.use_local_subchannel_pool", 1),
        ]
        async with grpc.aio.secure_channel(where, credentials, options=options) as channel:
            yield channel

    async def once(self, client: Issued | None, *verdicts: pb.Verdict, **how: Any) -> pb.ReportOnceResponse:
        """Report a batch over a connection of its own."""
        async with self.channel(client, **how) as channel:
            stub: pb_grpc.VerdictServiceAsyncStub = pb_grpc.VerdictServiceStub(channel)
            return await stub.ReportOnce(pb.ReportOnceRequest(verdicts=verdicts), timeout=LIMIT_S)

    async def refusal(self, client: Issued | None, *verdicts: pb.Verdict, **how: Any) -> tuple[grpc.StatusCode, str]:
        """Report a batch that is refused."""
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.once(client, *verdicts, **how)
        return caught.value.code(), caught.value.details() or ""


@asynccontextmanager
async def served(
    directory: Path,
    *rules: str,
    host: str = "127.0.0.1",
    options: ListenerOptions = ListenerOptions(),  # noqa: B008 (a frozen value)
    limits: VerdictLimits = VerdictLimits(),  # noqa: B008 (a frozen value)
) -> AsyncIterator[Served]:
    service = Served(directory, host, options, rules, limits)
    await service.listener.start()
    try:
        async with asyncio.timeout(LIMIT_S):
            yield service
    finally:
        await service.listener.stop(0)
        await settled()


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.005)


RULE = f"{PROXY}=172.16.0.0/16"


async def test_a_proxy_with_a_certificate_of_ours_reports(tmp_path: Path) -> None:
    async with served(tmp_path, RULE) as service:
        response = await service.once(service.authority.issue(uris=(PROXY,)), verdict(1))
        assert response.accepted == 1
        assert service.core.taken[0][1].subject == subject(1)
        assert service.core.reporters == [f"{PROXY}@127.0.0.1"]


async def test_every_address_of_both_families_is_listened_to(tmp_path: Path) -> None:
    async with served(tmp_path, RULE, host="") as service:
        proxy = service.authority.issue(uris=(PROXY,))
        for host in ("127.0.0.1", "::1"):
            await service.once(proxy, verdict(), host=host)
        assert service.core.reporters == [f"{PROXY}@127.0.0.1", f"{PROXY}@::1"]


async def test_an_ipv6_address_is_listened_to(tmp_path: Path) -> None:
    async with served(tmp_path, "dns:proxy.test=172.16.0.0/16", host="::1") as service:
        await service.once(service.authority.issue(dns=("proxy.test",)), verdict())
        assert service.core.reporters == ["dns:proxy.test@::1"]


async def test_a_name_tells_proxies_of_one_identity_apart(tmp_path: Path) -> None:
    async with served(tmp_path, RULE) as service, service.channel(service.authority.issue(uris=(PROXY,))) as channel:
        report: Any = pb_grpc.VerdictServiceStub(channel).Report
        calls = [report(metadata=((REPORTER_KEY, name),)) for name in ("node-1", "node-2")]
        for call in calls:
            await call.write(pb.ReportRequest(ticket=1, verdicts=[verdict()]))
            assert (await call.read()).accepted == 1
        assert service.core.reporters == [f"{PROXY}#node-1", f"{PROXY}#node-2"]
        assert service.intake.streams == 2
        for call in calls:
            call.cancel()


async def test_who_is_not_vouched_for_gets_no_connection(tmp_path: Path) -> None:
    async with served(tmp_path, RULE) as service:
        stranger = Authority("another").issue(uris=(PROXY,))
        expired = service.authority.issue(uris=(PROXY,), days=-1)
        for client in (stranger, expired, None):
            code, _ = await service.refusal(client, verdict())
            assert code is grpc.StatusCode.UNAVAILABLE
        assert service.core.taken == []
        assert service.intake.counters.denied == {}
        assert (await service.once(service.authority.issue(uris=(PROXY,)), verdict())).accepted == 1


async def test_plaintext_gets_no_connection(tmp_path: Path) -> None:
    async with served(tmp_path, RULE) as service:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{service.listener.port}") as channel:
            stub: pb_grpc.VerdictServiceAsyncStub = pb_grpc.VerdictServiceStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.ReportOnce(pb.ReportOnceRequest(), timeout=LIMIT_S)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_client_refuses_a_server_of_another_authority(tmp_path: Path) -> None:
    async with served(tmp_path, RULE) as service:
        code, _ = await service.refusal(service.authority.issue(uris=(PROXY,)), roots=Authority("another").root)
        assert code is grpc.StatusCode.UNAVAILABLE


async def test_the_policy_decides_by_the_names_in_the_certificate(tmp_path: Path) -> None:
    async with served(tmp_path, RULE, "dns:*.proxy.test=172.16.0.0/30") as service:
        issue = service.authority.issue
        cases = (
            (issue(), "the certificate has no usable name"),
            (issue(uris=("https://example.org/ns/red/proxy",)), "the certificate has no usable name"),
            (issue(uris=(PROXY, "spiffe://example.org/other")), "the certificate has no usable name"),
            (issue(uris=("spiffe://example.org/ns/blue/proxy",)), "lets spiffe://example.org/ns/blue/proxy report"),
            (issue(dns=("unix",)), "lets dns:unix report"),
            # Cut at the zero byte, as gRPC has them, these would be names that rules are for.
            (issue(dns=("a.proxy.test\0.evil.test",)), "the certificate has no usable name"),
            (issue(uris=(f"{PROXY}\0/x",)), "the certificate has no usable name"),
        )
        for client, words in cases:
            code, text = await service.refusal(client, verdict())
            assert code is grpc.StatusCode.PERMISSION_DENIED
            assert words in text
        code, text = await service.refusal(issue(dns=("a.proxy.test",)), verdict(3), verdict(4))
        assert code is grpc.StatusCode.PERMISSION_DENIED
        assert text.startswith("verdicts[1].subject")
        assert service.intake.counters.denied == {"no_identity": 5, "peer_not_allowed": 2, "subnet_not_allowed": 1}
        assert service.core.taken == []


async def test_nobody_on_tcp_may_report_without_a_rule(tmp_path: Path) -> None:
    async with served(tmp_path) as service:
        code, _ = await service.refusal(service.authority.issue(uris=(PROXY,)))
        assert code is grpc.StatusCode.PERMISSION_DENIED


async def test_certificates_of_both_sides_rotate_while_it_runs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with served(tmp_path, RULE) as service:
        old = service.authority
        old_proxy = old.issue(uris=(PROXY,))
        async with service.channel(old_proxy) as open_channel:
            stub: pb_grpc.VerdictServiceAsyncStub = pb_grpc.VerdictServiceStub(open_channel)
            await stub.ReportOnce(pb.ReportOnceRequest())
            # Another authority takes over, as one does: first it is trusted beside the old one, then alone.
            new = Authority("the next one")
            new_proxy = new.issue(uris=(PROXY,))
            assert (await service.refusal(new_proxy))[0] is grpc.StatusCode.UNAVAILABLE
            (tmp_path / "ca.crt").write_bytes(old.root + new.root)
            for proxy in (old_proxy, new_proxy):
                await service.once(proxy)
            new.issue(dns=(SERVER_NAME,)).write(tmp_path)
            assert (await service.refusal(new_proxy))[0] is grpc.StatusCode.UNAVAILABLE  # it trusts the old one only
            for proxy in (old_proxy, new_proxy):
                await service.once(proxy, roots=new.root)
            (tmp_path / "ca.crt").write_bytes(new.root)
            await service.once(new_proxy, roots=new.root)
            assert (await service.refusal(old_proxy, roots=new.root))[0] is grpc.StatusCode.UNAVAILABLE
            # What was open stays open, until its age ends it.
            await stub.ReportOnce(pb.ReportOnceRequest())
    assert [record.getMessage() for record in caplog.records].count("certificates renewed") == 3


async def test_a_half_written_renewal_changes_nothing_and_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with served(tmp_path, RULE) as service:
        proxy = service.authority.issue(uris=(PROXY,))
        renewed = service.authority.issue(dns=(SERVER_NAME,))
        (tmp_path / "tls.crt").write_bytes(renewed.chain)
        for _ in range(3):
            await service.once(proxy)
        warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
        assert [record.getMessage() for record in warnings] == ["certificates not renewed; the last good ones stay"]
        (tmp_path / "tls.key").write_bytes(renewed.key)
        await service.once(proxy)


async def test_an_old_connection_has_to_show_its_certificate_anew(tmp_path: Path) -> None:
    options = ListenerOptions(connection_age_s=1.0)
    async with served(tmp_path, RULE, options=options) as service:
        async with service.channel(service.authority.issue(uris=(PROXY,))) as channel:
            report: Any = pb_grpc.VerdictServiceStub(channel).Report
            call = report()
            await call.write(pb.ReportRequest(ticket=1))
            await call.read()
            with contextlib.suppress(grpc.aio.AioRpcError):
                await call.read()
            assert await call.code() is grpc.StatusCode.UNAVAILABLE
        await until(lambda: service.intake.streams == 0)


async def test_the_health_service_follows(tmp_path: Path) -> None:
    serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
    async with served(tmp_path) as service, service.channel(service.authority.issue(dns=("k",))) as channel:
        stub = health_pb2_grpc.HealthStub(channel)

        async def ask(name: str) -> int:
            return int((await stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=LIMIT_S)).status)

        assert [await ask(name) for name in ("", "Liveness", "Readiness")] == [serving, serving, not_serving]
        await service.listener.set_ready(True)
        assert await ask("Readiness") == serving


@pytest.mark.parametrize("on", [False, True])
async def test_reflection_only_on_demand(tmp_path: Path, on: bool) -> None:
    options = ListenerOptions(reflection=on)
    async with (
        served(tmp_path, options=options) as service,
        service.channel(service.authority.issue(dns=("k",))) as channel,
    ):
        ask: Any = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo
        call = ask(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
        if not on:
            with pytest.raises(grpc.aio.AioRpcError):
                await call.read()
            assert await call.code() is grpc.StatusCode.UNIMPLEMENTED
            return
        names = {item.name for item in (await call.read()).list_services_response.service}
        assert {"lbguard.v1.VerdictService", "grpc.health.v1.Health"} <= names


async def test_what_stands_in_the_way_is_named(tmp_path: Path) -> None:
    async with served(tmp_path) as service:
        files = CertificateFiles(tmp_path / "tls.crt", tmp_path / "tls.key", tmp_path / "ca.crt")
        taken = ListenAddress("127.0.0.1", service.listener.port)
        second = VerdictListener(taken, service.intake, files, ListenerOptions())
        with pytest.raises(ApiError, match=rf"verdicts\.listen = 127\.0\.0\.1:{taken.port}: cannot listen"):
            await second.start()
        await second.stop()
        missing = CertificateFiles(tmp_path / "none", tmp_path / "tls.key", tmp_path / "ca.crt")
        third = VerdictListener(ListenAddress("127.0.0.1", 0), service.intake, missing, ListenerOptions())
        with pytest.raises(ApiError, match=r"verdicts\.listen = 127\.0\.0\.1:0: .*none.*No such file"):
            await third.start()
        await third.stop()


async def test_with_files_there_is_nothing_to_follow(tmp_path: Path) -> None:
    async with served(tmp_path) as service:
        await service.listener.run()


async def test_operators_commands_are_not_taken_over_tcp(tmp_path: Path) -> None:
    async with served(tmp_path, RULE) as service, service.channel(service.authority.issue(uris=(PROXY,))) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await pb_grpc.ControlServiceStub(channel).Override(pb.OverrideRequest(targets=["1"]), timeout=LIMIT_S)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
