import pytest

from lbguard.settings.listen import ListenAddress, parse_listen


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
def test_refuses_the_rest(wrong: str) -> None:
    with pytest.raises(ValueError):
        parse_listen(wrong)
