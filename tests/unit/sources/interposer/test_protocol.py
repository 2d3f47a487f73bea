import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbguard.sources.flavour import Flavour
from lbguard.sources.interposer.protocol import (
    Call,
    CallError,
    Command,
    ProtocolError,
    Request,
    Verdict,
    format_answer,
    parse_call,
    parse_missed,
    parse_request,
)

ID = "0123abcd-4567-89ab-cdef-0123456789ab"


def test_the_calls_of_meridio() -> None:
    """Argument for argument as its load balancer makes them (stream "stream-a", identifier 4, offset 5000)."""
    calls = {
        "init --ownfw=0 --shm=tshm-stream-a --M=10000 --N=100": Call(
            command=Command.INIT, stream="stream-a", max_targets=100
        ),
        "activate --index=3 --shm=tshm-stream-a 5004": Call(
            command=Command.ACTIVATE, stream="stream-a", identifier=4, mark=5004
        ),
        "deactivate --index=3 --shm=tshm-stream-a": Call(command=Command.DEACTIVATE, stream="stream-a", identifier=4),
        "delete --shm=tshm-stream-a": Call(command=Command.DELETE, stream="stream-a"),
    }
    for text, call in calls.items():
        assert parse_call(text.split()) == call
        assert parse_request(f"1 {ID} {text}".encode()) == Request(id=ID, call=call)
        assert parse_missed(f"1 {text}".encode()) == call


def test_order_does_not_matter() -> None:
    assert parse_call(["activate", "5001", "--shm=tshm-a", "--index=0"]) == Call(
        command=Command.ACTIVATE, stream="a", identifier=1, mark=5001
    )


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"1",
        b"1 " + ID.encode(),
        b"2 " + ID.encode() + b" delete --shm=tshm-a",
        b"1 ../../etc/passwd delete --shm=tshm-a",
        b"1 " + ID.upper().encode() + b" delete --shm=tshm-a",
        b"1 " + ID[:-1].encode() + b" delete --shm=tshm-a",
        b"1 " + ID.encode() + b"/ delete --shm=tshm-a",
        b"1  " + ID.encode() + b" delete --shm=tshm-a",
        b"1 " + ID.encode() + b" delete --shm=tshm-\xc3\xa4",
        b"1 " + ID.encode() + b" delete --shm=tshm-" + b"a" * 500,
        b"1 delete --shm=tshm-a",
        b"\x00" * 100,
    ],
)
def test_no_request(line: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse_request(line)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("flowlb --queue=0:3", "command"),
        ("activate --index=3 --shm=tshm-a", "options"),
        ("activate --index=3 --shm=tshm-a 5004 5005", "options"),
        ("activate --index=3 --index=4 --shm=tshm-a 5004", "options"),
        ("activate --index=3 --shm=tshm-a --force=1 5004", "options"),
        ("activate --index 3 --shm=tshm-a 5004", "options"),
        ("activate -index=3 --shm=tshm-a 5004", "options"),
        ("activate --shm=tshm-a 5004", "options"),
        ("deactivate --index=3 --shm=tshm-a 5004", "options"),
        ("delete", "options"),
        ("activate --index=-1 --shm=tshm-a 5004", "number"),
        ("activate --index=03 --shm=tshm-a 5004", "number"),
        ("activate --index= --shm=tshm-a 5004", "number"),
        ("activate --index=1000000 --shm=tshm-a 5004", "number"),
        ("activate --index=3 --shm=tshm-a 4294967296", "number"),
        ("activate --index=3 --shm=tshm-a 99999999999", "number"),
        ("activate --index=3 --shm=tshm-a 0x10", "number"),
        ("init --ownfw=0 --shm=tshm-a --M=10000 --N=0", "number"),
        ("delete --shm=nfqlb", "name"),
        ("delete --shm=tshm-", "name"),
        ("delete --shm=tshm-.", "name"),
        ("delete --shm=tshm-..", "name"),
        ("delete --shm=tshm-a/../b", "name"),
        ("delete --shm=/tshm-a", "name"),
        ("delete --shm=tshm-" + "a" * 64, "name"),
    ],
)
def test_no_call_of_meridio(text: str, reason: str) -> None:
    with pytest.raises(CallError) as caught:
        parse_request(f"1 {ID} {text}".encode(), Flavour.MERIDIO)
    assert str(caught.value) == reason
    assert caught.value.request_id == ID


@given(st.binary(max_size=600))
def test_nothing_else_is_raised_whatever_comes(line: bytes) -> None:
    for parse in (parse_request, parse_missed):
        try:
            parse(line)
        except (ProtocolError, CallError):
            continue


@given(st.lists(st.sampled_from(["activate", "--index=1", "--shm=tshm-a", "--shm=tshm-", "7", "--", "=", ""])))
def test_near_misses(words: list[str]) -> None:
    try:
        call = parse_missed(" ".join(["1", *words]).encode())
    except (ProtocolError, CallError):
        return
    assert call == Call(command=Command.ACTIVATE, stream="a", identifier=2, mark=7)


def test_answers() -> None:
    assert format_answer(Verdict.DONE) == b"1 done\n"
    assert format_answer(Verdict.PASS) == b"1 pass\n"
    assert format_answer(Verdict.FAIL, "no route\nin\ttable ä 5") == b"1 fail no route in table 5\n"
    assert len(format_answer(Verdict.FAIL, "x" * 1000)) <= 512


def test_calls_of_meridio_2_have_plain_names_and_identifiers_from_0() -> None:
    for wanted in (None, Flavour.MERIDIO_2):
        call = parse_call(["activate", "--index=0", "--shm=web", "5000"], wanted)
        assert call == Call(command=Command.ACTIVATE, stream="web", flavour=Flavour.MERIDIO_2, identifier=0, mark=5000)
    assert parse_call(["delete", "--shm=web"]).flavour.memory("web") == "web"


def test_a_prefix_is_part_of_the_name_where_the_setting_says_so() -> None:
    words = ["deactivate", "--index=3", "--shm=tshm-web"]
    found = parse_call(words)
    assert (found.flavour, found.stream, found.identifier) == (Flavour.MERIDIO, "web", 4)
    told = parse_call(words, Flavour.MERIDIO_2)
    assert (told.flavour, told.stream, told.identifier) == (Flavour.MERIDIO_2, "tshm-web", 3)
    assert told.flavour.memory(told.stream) == "tshm-web"


@pytest.mark.parametrize("name", ["", ".", "..", "a/../b", "/a", "a" * 64, "-a"])
def test_names_that_no_stream_of_meridio_2_can_have(name: str) -> None:
    with pytest.raises(CallError, match="name"):
        parse_call(["delete", f"--shm={name}"], Flavour.MERIDIO_2)
