"""The JSON schema of the targets file beside the check of the file itself."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator

from lbguard.sources.entries import targets_schema
from lbguard.sources.file import TargetsFile, TargetsFileError
from tests.pages import ROOT, blocks

VALIDATOR = Draft7Validator(targets_schema())


def stream(**keys: Any) -> dict[str, Any]:
    return {"streams": [{"name": "a", "targets": [{"identifier": 1, "ips": ["10.0.0.1"]}]} | keys]}


def target(**keys: Any) -> dict[str, Any]:
    return stream(targets=[{"identifier": 1, "ips": ["10.0.0.1"]} | keys])


def is_read(content: dict[str, Any]) -> bool:
    try:
        TargetsFile(Path("targets.yaml")).parse(yaml.safe_dump(content).encode())
    except TargetsFileError:
        return False
    return True


TAKEN = [
    {"streams": []},
    {"streams": [{"name": "a"}]},
    stream(max_targets=1, identifier_offset=255, vips=["20.0.0.1/32", "2000::1/128", "20.0.0.2", "21.0.0.0/8"]),
    stream(shm_name="tshm-x", name="a.b_c-d"),
    target(ips=["10.0.0.1/32", "fd00::10"], draining=True),
    target(ips=["fd00:1:2:3:4:5:6:7/128"]),
    target(ips=["64:ff9b::10.0.0.1"]),
]

REFUSED = [
    {},
    {"stream": []},
    {"streams": {}},
    stream(name=""),
    stream(name="a b"),
    stream(name="x" * 64),
    stream(max_targets=0),
    stream(max_targets=1_000_001),
    stream(identifier_offset=-1),
    stream(vips=["20.0.0.1/"]),
    stream(vips=["one"]),
    stream(vip=[]),
    stream(targets=[{"identifier": 1}]),
    target(ips=[]),
    target(ips=["10.0.0.1", "10.0.0.2", "fd00::1"]),
    target(ips=["10.0.0.0/24"]),
    target(ips=["fe80::1%eth0"]),
    target(identifier=0),
    target(identifier="one"),
    target(identifier=True),
    target(draining="sometimes"),
    target(weight=2),
]


@pytest.mark.parametrize("content", TAKEN)
def test_what_is_read_fits_the_schema(content: dict[str, Any]) -> None:
    assert is_read(content)
    assert not list(VALIDATOR.iter_errors(content))


@pytest.mark.parametrize("content", REFUSED)
def test_what_does_not_fit_the_schema_is_not_read(content: dict[str, Any]) -> None:
    assert list(VALIDATOR.iter_errors(content))
    assert not is_read(content)


def test_the_schema_is_one_that_editors_take() -> None:
    Draft7Validator.check_schema(targets_schema())
    (example, *_) = blocks("docs/targets-file.md", "yaml")
    first, _, _ = example.partition("\n")
    assert first == "# yaml-language-server: $schema=targets.schema.json"
    assert (ROOT / "docs/targets.schema.json").exists()
    content = yaml.safe_load(example)
    assert is_read(content)
    assert not list(VALIDATOR.iter_errors(content))


def test_every_key_says_what_it_is() -> None:
    streams = targets_schema()["properties"]["streams"]["items"]["properties"]
    for keys in (streams, streams["targets"]["items"]["properties"]):
        assert all(form["description"].endswith(".") for form in keys.values())
