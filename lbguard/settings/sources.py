"""Sources of settings: flags, environment and a YAML file, and the explanation of wrong values.

Nothing here knows a single setting: names, bounds and help are read from the model's fields.
"""

import difflib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Le
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from lbguard.settings.bounded_file import FileError, read_regular_file
from lbguard.settings.durations import EXAMPLES as DURATION_EXAMPLES
from lbguard.settings.durations import format_duration
from lbguard.settings.listen import EXAMPLES as LISTEN_EXAMPLES
from lbguard.settings.removed import REMOVED_SETTINGS, REMOVED_VALUES
from lbguard.settings.yaml_file import YamlError, parse_yaml

ENV_PREFIX = "LBGUARD_"

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
        return variable_of(self.name)

    def show(self, value: Any) -> str:
        """Write a value of this setting as it could be written in a flag."""
        if value is None:
            return ""
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, tuple):
            return ",".join(format_duration(item) if isinstance(item, float) else str(item) for item in value)
        return format_duration(value) if self.unit == "duration" else str(value)


def variable_of(name: str) -> str:
    """Return the environment variable of a setting."""
    return ENV_PREFIX + name.upper().replace(".", "__")


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


class _FlatSource:
    """A source as a flat map from dotted name to raw value, with the problems found while reading it."""

    def __init__(self, model: type[BaseModel]) -> None:
        self.known = {leaf.name: leaf for leaf in leaves(model)}
        self.problems: list[Problem] = []
        self.values: dict[str, object] = self.read()

    def read(self) -> dict[str, object]:
        """Return raw values by dotted name."""
        raise NotImplementedError

    def origin(self, name: str) -> str:
        """Return the origin of a setting's value."""
        raise NotImplementedError

    def take(self, name: str, value: object, into: dict[str, object]) -> None:
        """Keep a value under its name, or note that the setting is unknown."""
        if name in self.known:
            into[name] = value
            return
        if len(self.problems) >= MAX_PROBLEMS:
            return
        suggestion = nearest(name, list(self.known))
        if any(known.startswith(f"{name}.") for known in self.known):
            reason, suggestion = "a group of settings, not a setting", f"names such as {name}.NAME"
        elif name in REMOVED_SETTINGS:
            reason, suggestion = REMOVED_SETTINGS[name], ""
        else:
            reason = "unknown setting"
        shown = "" if value is None else repr(value)
        self.problems.append(
            Problem(setting=name, value=shown, origin=self.origin(name), reason=reason, allowed=suggestion)
        )


class FlagSource(_FlatSource):
    """Values of `--set key=value` and of the direct flags, by dotted name."""

    def __init__(self, model: type[BaseModel], flags: Mapping[str, object]) -> None:
        self._flags = flags
        super().__init__(model)

    def read(self) -> dict[str, object]:
        """Return raw values by dotted name."""
        values: dict[str, object] = {}
        for name, value in self._flags.items():
            self.take(name, value, values)
        return values

    def origin(self, name: str) -> str:
        """Return the origin of a setting's value."""
        return "flag"


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


class FlatEnvSource(_FlatSource):
    """Environment variables `LBGUARD_...`; a group and a name in it are separated by two underscores."""

    def read(self) -> dict[str, object]:
        """Return raw values by dotted name."""
        variables = {leaf.variable: leaf.name for leaf in self.known.values()}
        removed = {variable_of(name): name for name in REMOVED_SETTINGS}
        self.notes: tuple[str, ...] = ()
        self._aliases: dict[str, str] = {}
        values: dict[str, object] = {}
        for variable, text in os.environ.items():
            if variable in variables:
                values[variables[variable]] = text
            elif variable in removed:
                self.take(removed[variable], text, values)
            elif variable.startswith(ENV_PREFIX) and not self._is_foreign(variable):
                # Not refused: the environment is shared, and a Service named lbguard-x adds names of its own.
                hint = nearest(variable, list(variables))
                note = f"environment variable {variable} is not a setting and is ignored"
                self.notes += (f"{note}; {hint}" if hint else note,)
        self._aliases = self._aliases_in_force(values)
        return values | {name: os.environ[variable] for name, variable in self._aliases.items()}

    def origin(self, name: str) -> str:
        """Return the origin of a setting's value."""
        return f"environment {self._aliases.get(name, variable_of(name))}"

    def _aliases_in_force(self, values: dict[str, object]) -> dict[str, str]:
        """Return the variables of Meridio's containers that stand in for settings of ours that are not given.

        They count where the environment asks for a source beside Meridio; elsewhere they may mean something else.
        """
        if values.get("source") not in _BESIDE_MERIDIO:
            return {}
        return {
            name: variable
            for variable, name in MERIDIO_VARIABLES.items()
            if variable in os.environ and name in self.known and name not in values
        }

    @staticmethod
    def _is_foreign(variable: str) -> bool:
        return variable in _NOT_SETTINGS or _SERVICE_LINK.fullmatch(variable) is not None


class FileSource(_FlatSource):
    """A YAML file whose groups are mappings, or dotted names, or both; None has no values."""

    def __init__(self, model: type[BaseModel], path: Path | None) -> None:
        self.path = path
        super().__init__(model)

    def read(self) -> dict[str, object]:
        """Return raw values by dotted name."""
        if self.path is None:
            return {}
        try:
            document = parse_yaml(read_regular_file(self.path, MAX_BYTES))
        except FileError as error:
            return self._refuse(str(error))
        except YamlError as error:
            return self._refuse(f"is refused: {error}")
        if document is None:
            return {}
        if not isinstance(document, dict):
            return self._refuse("holds no mapping of settings")
        values: dict[str, object] = {}
        self._flatten(document, "", values)
        return values

    def origin(self, name: str) -> str:
        """Return the origin of a setting's value."""
        return f"file {self.path}"

    def _flatten(self, mapping: Mapping[Any, object], prefix: str, into: dict[str, object]) -> None:
        for key, value in mapping.items():
            name = f"{prefix}{key}"
            is_group = any(known.startswith(f"{name}.") for known in self.known)
            if is_group and isinstance(value, dict):
                self._flatten(value, f"{name}.", into)
            elif name in into:
                self._refuse(f"gives {name} twice, in its group and by its dotted name", "one of the two")
            elif not (is_group and value is None):
                self.take(name, value, into)

    def _refuse(self, reason: str, allowed: str = "a readable YAML file of settings") -> dict[str, object]:
        self.problems.append(
            Problem(
                setting="config",
                value=str(self.path),
                origin="--config or LBGUARD_CONFIG",
                reason=f"the file {reason}",
                allowed=allowed,
            )
        )
        return {}


def explain(
    error: ValidationError, model: type[BaseModel], found: Mapping[str, object], origins: Mapping[str, str]
) -> list[Problem]:
    """Turn what the validation library reports into problems in the words of the settings.

    `found` holds the raw values by dotted name, `origins` where each came from.
    """
    known = {leaf.name: leaf for leaf in leaves(model)}
    problems: dict[str, Problem] = {}
    for detail in error.errors(include_url=False):
        problem = _explain_one(detail, known, found, origins)
        # One wrong value of a union is reported once per member; the first says enough.
        problems.setdefault(problem.setting, problem)
    return list(problems.values())


def _explain_one(
    detail: ErrorDetails, known: Mapping[str, Leaf], found: Mapping[str, object], origins: Mapping[str, str]
) -> Problem:
    context = detail.get("ctx", {})
    if detail["type"] == "across":
        name = str(context["setting"])
        return Problem(
            setting=name,
            value=str(context["value"]),
            origin=origins.get(name, "default"),
            reason=detail["msg"],
            allowed=str(context["allowed"]),
        )
    places = [str(part) for part in detail["loc"]]
    name = next((".".join(places[:n]) for n in range(len(places), 0, -1) if ".".join(places[:n]) in known), "")
    leaf = known[name]
    # What a good value looks like stands in `allowed`, so the reason ends before its examples.
    reason = _REASONS.get(detail["type"]) or detail["msg"].removeprefix("Value error, ").partition(", such as")[0]
    reason = REMOVED_VALUES.get((name, str(found.get(name))), reason)
    allowed = leaf.allowed
    if leaf.unit == "duration":
        allowed = f"a duration from {leaf.allowed}, such as {DURATION_EXAMPLES}"
    elif leaf.unit not in {"choice", "switch"} and leaf.allowed[:1].isdigit():
        allowed = f"{leaf.allowed} ({leaf.unit})"
    return Problem(
        setting=name, value=repr(found.get(name)), origin=origins.get(name, "default"), reason=reason, allowed=allowed
    )
