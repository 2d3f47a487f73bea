import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbguard.core.addr import parse_ip
from lbguard.core.model import StreamSpec, TargetSpec
from lbguard.sources.interposer.directory import SharedDirectory
from lbguard.sources.interposer.registry import Registry, RegistryError, RegistryFile

IPS = (parse_ip("172.16.1.11"), parse_ip("fd00:1::b"))


def opened(path: Path) -> SharedDirectory:
    directory = SharedDirectory(path)
    directory.open()
    return directory


@pytest.fixture
def registry() -> Registry:
    made = Registry()
    made.begin("b", 20)
    made.begin("a", 10)
    made.register("a", 3, 5003, IPS)
    made.register("a", 1, 5001, IPS[:1])
    return made


def test_the_list_for_the_core(registry: Registry) -> None:
    """Stream b has no target yet, so its marks are not known."""
    targets = TargetSpec(identifier=1, ips=IPS[:1]), TargetSpec(identifier=3, ips=IPS)
    assert registry.specs() == (
        StreamSpec(name="a", max_targets=10, identifier_offset=5000, shm_name="tshm-a", targets=targets),
    )


def test_an_activation_anew_confirms_and_takes_the_addresses(registry: Registry) -> None:
    registry.streams["a"].targets[3].confirmed = False
    registry.register("a", 3, 5003, IPS[:1])
    entry = registry.entry("a", 3)
    assert entry is not None
    assert entry.confirmed
    assert entry.ips == IPS[:1]


def test_removal(registry: Registry) -> None:
    assert registry.remove("a", 3)
    assert not registry.remove("a", 3)
    assert not registry.remove("c", 3)
    assert registry.entry("a", 3) is None
    registry.remove("a", 1)
    assert [(spec.name, spec.targets) for spec in registry.specs()] == [("a", ())]


def test_a_table_made_anew_has_nobody_and_no_marks(registry: Registry) -> None:
    registry.begin("a", 12)
    assert registry.specs() == ()
    registry.register("a", 12, 7012, IPS)
    assert registry.specs()[0].identifier_offset == 7000


@pytest.mark.parametrize(
    ("stream", "identifier", "mark"),
    [
        ("c", 1, 5001),  # unknown
        ("a", 11, 5011),  # beyond the table
        ("a", 2, 5003),  # another offset than the stream's
        ("b", 1, 4995),  # 4995 to 5014 meets a's 5001 to 5010
        ("b", 1, 5006),
        ("b", 1, 240),  # 240 to 259 holds the tables default, main and local
        ("b", 20, 5),  # below zero
        ("b", 1, 2**32 - 1),
    ],
)
def test_marks_that_cannot_be(registry: Registry, stream: str, identifier: int, mark: int) -> None:
    before = registry.dump()
    with pytest.raises(RegistryError):
        registry.register(stream, identifier, mark, IPS)
    assert registry.dump() == before


def test_the_file(registry: Registry, tmp_path: Path) -> None:
    file = RegistryFile(opened(tmp_path))
    assert file.read() is None
    registry.streams["a"].targets[3].confirmed = False
    file.write(registry.dump())
    again = file.read()
    assert again is not None
    assert again.specs() == registry.specs()
    assert again.dump() == registry.dump()
    assert [path.name for path in tmp_path.iterdir()] == ["registry.json"]
    (tmp_path / ".registry.json.new").write_text("left by a killed process")
    file.write(Registry().dump())
    assert [path.name for path in tmp_path.iterdir()] == ["registry.json"]


def changed(registry: Registry, *path: str, to: object) -> bytes:
    document = json.loads(registry.dump())
    place = document
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = to
    return json.dumps(document).encode()


TARGET = ("streams", "a", "targets", "3")


@pytest.mark.parametrize(
    ("path", "to"),
    [
        (("format",), 2),
        (("format",), None),
        (("streams",), []),
        (("streams", "../x"), {"max_targets": 1, "offset": 9000, "targets": {}}),
        (("streams", "c"), {"max_targets": 1}),
        (("streams", "c"), {"max_targets": 10, "offset": 5005, "targets": {}}),  # meets a's marks
        (("streams", "a", "max_targets"), 0),
        (("streams", "a", "max_targets"), True),
        (("streams", "a", "max_targets"), 10**9),
        (("streams", "a", "max_targets"), "10"),
        (("streams", "a", "offset"), None),
        (("streams", "a", "offset"), -1),
        (("streams", "a", "offset"), 5000.5),
        (("streams", "a", "targets"), [1]),
        (("streams", "a", "targets", "11"), {"ips": ["172.16.1.1"], "confirmed": True}),
        (("streams", "a", "targets", "x"), {"ips": ["172.16.1.1"], "confirmed": True}),
        (TARGET, None),
        ((*TARGET, "ips"), []),
        ((*TARGET, "ips"), ["172.16.1.1", "172.16.1.2"]),
        ((*TARGET, "ips"), ["localhost"]),
        ((*TARGET, "ips"), [7]),
        ((*TARGET, "confirmed"), "yes"),
    ],
)
def test_a_file_that_is_no_good(registry: Registry, path: tuple[str, ...], to: object) -> None:
    with pytest.raises(RegistryError):
        Registry.parse(changed(registry, *path, to=to))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"format": 1}'])
def test_garbage(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "registry.json"
    path.write_bytes(content)
    with pytest.raises(RegistryError):
        RegistryFile(opened(tmp_path)).read()


def test_no_link_is_followed(tmp_path: Path) -> None:
    path = tmp_path / "registry.json"
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RegistryError):
        RegistryFile(opened(tmp_path)).read()
    RegistryFile(opened(tmp_path)).write(Registry().dump())
    assert not path.is_symlink()
    assert not (tmp_path / "elsewhere").exists()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.sampled_from(["172.16.1.1", "fd00::1"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["format", "streams", "a", "max_targets", "offset", "targets", "1", "ips"]), inner
        )
    ),
)


@given(JSON)
def test_nothing_else_is_raised_whatever_stands_there(document: object) -> None:
    content = json.dumps({"format": 1, "streams": {"a": document}}).encode()
    try:
        Registry.parse(content)
    except RegistryError:
        return


def test_an_address_that_no_target_can_have_is_refused_by_name(registry: Registry) -> None:
    with pytest.raises(RegistryError, match=r"fe80::1 cannot be the address of a target: it is a link-local address"):
        registry.register("a", 4, 5004, (IPS[0], parse_ip("fe80::1")))
    assert registry.entry("a", 4) is None
    read = Registry.parse(registry.dump().replace(b"fd00:1::b", b"fe80::1"))
    assert [target.identifier for target in read.specs()[0].targets] == [1]
