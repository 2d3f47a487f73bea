"""A VIP that is an address of this machine is told when it becomes one, and when it is one no more."""

import logging

import pytest

from lbguard.core.addr import parse_prefix
from lbguard.core.model import StreamSpec
from lbguard.core.status import GuardStatus, StreamStatus
from lbguard.service.local_vips import LocalVips

A = StreamSpec(name="a", vips=(parse_prefix("20.0.0.1/32"), parse_prefix("2000::/64")))
B = StreamSpec(name="b", vips=(parse_prefix("20.0.0.2/32"),))


def status() -> GuardStatus:
    streams = (
        StreamStatus(
            name=spec.name,
            max_targets=100,
            identifier_offset=5000,
            available=True,
            availability_reason="ok",
            mass_failure=False,
            counts={},
            table_committed=True,
        )
        for spec in (A, B)
    )
    return GuardStatus(
        now=0.0,
        observe=False,
        in_sync=True,
        sync_reason="",
        source_ok=True,
        source_reason="",
        streams=tuple(streams),
        targets=(),
        links=(),
    )


def test_what_is_local_is_shown_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    watch = LocalVips(lambda: (A, B), lambda: ())
    local = [parse_prefix(text) for text in ("127.0.0.0/8", "fe80::1/128", "20.0.0.1/32", "2000::7/128")]
    watch.compare(())
    assert watch.add_to(status()) == status()
    watch.compare(local)
    watch.compare(local)
    assert [stream.local_vips for stream in watch.add_to(status()).streams] == [("20.0.0.1/32", "2000::/64"), ()]
    assert [record.message for record in caplog.records] == ["VIP is local: its packets reach no target"] * 2
    caplog.clear()
    watch.compare(local[:3])
    assert [stream.local_vips for stream in watch.add_to(status()).streams] == [("20.0.0.1/32",), ()]
    assert [record.message for record in caplog.records] == ["VIP is local no more"]
