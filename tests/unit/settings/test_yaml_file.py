"""Whatever bytes a file holds, it is read or refused with one error, within a bound of time and depth."""

import math
import os
import socket
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lbguard.settings.bounded_file import FileError, read_regular_file
from lbguard.settings.yaml_file import MAX_BYTES, MAX_DEPTH, MAX_VALUES, YamlError, parse_yaml

PLENTY_S = 30.0
"""On a busy machine; a parser whose time grows with the square of the input would need hours."""


def refusal(content: bytes | str, *, switches: Collection[str] | None = None) -> str:
    with pytest.raises(YamlError) as caught:
        parse_yaml(content if isinstance(content, bytes) else content.encode(), switches=switches)
    return str(caught.value)


def refusal_or_nothing(content: bytes) -> str:
    try:
        parse_yaml(content)
    except YamlError as error:
        return str(error)
    return ""


@given(st.binary(max_size=300) | st.text(alphabet="ab01:-[]{},&*!|>%#\"' \n\t?~<=.", max_size=60).map(str.encode))
def test_no_bytes_raise_anything_but_the_one_error(content: bytes) -> None:
    said = refusal_or_nothing(content)
    assert said.isprintable()
    assert len(said) < 500


words = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=6)
"""Without line breaks: the library writes some of them in a form that it does not read back."""

plain = st.none() | st.booleans() | st.integers(-(2**62), 2**62) | words
documents = st.recursive(
    plain | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=4),
    max_leaves=20,
)


@given(documents)
def test_what_the_library_writes_is_read_back(document: Any) -> None:
    class NoAliases(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    written = yaml.dump(document, Dumper=NoAliases, allow_unicode=True, encoding="utf-8")
    assert parse_yaml(written) == document


@pytest.mark.parametrize(
    ("content", "value"),
    [
        ("", None),
        ("# nothing\n", None),
        ("---\na: 1\n...\n", {"a": 1}),
        ("\ufeffa: 1", {"a": 1}),
        ("a: 1\r\nb:\r\n  - x\r\n", {"a": 1, "b": ["x"]}),
        ("a: [1, -5, +3, 0, 1_000, 0x1f, 0b11]", {"a": [1, -5, 3, 0, 1000, 31, 3]}),
        ("a: [1.5, .5, 1.0e+3, -.inf, 1e3]", {"a": [1.5, 0.5, 1000.0, -math.inf, "1e3"]}),
        ("a: [~, null, '', 'null']", {"a": [None, None, "", "null"]}),
        ("a: [yes, off, 'yes', y]", {"a": [True, False, "yes", "y"]}),
        ("a: ['010', '1:30', '2026-01-01', \"no\"]", {"a": ["010", "1:30", "2026-01-01", "no"]}),
        ("- fd00:0::10\n- 172.16.0.1/32\n- 00:11:22:33:44:55", ["fd00:0::10", "172.16.0.1/32", "00:11:22:33:44:55"]),
        ("a: fd00:0::10/64", {"a": "fd00:0::10/64"}),
        ("'no': 1", {"no": 1}),
        ("a: |\n  text\n", {"a": "text\n"}),
    ],
)
def test_what_is_taken(content: str, value: object) -> None:
    assert parse_yaml(content.encode()) == value


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a: 1\nb: *x", "line 2, column 4: aliases (*x) are refused"),
        ("a: &x 1", "line 1, column 4: anchors (&x) are refused"),
        ("a:\n  b: !!int ''", "line 2, column 6: tags (tag:yaml.org,2002:int) are refused"),
        ("a: !x []", "line 1, column 4: tags (!x) are refused"),
        ("a: ! b", "tags (!) are refused"),
        ("%TAG !a! b\n---\na: 1", "directives are refused"),
        ("<<: {a: 1}", "line 1, column 1: merge keys (<<) are refused"),
        ("a:\n  b: 1\n  c: 2\n  b: 3", "line 4, column 3: the key b is given twice in one mapping"),
        ("a: 1\n'a': 2", "line 2, column 1: the key a is given twice"),
        ("1: a", "line 1, column 1: the key 1 is not text; quote it"),
        ("no: a", "the key no is not text; quote it"),
        ("[a]: b", "a key must be text, not a list or a mapping"),
        ("a: 1\n---\nb: 2", "line 2, column 1: a second document begins"),
        ("a: 010", "line 1, column 4: 010 would be read to the base 8"),
        ("a: 08", "would be read to the base 8"),
        ("a: 1:30", "1:30 would be read to the base 60"),
        ("a: 2026-01-01", "2026-01-01 would be read as a date"),
        ("a: 2026-01-01T10:00:00Z", "would be read as a date"),
        ("a: " + "9" * 5000, "is too long for a number"),
        ("a: 1" + ":1" * 1_000_000, "is too long for a number"),
        (b"a: 1\nb: \xff", "line 2, column 4: is not UTF-8 (byte 0xff)"),
        ("a: 1".encode("utf-16"), "is not UTF-8"),
        ("a: 1\nb: \0", "is not valid YAML: line 2: control characters are not allowed (U+0000)"),
        ("a: [", "is not valid YAML: line 2, column 1: "),
        ('a: "\\x1b[31m\n', "is not valid YAML"),
    ],
)
def test_what_is_refused_and_where(content: str | bytes, words: str) -> None:
    assert words in refusal(content)


def test_a_word_for_a_switch_is_refused_where_it_must_be_a_name() -> None:
    assert "line 1, column 7: no means false in YAML" in refusal("name: no", switches=())
    assert parse_yaml(b"name: 'no'", switches=()) == {"name": "no"}
    assert parse_yaml(b"{name: a, used: yes}", switches=["used"]) == {"name": "a", "used": True}
    assert "yes means true in YAML" in refusal("{used: [yes]}", switches=["used"])
    assert "yes means true in YAML" in refusal("{used: {yes: 1}}", switches=["used"])


def test_foreign_text_in_an_error_is_short_and_printable() -> None:
    said = refusal('"\\e[31m' + "x" * 5000 + '": 1\n' + '"\\e[31m' + "x" * 5000 + '": 2')
    assert said.isprintable()
    assert len(said) < 200


@pytest.mark.parametrize("text", ["[", "{", "- ", "? ", "[\n", "!!x ", "&a ", "a: ", "]", '"', "---\n", "{a: ", "['"])
def test_a_file_of_nothing_but_beginnings_is_refused_soon(text: str) -> None:
    began = time.monotonic()
    assert refusal("streams: " + text * 1_000_000)
    assert refusal(text * 1_000_000)
    assert time.monotonic() - began < PLENTY_S


def test_depth_and_number_of_values_are_bounded() -> None:
    assert parse_yaml(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH)
    assert f"nested deeper than {MAX_DEPTH} levels" in refusal("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1))
    assert "holds more than 1,000,000 values" in refusal("[" + "a," * MAX_VALUES + "]")
    assert "is larger than 16 MiB" in refusal(b"#" * (MAX_BYTES + 1))


# Reading


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("fifo", "is a FIFO, not a regular file"),
        ("directory", "is a directory"),
        ("socket", "is a socket"),
        ("device", "is a device"),
        ("absent", "cannot be read: No such file"),
        ("loop", "cannot be read: Too many levels of symbolic links"),
        ("large", "is larger than 1 KiB"),
    ],
)
def test_only_a_regular_file_of_bounded_size_is_read_and_nothing_is_waited_for(
    tmp_path: Path, kind: str, words: str
) -> None:
    path = tmp_path / "file"
    match kind:
        case "fifo":
            os.mkfifo(path)
        case "directory":
            path.mkdir()
        case "socket":
            with socket.socket(socket.AF_UNIX) as made:
                made.bind(str(path))
        case "device":
            path.symlink_to("/dev/zero")
        case "loop":
            path.symlink_to(path)
        case "large":
            path.write_bytes(b"x" * 1025)
    with pytest.raises(FileError, match="^" + words.replace("(", r"\(")):
        read_regular_file(path, 1024)


def test_a_file_that_tells_no_size_is_read_up_to_the_bound() -> None:
    assert read_regular_file(Path("/proc/self/stat"), 4096).startswith(b"%d " % os.getpid())
    with pytest.raises(FileError, match="is larger than"):
        read_regular_file(Path("/proc/self/smaps"), 1024)


def test_a_path_that_cannot_be_one_is_refused() -> None:
    with pytest.raises(FileError, match="cannot be read"):
        read_regular_file(Path("a\0b"), 1024)
