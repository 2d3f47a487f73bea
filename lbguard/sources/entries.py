"""Entries of the targets file, and their JSON schema for editors and for the Helm chart; `file.py` reads the file."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field, PlainValidator, StrictBool, WithJsonSchema

from lbguard.core.addr import Ip, Prefix, parse_ip, parse_prefix, why_no_vip, why_not_unicast
from lbguard.core.model import DEFAULT_OFFSET, MAX_MARK, MAX_TARGETS, NAME_PATTERN
from lbguard.settings.yaml_file import YamlMapping


def _name(value: object) -> str:
    if not isinstance(value, str) or NAME_PATTERN.fullmatch(value) is None:
        raise ValueError(
            "a name is 1 to 63 letters, digits, '.', '_' or '-', and starts and ends with a letter or digit"
        )
    return value


def _ip(value: object) -> Ip:
    if not isinstance(value, str):
        raise ValueError("an address is text; quote an IPv6 one")
    ip = parse_ip(value)
    if why := why_not_unicast(ip):
        raise ValueError(f"{value} cannot be the address of a target: it is {why}")
    return ip


def _vip(value: object) -> Prefix:
    if not isinstance(value, str):
        raise ValueError("a VIP is text such as 20.0.0.1/32; quote an IPv6 one")
    prefix = parse_prefix(value)
    if why := why_no_vip(prefix):
        raise ValueError(f"{value} cannot be a VIP: it is {why}")
    return prefix


def _no_bool(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("a whole number is needed")
    return value


_IPV4 = r"[0-9]{1,3}(\.[0-9]{1,3}){3}"
_IPV6 = rf"[0-9A-Fa-f]*:[0-9A-Fa-f:]*({_IPV4})?"
_IP_SCHEMA: dict[str, Any] = {"type": "string", "pattern": f"^({_IPV4}(/32)?|{_IPV6}(/128)?)$"}
_VIP_SCHEMA: dict[str, Any] = {"type": "string", "pattern": f"^({_IPV4}(/[0-9.]+)?|{_IPV6}(/[0-9]{{1,3}})?)$"}

Name = Annotated[str, PlainValidator(_name), WithJsonSchema({"type": "string", "pattern": f"^{NAME_PATTERN.pattern}$"})]
Number = Annotated[int, BeforeValidator(_no_bool)]
TargetIp = Annotated[bytes, PlainValidator(_ip), WithJsonSchema(_IP_SCHEMA)]
Vip = Annotated[Prefix, PlainValidator(_vip), WithJsonSchema(_VIP_SCHEMA)]


class TargetEntry(YamlMapping):
    """A target of a stream."""

    identifier: Number = Field(
        description="Number of the target in its stream, from 1 to `max_targets`. Its fwmark, and its route table, are"
        " `identifier_offset` plus this.",
        json_schema_extra={"minimum": 1},
    )
    ips: tuple[TargetIp, ...] = Field(
        fail_fast=True,
        description="Addresses of the target, at most one of each family. Quote IPv6 addresses.",
        json_schema_extra={"minItems": 1, "maxItems": 2},
    )
    draining: StrictBool = Field(
        default=False,
        description="Keep the target for its connections, and give it no new ones; needs flow affinity.",
    )


class StreamEntry(YamlMapping):
    """A stream; its VIPs and targets are checked separately, in parts."""

    name: Name = Field(description="Name of the stream, unique in the file: 1 to 63 letters, digits, `.`, `_` or `-`.")
    max_targets: Number = Field(
        default=100,
        ge=1,
        le=MAX_TARGETS,
        description="Targets for which the table has room, and the highest identifier.",
    )
    identifier_offset: Number = Field(
        default=DEFAULT_OFFSET,
        ge=0,
        le=MAX_MARK,
        description="First fwmark of the stream, less one. Streams must not share marks.",
    )
    vips: tuple[Any, ...] = Field(
        default=(),
        description="Virtual addresses of the stream, such as `20.0.0.1/32`. The embedded distributor needs them.",
        json_schema_extra={"items": _VIP_SCHEMA},
    )
    shm_name: Name | None = Field(
        default=None, description="Name of nfqlb's shared memory for the stream. Unset: `tshm-` and the stream's name."
    )
    targets: tuple[Any, ...] = Field(default=(), description="The targets of the stream.")


class TargetsDocument(YamlMapping):
    """The targets file."""

    streams: tuple[Any, ...] = Field(description="The streams of this load balancer.")


def targets_schema() -> dict[str, Any]:
    """Return the schema (JSON Schema, draft 7) of the file.

    It has keys, types, bounds and forms. What concerns several entries (names, marks, identifiers and addresses that
    clash) is found by the check of `TargetsFile` only.
    """
    target = _mapping(TargetEntry, {})
    stream = _mapping(StreamEntry, {"targets": target})
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Targets file of lbguard",
        **_mapping(TargetsDocument, {"streams": stream}),
    }


def _mapping(model: type[BaseModel], items: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of a mapping.

    Args:
        model: its model; items that it checks in parts are `Any` there.
        items: the schemas of those items, by key.
    """
    schema = model.model_json_schema()
    properties: dict[str, Any] = {}
    for name, made in schema["properties"].items():
        form = {key: value for key, value in made.items() if key != "title"}
        if name in items:
            form["items"] = items[name]
        if "anyOf" in form:  # an optional key: unset is said by leaving it out
            (given,) = (option for option in form.pop("anyOf") if option != {"type": "null"})
            form |= given
            form.pop("default")
        properties[name] = form
    return {
        "description": (model.__doc__ or "").partition(";")[0].rstrip("."),
        "type": "object",
        "additionalProperties": False,
        "required": schema.get("required", []),
        "properties": properties,
    }
