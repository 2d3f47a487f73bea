"""Sources of settings for pydantic-settings: flags, environment and a YAML file; and the words of a refusal.

The library nests, types and merges what the sources give. Nothing here knows a single setting: names, bounds and help
are read from the model's fields.
"""

import difflib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin

from annotated_types import Ge, Le
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, EnvSettingsSource, InitSettingsSource

from lbguard.settings.bounded_file import FileError, read_regular_file
from lbguard.settings.durations import EXAMPLES as DURATION_EXAMPLES
from lbguard.settings.durations import format_duration
from lbguard.settings.listen import EXAMPLES as LISTEN_EXAMPLES
from lbguard.settings.yaml_file import YamlError, parse_yaml

ENV_PREFIX = "LBGUARD_"
ENV_DELIMITER = "__"

MAX_BYTES = 2**20
"""A larger file of settings is refused unread: all of them with their help are 50 KiB."""

MAX_PROBLEMS = 100
"""After so many unknown names nobody reads on, and to look for what each was meant to be takes long."""

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

_SUGGESTION = "did you mean"


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One refused setting: its dotted name, the value, where it came from, what is wrong and what is allowed."""

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
    """The raw value of a setting, and where it came from."""

    value: object
    origin: str


DEFAULT = Given(None, "default")


class SettingsError(Exception):
    """Settings were refused; `problems` holds each, and the text has one line for each."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = tuple(problems)


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """One setting: dotted name, environment variable, default, unit, what is allowed, help."""

    name: str
    default: Any
    unit: str
    allowed: str
    help: str

    @property
    def variable(self) -> str:
        """The environment variable of the setting."""
        return ENV_PREFIX + self.name.upper().replace(".", ENV_DELIMITER)

    def show(self, value: Any) -> str:
        """Write a value of this setting as it could be written in a flag."""
        if value is None:
            return ""
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, tuple):
            return ",".join(format_duration(item) if isinstance(item, float) else str(item) for item in value)
        return format_duration(value) if self.unit == "duration" else str(value)


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
            yield Leaf(
                name=prefix + name, default=field.default, unit=unit, allowed=allowed, help=field.description or ""
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
    """Return words that suggest the known name nearest to an unknown one; empty when none is near."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"{_SUGGESTION} {close[0]}?" if close else ""


def nested(values: Mapping[str, object]) -> dict[str, Any]:
    """Turn values by dotted name into mappings within mappings."""
    whole: dict[str, Any] = {}
    for name, value in values.items():
        *groups, last = name.split(".")
        place = whole
        for group in groups:
            place = place.setdefault(group, {})
        place[last] = value
    return whole


class _DottedSource(InitSettingsSource):
    """Values by dotted name. Names that no setting has are kept from the library and become problems."""

    def __init__(self, settings_cls: type[BaseSettings], origin: str) -> None:
        self.origin = origin
        self.known = {leaf.name: leaf for leaf in leaves(settings_cls)}
        self.groups = {name.rpartition(".")[0] for name in self.known} - {""}
        self.given: dict[str, Given] = {}
        self.problems: list[Problem] = []
        self.read()
        super().__init__(settings_cls, nested({name: given.value for name, given in self.given.items()}))

    def read(self) -> None:
        """Take every value of the source."""
        raise NotImplementedError

    def take(self, name: str, value: object) -> None:
        """Keep a value under its name, or note that the setting is unknown."""
        if name in self.known:
            self.given[name] = Given(value, self.origin)
            return
        if len(self.problems) >= MAX_PROBLEMS:
            return
        reason, suggestion = "unknown setting", nearest(name, list(self.known))
        if name in self.groups:
            reason, suggestion = "a group of settings, not a setting", f"names such as {name}.NAME"
        shown = "" if value is None else repr(value)
        self.problems.append(Problem(setting=name, value=shown, origin=self.origin, reason=reason, allowed=suggestion))


class FlagSource(_DottedSource):
    """Values of `--set key=value` and of the direct flags."""

    def __init__(self, settings_cls: type[BaseSettings], flags: Mapping[str, object]) -> None:
        self._flags = flags
        super().__init__(settings_cls, "flag")

    def read(self) -> None:
        """Take every value of the source."""
        for name, value in self._flags.items():
            self.take(name, value)


class FileSource(_DottedSource):
    """A YAML file whose groups are mappings, or dotted names, or both; None has no values."""

    def __init__(self, settings_cls: type[BaseSettings], path: Path | None) -> None:
        self._path = path
        super().__init__(settings_cls, f"file {path}")

    def read(self) -> None:
        """Take every value of the source."""
        if self._path is None:
            return
        try:
            document = parse_yaml(read_regular_file(self._path, MAX_BYTES))
        except FileError as error:
            self._refuse(str(error))
        except YamlError as error:
            self._refuse(f"is refused: {error}")
        else:
            if isinstance(document, dict):
                self._flatten(document, "")
            elif document is not None:
                self._refuse("holds no mapping of settings")

    def _flatten(self, mapping: Mapping[str, object], prefix: str) -> None:
        for key, value in mapping.items():
            name = f"{prefix}{key}"
            if name in self.groups and isinstance(value, dict):
                self._flatten(value, f"{name}.")
            elif name in self.given:
                self._refuse(f"gives {name} twice, in its group and by its dotted name", "one of the two")
            elif not (name in self.groups and value is None):
                self.take(name, value)

    def _refuse(self, reason: str, allowed: str = "a readable YAML file of settings") -> None:
        self.problems.append(
            Problem(
                setting="config",
                value=str(self._path),
                origin="--config or LBGUARD_CONFIG",
                reason=f"the file {reason}",
                allowed=allowed,
            )
        )


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
"""Variables of Meridio's containers that stand for these settings, where LBGUARD_SOURCE is one beside Meridio."""

_BESIDE_MERIDIO = ("nsp", "interposer", "kernel")


class EnvironmentSource(EnvSettingsSource):
    """Environment variables `LBGUARD_...`; a group and a name in it are separated by two underscores.

    Of the environment the library is shown the variables of settings alone, written exactly so: not a group's, which it
    would read as JSON, and no other case.
    """

    def __init__(self, settings_cls: type[BaseSettings]) -> None:
        super().__init__(settings_cls)
        variables = {leaf.name: leaf.variable for leaf in leaves(settings_cls)}
        read_from = {name: variable for name, variable in variables.items() if variable in os.environ}
        # They count where the environment asks for a source beside Meridio; elsewhere they may mean something else.
        if os.environ.get(variables["source"]) in _BESIDE_MERIDIO:
            aliases = {name: variable for variable, name in MERIDIO_VARIABLES.items() if variable in os.environ}
            read_from = aliases | read_from
        self.given = {
            name: Given(os.environ[variable], f"environment {variable}") for name, variable in read_from.items()
        }
        self.env_vars = {variables[name].lower(): os.environ[variable] for name, variable in read_from.items()}
        self.notes = tuple(_notes(list(variables.values())))


def _notes(variables: list[str]) -> Iterator[str]:
    """Yield a note for each variable that looks like a setting and is none.

    They are not refused: the environment is shared, and a Service named lbguard-x adds names of its own.
    """
    for variable in os.environ:
        foreign = variable in _NOT_SETTINGS or _SERVICE_LINK.fullmatch(variable)
        if variable.startswith(ENV_PREFIX) and variable not in variables and not foreign:
            hint = nearest(variable, variables)
            note = f"environment variable {variable} is not a setting and is ignored"
            yield f"{note}; {hint}" if hint else note


def explain(error: ValidationError, model: type[BaseModel], given: Mapping[str, Given]) -> list[Problem]:
    """Turn what the validation library reports into problems in the words of the settings."""
    known = {leaf.name: leaf for leaf in leaves(model)}
    problems: dict[str, Problem] = {}
    for detail in error.errors(include_url=False):
        problem = _explain_one(detail, known, given)
        # One wrong value of a union is reported once per member; the first says enough.
        problems.setdefault(problem.setting, problem)
    return list(problems.values())


def _explain_one(detail: ErrorDetails, known: Mapping[str, Leaf], given: Mapping[str, Given]) -> Problem:
    context = detail.get("ctx", {})
    if detail["type"] == "across":
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
    # What a good value looks like stands in `allowed`, so the reason ends before its examples.
    reason = _REASONS.get(detail["type"]) or detail["msg"].removeprefix("Value error, ").partition(", such as")[0]
    allowed = leaf.allowed
    if leaf.unit == "duration":
        allowed = f"a duration from {leaf.allowed}, such as {DURATION_EXAMPLES}"
    elif leaf.unit not in {"choice", "switch"} and leaf.allowed[:1].isdigit():
        allowed = f"{leaf.allowed} ({leaf.unit})"
    value, origin = given.get(name, DEFAULT)
    return Problem(setting=name, value=repr(value), origin=origin, reason=reason, allowed=allowed)
