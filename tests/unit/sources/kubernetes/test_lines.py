import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbguard.sources.kubernetes.lines import LineSplitter, LineTooLongError


@given(lines=st.lists(st.binary(max_size=9).map(lambda text: text.replace(b"\n", b"")), max_size=9), data=st.data())
def test_lines_arrive_whole_however_they_are_cut(lines: list[bytes], data: st.DataObject) -> None:
    content = b"".join(line + b"\n" for line in lines)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(content)), max_size=9)))
    splitter = LineSplitter()
    found = []
    for first, last in zip([0, *cuts], [*cuts, len(content)], strict=True):
        found += splitter.feed(content[first:last])
    assert found == [line for line in lines if line.strip()]
    assert not splitter.cut


def test_a_character_that_only_text_libraries_take_for_a_line_end_is_none() -> None:
    line = '{"annotation": "a\u0085b\u2028c\x0b"}'.encode()
    assert LineSplitter().feed(line + b"\n") == [line]


def test_a_line_that_does_not_end() -> None:
    splitter = LineSplitter(bytes_max=10)
    assert splitter.feed(b"12345\n67890") == [b"12345"]
    assert splitter.cut
    with pytest.raises(LineTooLongError):
        splitter.feed(b"123456")
    with pytest.raises(LineTooLongError):
        LineSplitter(bytes_max=10).feed(b"x" * 11 + b"\n")
