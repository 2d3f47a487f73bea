import json
import typing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbguard.core import effects as fx
from lbguard.core.addr import parse_ip
from lbguard.core.events import Event, LinkSeen, NeighborSeen, VerdictReported
from lbguard.core.model import NeighborState, TargetSubject, Verdict, VerdictState
from lbguard.recording.codec import RECORDED, CodecError, Decoder, decode_item, encode, encode_item, schema
from tests.effort import examples
from tests.unit.recording.values import older_schema, values


def through_text(row: object) -> list[object]:
    result = json.loads(json.dumps(row))
    assert isinstance(result, list)
    return result


def test_every_event_has_a_row() -> None:
    assert set(typing.get_args(Event)) <= set(RECORDED)


@pytest.mark.parametrize("kind", RECORDED, ids=lambda kind: kind.__name__)
def test_every_recorded_value_comes_back_the_same(kind: type) -> None:
    @examples(60)
    @given(values(kind))
    def check(value: object) -> None:
        back = Decoder(schema()).decode(through_text(encode(value)))
        assert back == value
        assert type(back) is kind

    check()


@pytest.mark.parametrize("kind", typing.get_args(fx.Effect), ids=lambda kind: kind.__name__)
def test_every_effect_comes_back_the_same(kind: type) -> None:
    @examples(40)
    @given(values(kind))
    def check(value: object) -> None:
        assert decode_item(kind, through_text(encode_item(kind, value))) == value

    check()


def test_rows_look_as_documented() -> None:
    event = NeighborSeen(ifindex=3, ip=parse_ip("172.16.1.10"), state=NeighborState.STALE, mac=bytes(range(6)))
    assert encode(event) == ["NeighborSeen", 3, "ac10010a", 4, "000102030405", False]
    verdict = Verdict(
        subject=TargetSubject(ip=parse_ip("10.0.0.1")), state=VerdictState.DOWN, generation=1, sequence=2, lease_s=5.0
    )
    assert through_text(encode(VerdictReported(reporter="proxy", verdict=verdict))) == [
        "VerdictReported",
        "proxy",
        [["TargetSubject", "0a000001"], "down", 1, 2, 5.0, 0.0, [], ""],
        0,
    ]


def test_a_field_that_was_added_since_gets_its_default() -> None:
    decoder = Decoder(older_schema("LinkSeen", ["ifindex", "name", "up", "mac"]))
    assert decoder.decode(["LinkSeen", 1, "eth0", True, "0a"]) == LinkSeen(
        ifindex=1, name="eth0", up=True, mac=b"\x0a", admin_up=True
    )


def test_fields_are_found_by_name() -> None:
    decoder = Decoder(older_schema("LinkSeen", ["name", "ifindex", "mac", "up"]))
    assert decoder.decode(["LinkSeen", "eth0", 1, "0a", False]) == LinkSeen(
        ifindex=1, name="eth0", up=False, mac=b"\x0a"
    )


@pytest.mark.parametrize(
    ("name", "fields", "words"),
    [
        ("LinkSeen", ["ifindex", "name", "up", "mac", "admin_up", "speed"], "speed"),
        ("LinkSeen", ["ifindex", "up", "mac"], "name"),
        ("LinkBent", ["ifindex"], "LinkBent"),
        ("TargetSpec", ["ips", "identifier"], "order"),
    ],
)
def test_what_this_version_cannot_know_is_named(name: str, fields: list[str], words: str) -> None:
    with pytest.raises(CodecError, match=words):
        Decoder(older_schema(name, fields))


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner, max_size=4),
        max_leaves=12,
    )
)
def test_a_wrong_row_is_an_error_with_a_name(row: object) -> None:
    decoder = Decoder(schema())
    for name in ("", "LinkSeen", "KernelSnapshot", "VerdictReported", "Decision"):
        try:
            decoder.decode([name, row])
        except CodecError:
            continue
