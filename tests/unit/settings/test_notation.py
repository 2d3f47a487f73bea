import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbguard.core.config import Amount
from lbguard.settings.notation import (
    ListenAddress,
    format_amount,
    format_duration,
    parse_amount,
    parse_duration,
    parse_listen,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("500ms", 0.5),
        ("100ms", 0.1),
        ("3s", 3.0),
        ("1.5s", 1.5),
        ("2m", 120.0),
        ("1h", 3600.0),
        ("250us", 0.00025),
        (" 3 s ", 3.0),
        ("7", 7.0),
        ("0", 0.0),
        (4, 4.0),
        (0.25, 0.25),
    ],
)
def test_reads_what_people_write(text: object, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("wrong", ["", "s", "3 parsecs", "-1s", "1e3", "nan", "3s4", None, True, -1, float("nan"), [3]])
def test_refuses_other_durations(wrong: object) -> None:
    with pytest.raises(ValueError, match="duration"):
        parse_duration(wrong)


@given(st.integers(min_value=0, max_value=10**11))
def test_what_is_written_reads_back_the_same(microseconds: int) -> None:
    seconds = microseconds / 10**6
    assert parse_duration(format_duration(seconds)) == pytest.approx(seconds, abs=1e-6, rel=1e-9)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (0.1, "100ms"), (0.0005, "0.5ms"), (3, "3s"), (2.5, "2.5s"), (90, "90s"), (120, "2m")],
)
def test_writes_the_unit_a_person_would_choose(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [(":9464", "", 9464), ("127.0.0.1:80", "127.0.0.1", 80), ("[::1]:80", "::1", 80), ("[::]:0", "::", 0)],
)
def test_reads_both_families(text: str, host: str, port: int) -> None:
    assert parse_listen(text) == ListenAddress(host, port)
    assert str(ListenAddress(host, port)) == text


def test_empty_is_off() -> None:
    assert parse_listen(" ") is None


@pytest.mark.parametrize("wrong", ["9464", "::1:80", ":port", ":65536", "localhost:80", "[::1]", ":-1", ":²"])
def test_refuses_other_listen_addresses(wrong: str) -> None:
    with pytest.raises(ValueError):
        parse_listen(wrong)


@pytest.mark.parametrize(
    ("value", "amount"),
    [
        (2, Amount(count=2)),
        ("0", Amount()),
        (" 3 ", Amount(count=3)),
        ("50%", Amount(share=0.5)),
        ("12.5%", Amount(share=0.125)),
        ("100%", Amount(share=1.0)),
    ],
)
def test_amounts(value: object, amount: Amount) -> None:
    assert parse_amount(value) == amount
    assert parse_amount(format_amount(amount)) == amount


@pytest.mark.parametrize("value", ["", "-1", "1.5", "101%", "many", "%", True, None, 0.5, "1e3", "٣"])
def test_what_is_no_amount_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"neither|more than"):
        parse_amount(value)
