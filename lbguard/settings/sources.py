"""Sources of settings (flags, environment, YAML file) for pydantic-settings, and the text of refused settings.

The library reads the environment, and merges and types the values of all sources. Names, bounds and help come from the
model's fields. `SettingsError` holds the refused settings.
"""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin

from annotated_types import Ge, Le
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, EnvSettingsSource, InitSettingsSource

from lbguard.errors import EXIT_REFUSED, CommandError
from lbguard.settings.bounded_file import FileError, read_regular_file
from lbguard.settings.fields import ACROSS
from lbguard.settings.notation import DURATION_EXAMPLES, LISTEN_EXAMPLES, format_duration
from lbguard.settings.yaml_file import YamlError, parse_yaml

ENV_PREFIX = "LBGUARD_"
ENV_DELIMITER = "__"

MAX_BYTES = 2**20
"""A larger settings file is refused unread: all settings with their help take 50 KiB."""

MAX_PROBLEMS = 100
"""Limit of reported unknown names: the search for the nearest name of each takes time."""

_NOT_SETTINGS = frozenset({"LBGUARD_CONFIG"})

# Kubernetes puts these into every container of a namespace that has a Service named lbguard.
_SERVICE_LINK = re.compile(r"LBGUARD_(SERVICE_(HOST|PORT(_.*)?)|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)")

_REASONS = {
    "literal_error": "not one of the choices",
    "bool_parsing": "not one of the choices",
    "bool_type": "not one of the choices",
    "greater_than_equal": "out of bounds",
    "less_than_equal": "out of bounds",
    "int_parsing": "not a whole number",
    "int_from_float": "not a whole number",
    "int_type": "not a whole number",
    "float_parsing": "not a number",
    "float_type": "not a number",
    "string_type": "not text",
    "path_type": "not a path",
    "tuple_type": "not a list",
    "string_too_short": "empty",
    "too_long": "too many items",
}

# Removed settings and values of earlier versions, each with its replacement.
REMOVED_SETTINGS = {
    "distributor.nfqlb_binary": "was removed with distributor.kind=nfqlb-cli; use nfqlb-shm, which runs no program",
}

REMOVED_VALUES = {
    ("distributor.kind", "nfqlb-cli"): "was removed; use nfqlb-shm, which writes the same memory and loses no packet",
}

_SUGGESTION = "did you mean"


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One refused setting: dotted name, value, source of the value, fault, and allowed values."""

    setting: str
    value: str
    origin: str
    reason: str
    allowed: str

    def __str__(self) -> str:
        shown = f"{self.setting} = {self.value}" if self.value else self.setting
        hint = self.allowed if self.allowed.startswith(_SUGGESTION) else f"allowed: {self.allowed}"
        return f"{shown} ({self.origin}): {self.reason}{f'; {hint}' if self.allowed else ''}"


class Given(NamedTuple):
    """The raw value of a setting, and its source."""

    value: object
    origin: str


DEFAULT = Given(None, "default")


class SettingsError(CommandError):
    """Settings were refused; `problems` has them, and the text has one line for each."""

    exit_status = EXIT_REFUSED

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = tuple(problems)

    @property
    def lines(self) -> tuple[str, ...]:
        """Return the problems."""
        return tuple(map(str, self.problems))


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """One setting: dotted name, environment variable, default, unit, allowed values, help.

    `live`: the running service takes a change over; another setting changes with its restart.
    """

    name: str
    default: Any
    unit: str
    allowed: str
    help: str
    live: bool = False

    @property
    def variable(self) -> str:
        """The environment variable of the setting."""
        return variable_of(self.name)

    def show(self, value: Any) -> str:
        """Return a value of this setting as text for a flag."""
        if value is None:
            return ""
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, tuple):
            return ",".join(format_duration(item) if isinstance(item, float) else str(item) for item in value)
        return format_duration(value) if self.unit == "duration" else str(value)


def variable_of(name: str) -> str:
    """Return the environment variable of a setting."""
    return ENV_PREFIX + name.upper().replace(".", ENV_DELIMITER)


@cache
def leaves(model: type[BaseModel]) -> tuple[Leaf, ...]:
    """List every setting of a model, in the order of its fields."""
    return tuple(_walk(model, ""))


def _walk(model: type[BaseModel], prefix: str) -> Iterator[Leaf]:
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _walk(kind, f"{prefix}{name}.")
        else:
            unit, allowed = _unit_and_bounds(field)
            extra = field.json_schema_extra
            yield Leaf(
                name=prefix + name,
                default=field.default,
                unit=unit,
                allowed=allowed,
                help=field.description or "",
                live=isinstance(extra, dict) and bool(extra.get("live")),
            )


def _unit_and_bounds(field: FieldInfo) -> tuple[str, str]:
    extra = field.json_schema_extra
    unit = str(extra.get("unit", "")) if isinstance(extra, dict) else ""
    if isinstance(extra, dict) and "allowed" in extra:
        return unit, str(extra["allowed"])
    if get_origin(field.annotation) is Literal:
        return "choice", " | ".join(str(choice) for choice in get_args(field.annotation))
    if field.annotation is bool:
        return "switch", "true | false"
    low = next((item.ge for item in field.metadata if isinstance(item, Ge)), None)
    high = next((item.le for item in field.metadata if isinstance(item, Le)), None)
    if low is None or high is None:
        words = {
            "host:port": LISTEN_EXAMPLES,
            "list": "names between commas",
            "list of durations": "ascending durations up to 1m between commas, at most 16, such as 0s,100ms,1.1s",
        }
        return unit or "text", words.get(unit, "a path or text")
    if unit == "duration":
        return unit, f"{format_duration(float(str(low)))} to {format_duration(float(str(high)))}"
    return unit, f"{low} to {high}".replace(".0 ", " ")


def nearest(name: str, known: list[str]) -> str:
    """Return a suggestion of the known name nearest to an unknown one; empty when none is near."""
    from difflib import get_close_matches  # only where a name is refused

    close = get_close_matches(name, known, n=1, cutoff=0.6)
    return f"{_SUGGESTION} {close[0]}?" if close else ""


def nested(values: Mapping[str, object]) -> dict[str, Any]:
    """Convert values by dotted name to nested mappings."""
    whole: dict[str, Any] = {}
    for name, value in values.items():
        *groups, last = name.split(".")
        place = whole
        for group in groups:
            place = place.setdefault(group, {})
        place[last] = value
    return whole


class NamedSource(InitSettingsSource):
    """Values by dotted name. Unknown names are not passed to the library and become problems."""

    def __init__(self, settings_cls: type[BaseSettings], origin: str, values: Mapping[str, object]) -> None:
        known = [leaf.name for leaf in leaves(settings_cls)]
        self.given = {name: Given(values[name], origin) for name in known if name in values}
        unknown = islice((name for name in values if name not in self.given), MAX_PROBLEMS)
        self.problems = [_unknown(name, Given(values[name], origin), known) for name in unknown]
        super().__init__(settings_cls, nested({name: given.value for name, given in self.given.items()}))


def _groups(known: list[str]) -> list[str]:
    """Return the names of the groups of these settings."""
    return list(dict.fromkeys(name.rpartition(".")[0] for name in known if "." in name))


def _unknown(name: str, given: Given, known: list[str]) -> Problem:
    reason, allowed = "unknown setting", nearest(name, known)
    if any(setting.startswith(f"{name}.") for setting in known):
        reason, allowed = "a group of settings, not a setting", f"names such as {name}.NAME"
    elif name in REMOVED_SETTINGS:
        reason, allowed = REMOVED_SETTINGS[name], ""
    elif isinstance(given.value, dict) and (group := nearest(name, _groups(known))):
        reason, allowed = "unknown group of settings", group
    value = "" if given.value is None else repr(given.value)
    return Problem(setting=name, value=value, origin=given.origin, reason=reason, allowed=allowed)


class FileSource(NamedSource):
    """A YAML file whose groups are mappings, or dotted names, or both; without a file there are no values.

    `content`: of the file, where it was read already.
    """

    def __init__(self, settings_cls: type[BaseSettings], path: Path | None, content: bytes | None = None) -> None:
        groups = {leaf.name.rpartition(".")[0] for leaf in leaves(settings_cls)} - {""}
        values, refused = _read_file(path, content, groups)
        super().__init__(settings_cls, f"file {path}", values)
        self.problems = [
            Problem(
                setting="config",
                value=str(path),
                origin="--config or LBGUARD_CONFIG",
                reason=f"the file {reason}",
                allowed=allowed,
            )
            for reason, allowed in refused
        ] + self.problems


def _read_file(
    path: Path | None, content: bytes | None, groups: set[str]
) -> tuple[dict[str, object], list[tuple[str, str]]]:
    """Return the values of a file by dotted name, and the reasons for its refusal, with the allowed form."""
    allowed = "a readable YAML file of settings"
    if path is None:
        return {}, []
    try:
        if content is not None and len(content) > MAX_BYTES:
            return {}, [(f"is larger than {MAX_BYTES // 2**20} MiB", allowed)]
        document = parse_yaml(read_regular_file(path, MAX_BYTES) if content is None else content)
    except FileError as error:
        return {}, [(str(error), allowed)]
    except YamlError as error:
        return {}, [(f"is refused: {error}", allowed)]
    if not isinstance(document, dict | None):
        return {}, [("holds no mapping of settings", allowed)]
    values: dict[str, object] = {}
    twice: list[str] = []
    _flatten(document or {}, "", groups, values, twice)
    return values, [(f"gives {name} twice, in its group and by its dotted name", "one of the two") for name in twice]


def _flatten(
    mapping: Mapping[str, object], prefix: str, groups: set[str], values: dict[str, object], twice: list[str]
) -> None:
    for key, value in mapping.items():
        name = f"{prefix}{key}"
        if name in groups and isinstance(value, dict):
            _flatten(value, f"{name}.", groups, values, twice)
        elif name in values:
            twice.append(name)
        elif not (name in groups and value is None):
            values[name] = value


MERIDIO_VARIABLES = {
    "NSM_NSP_SERVICE": "nsp.address",
    "NSM_TRENCH_NAME": "nsp.trench",
    "NSM_CONDUIT_NAME": "nsp.conduit",
    "NSM_IDENTIFIER_OFFSET_START": "nsp.identifier_offset_start",
    "SPIFFE_ENDPOINT_SOCKET": "nsp.spiffe_socket",
    "NSM_REQUEST_TIMEOUT": "mesh.request_timeout",
    "NSM_GRPC_MAX_BACKOFF": "mesh.max_backoff",
    "NSM_IP_RELEASE_DELAY": "mesh.ip_release_delay",
}
"""Variables of Meridio's containers that set these settings if LBGUARD_SOURCE is a source beside Meridio."""

_BESIDE_MERIDIO = ("nsp", "interposer", "kernel")


class EnvironmentSource(EnvSettingsSource):
    """Environment variables `LBGUARD_...`; a group and a name in it are separated by two underscores.

    The library gets only variables with the exact name of a setting: not a group's, which it would parse as JSON, and
    no other case.
    """

    def __init__(self, settings_cls: type[BaseSettings]) -> None:
        super().__init__(settings_cls)
        variables = {leaf.name: leaf.variable for leaf in leaves(settings_cls)}
        read_from = {name: variable for name, variable in variables.items() if variable in os.environ}
        # They count if the environment sets a source beside Meridio; otherwise they may have another meaning.
        if os.environ.get(variables["source"]) in _BESIDE_MERIDIO:
            aliases = {name: variable for variable, name in MERIDIO_VARIABLES.items() if variable in os.environ}
            read_from = aliases | read_from
        self.given = {
            name: Given(os.environ[variable], f"environment {variable}") for name, variable in read_from.items()
        }
        self.env_vars = {variables[name].lower(): os.environ[variable] for name, variable in read_from.items()}
        self.notes = tuple(_notes(list(variables.values())))
        removed = {name: variable_of(name) for name in REMOVED_SETTINGS if variable_of(name) in os.environ}
        self.problems = [
            _unknown(name, Given(os.environ[variable], f"environment {variable}"), [])
            for name, variable in removed.items()
        ]


def _notes(variables: list[str]) -> Iterator[str]:
    """Yield a note for each variable with the prefix of settings that is not a setting.

    They are not refused: the environment is shared, and a Service named lbguard-x adds variables too.
    """
    refused = {variable_of(name) for name in REMOVED_SETTINGS}
    for variable in os.environ:
        foreign = variable in _NOT_SETTINGS | refused or _SERVICE_LINK.fullmatch(variable)
        if variable.startswith(ENV_PREFIX) and variable not in variables and not foreign:
            hint = nearest(variable, variables)
            note = f"environment variable {variable} is not a setting and is ignored"
            yield f"{note}; {hint}" if hint else note


def explain(error: ValidationError, model: type[BaseModel], given: Mapping[str, Given]) -> list[Problem]:
    """Convert errors of the validation library to problems in the terms of the settings."""
    known = {leaf.name: leaf for leaf in leaves(model)}
    problems: dict[str, Problem] = {}
    for detail in error.errors(include_url=False):
        problem = _explain_one(detail, known, given)
        # One wrong value of a union is reported once per member; the first report is enough.
        problems.setdefault(problem.setting, problem)
    return list(problems.values())


def _explain_one(detail: ErrorDetails, known: Mapping[str, Leaf], given: Mapping[str, Given]) -> Problem:
    context = detail.get("ctx", {})
    if detail["type"] == ACROSS:
        name = str(context["setting"])
        return Problem(
            setting=name,
            value=str(context["value"]),
            origin=given.get(name, DEFAULT).origin,
            reason=detail["msg"],
            allowed=str(context["allowed"]),
        )
    places = [str(part) for part in detail["loc"]]
    name = next((".".join(places[:n]) for n in range(len(places), 0, -1) if ".".join(places[:n]) in known), "")
    leaf = known[name]
    # `allowed` has the examples of valid values, so the reason ends before its own examples.
    reason = _REASONS.get(detail["type"]) or detail["msg"].removeprefix("Value error, ").partition(", such as")[0]
    value, origin = given.get(name, DEFAULT)
    reason = REMOVED_VALUES.get((name, str(value)), reason)
    allowed = leaf.allowed
    if leaf.unit == "duration":
        allowed = f"a duration from {leaf.allowed}, such as {DURATION_EXAMPLES}"
    elif leaf.unit not in {"choice", "switch"} and leaf.allowed[:1].isdigit():
        allowed = f"{leaf.allowed} ({leaf.unit})"
    return Problem(setting=name, value=repr(value), origin=origin, reason=reason, allowed=allowed)
