"""Declarations of settings' fields by kind of value (durations, ratios, numbers, paths), with their checks."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field

from lbguard.settings.notation import (
    AMOUNT_EXAMPLES,
    check_collector_address,
    parse_amount,
    parse_duration,
    parse_listen,
)
from lbguard.settings.peers import check_pattern

ACROSS = "across"
"""Type of an error about a combination of settings: its context names the setting, the value and what is allowed."""

GROUP = ConfigDict(extra="forbid", frozen=True, defer_build=True)
"""The configuration of every group of settings. Its validator is built as a part of the whole model, not separately:
that would delay the start by a tenth of a second."""

DAY_S = 86400.0

PATH_BYTES_MAX, NAME_BYTES_MAX = 4095, 255  # PATH_MAX with its final zero is 4096, NAME_MAX 255
SOCKET_PATH_BYTES_MAX = 107  # struct sockaddr_un holds 108 bytes with the final zero


def split(value: object) -> object:
    """Parse a list given as text (environment, flag): items between commas."""
    if isinstance(value, str):
        return [item.strip() for item in value.split(",") if item.strip()]
    return value


def none_if_empty(value: object) -> object:
    """Return None for empty text: "not set"."""
    return None if isinstance(value, str) and not value.strip() else value


def checked(check: Callable[[str], object]) -> BeforeValidator:
    """Return a validator that strips text and refuses it when `check` raises ValueError."""

    def validate(value: object) -> object:
        if not isinstance(value, str):
            return value
        check(value)
        return value.strip()

    return BeforeValidator(validate)


def check_path(value: object) -> object:
    """Refuse text that cannot be a path of a file; without the check the fault would show only at the first use.

    Raises:
        ValueError: the text is empty, contains NUL, or is longer than the kernel's limit.
    """
    return _path_of(value, PATH_BYTES_MAX)


def check_socket_path(value: object) -> object:
    """Refuse text that cannot be the path of a unix socket; see `check_path`."""
    return _path_of(value, SOCKET_PATH_BYTES_MAX)


def check_amount(value: object) -> object:
    """Refuse what is neither a number of targets nor a share; return it as text.

    Raises:
        ValueError: see `parse_amount`.
    """
    parse_amount(value)
    return str(value).strip()


def check_spiffe_address(text: str) -> None:
    """Refuse text that is not an address of a SPIFFE Workload API; empty means none.

    Raises:
        ValueError: it is not such an address.
    """
    scheme, _, path = text.strip().partition(":")
    if not text.strip():
        return
    path = "/" + path.lstrip("/") if path.startswith("/") else ""
    if scheme != "unix" or not path.strip("/"):
        raise ValueError("not an address of a Workload API, such as unix:///run/spire/sockets/agent.sock")
    check_socket_path(path)


def _path_of(value: object, bytes_max: int) -> object:
    if not isinstance(value, str | Path):
        return value
    text = str(value)
    if not text.strip():
        raise ValueError("empty")
    if "\0" in text:
        raise ValueError("not a path: it holds a NUL character")
    parts = os.fsencode(text).split(b"/")
    if sum(map(len, parts)) + len(parts) - 1 > bytes_max or max(map(len, parts)) > NAME_BYTES_MAX:
        raise ValueError(f"longer than {bytes_max} bytes, or {NAME_BYTES_MAX} between two slashes")
    return value


Duration = Annotated[float, BeforeValidator(parse_duration)]
OptionalDuration = Annotated[Duration | None, BeforeValidator(none_if_empty)]
FilePath = Annotated[Path, BeforeValidator(check_path)]
SocketPath = Annotated[Path, BeforeValidator(check_socket_path)]
OptionalPath = Annotated[FilePath | None, BeforeValidator(none_if_empty)]
OptionalSocketPath = Annotated[SocketPath | None, BeforeValidator(none_if_empty)]
Patterns = Annotated[tuple[str, ...], BeforeValidator(split)]
Durations = Annotated[tuple[Annotated[Duration, Field(le=60)], ...], BeforeValidator(split)]
SpiffeAddress = Annotated[str, checked(check_spiffe_address)]
Listen = Annotated[str, checked(parse_listen)]
CollectorAddress = Annotated[str, checked(check_collector_address)]
AmountText = Annotated[str, BeforeValidator(check_amount)]
PeerPattern = Annotated[str, checked(check_pattern)]


def group() -> Any:
    """Declare a group of settings, each at its default unless given."""
    return Field(default_factory=dict, validate_default=True)


def unit(name: str, *, live: bool = False) -> dict[str, Any]:
    """Return the declaration of a unit. `live`: the running service takes a change over, without a restart."""
    return {"unit": name, "live": live}


LIVE: dict[str, Any] = {"live": True}
"""Declares that the running service takes a change over, of a setting without a unit."""


def seconds(default: float | None, help_text: str, *, low: float = 0.0, high: float = DAY_S, live: bool = False) -> Any:
    """Declare a duration."""
    return Field(default, ge=low, le=high, description=help_text, json_schema_extra=unit("duration", live=live))


def ratio(default: float, help_text: str, *, low: float = 0.0, live: bool = False) -> Any:
    """Declare a ratio between `low` and 1."""
    return Field(default, ge=low, le=1, description=help_text, json_schema_extra=unit("ratio", live=live))


def amount(default: str, help_text: str) -> Any:
    """Declare a number of targets, or a share of a stream's. It is live."""
    return Field(
        default,
        description=help_text,
        json_schema_extra={"unit": "number or share", "allowed": AMOUNT_EXAMPLES, "live": True},
    )


def number(default: int, of: str, help_text: str, *, low: int, high: int, live: bool = False) -> Any:
    """Declare a count of something, or another number with a unit."""
    return Field(default, ge=low, le=high, description=help_text, json_schema_extra=unit(of, live=live))
