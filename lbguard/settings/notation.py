"""Parsers of single values: durations, listen addresses, addresses to connect to; the gRPC address of a unix socket."""

import ipaddress
import math
import os
import re
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from lbguard.core.config import Amount

_FACTORS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "": 1.0}
_AMOUNT = re.compile(r"(\d{1,6}(?:\.\d{1,6})?)(%)?", re.ASCII)
_PATTERN = re.compile(r"(\d+(?:\.\d+)?|\.\d+)\s*(us|ms|s|m|h)?", re.ASCII)

DURATION_EXAMPLES = "500ms, 3s, 2m"
"""Examples in errors about durations."""


def parse_duration(value: object) -> float:
    """Parse a duration and return seconds.

    Args:
        value: text such as `500ms`, `1.5s` or `2m`, or a number of seconds.

    Raises:
        ValueError: it is not a duration, or a negative, infinite or undefined one.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"not a duration, such as {DURATION_EXAMPLES}")
    if isinstance(value, int | float):
        seconds = float(value)
    else:
        match = _PATTERN.fullmatch(value.strip())
        if match is None:
            raise ValueError(f"not a duration, such as {DURATION_EXAMPLES}")
        # Dividing keeps 100ms at exactly 0.1, which multiplying by 1e-3 would not for every value.
        number, unit = float(match[1]), match[2] or ""
        factor = _FACTORS[unit]
        seconds = number * factor if factor >= 1 else number / round(1 / factor)
    if not math.isfinite(seconds) or seconds < 0:
        raise ValueError("a duration is a finite number, zero or more")
    return seconds


def format_duration(seconds: float) -> str:
    """Return seconds as text from which `parse_duration` returns the same value."""
    if seconds and seconds < 1:
        return f"{round(seconds * 1000, 6):g}ms"
    if seconds >= 60 and seconds % 60 == 0:
        return f"{seconds / 60:g}m"
    return f"{round(seconds, 6):.10g}s"


AMOUNT_EXAMPLES = "a number such as 2, or a share such as 50%"
"""Examples in errors about amounts."""


def parse_amount(value: object) -> Amount:
    """Parse a number of targets, or a share of a stream's.

    Raises:
        ValueError: it is neither.
    """
    text = str(value).strip() if isinstance(value, int | str) and not isinstance(value, bool) else ""
    match = _AMOUNT.fullmatch(text)
    if match is None:
        raise ValueError("neither a number of targets nor a share")
    number = float(match[1])
    if not match[2]:
        if number != int(number):
            raise ValueError("neither a whole number nor a share")
        return Amount(count=int(number))
    if number > 100:
        raise ValueError("more than 100%")
    return Amount(share=number / 100)


def format_amount(amount: Amount) -> str:
    """Return an amount as text from which `parse_amount` returns the same value."""
    return f"{amount.share * 100:.10g}%" if amount.share else str(amount.count)


LISTEN_EXAMPLES = ":9464, 127.0.0.1:9464, [::1]:9464, or empty for off"
"""Examples in errors about listen addresses."""


class ListenAddress(NamedTuple):
    """Address to listen on. An empty host means every address of both families; port 0 lets the kernel choose."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_listen(text: str) -> ListenAddress | None:
    """Parse a listen address; empty text means off (None).

    Raises:
        ValueError: the text is not a listen address.
    """
    text = text.strip()
    if not text:
        return None
    host, colon, port_text = text.rpartition(":")
    if not colon or not port_text.isascii() or not port_text.isdigit() or int(port_text) > 65535:
        raise ValueError(f"not a listen address, such as {LISTEN_EXAMPLES}")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError("an IPv6 address is written in brackets, such as [::1]:9464")
    if host:
        try:
            ipaddress.ip_address(host)
        except ValueError:
            raise ValueError(f"{host!r} is not an IP address; write one, such as {LISTEN_EXAMPLES}") from None
    return ListenAddress(host, int(port_text))


REPORT_EXAMPLES = "unix:/run/lbguard/lbguard.sock, lb-a:7443, [fd00::1]:7443, link:7443"
"""Examples in errors about report addresses."""

DIAL_EXAMPLES = "unix:///var/lib/networkservicemesh/nsm.io.sock, tcp://127.0.0.1:5001"
"""Examples in errors about managers' addresses."""


COLLECTOR_EXAMPLES = "http://otel-collector:4317, https://[fd00::1]:4317, or empty for off"
"""Examples in errors about collectors' addresses."""


class Endpoint(NamedTuple):
    """Address of a gRPC service: `path` of a unix socket, or `host` and `port`; empty host: every link's far end."""

    host: str = ""
    port: int = 0
    path: str = ""

    @property
    def is_unix(self) -> bool:
        """Return whether it is a unix socket."""
        return bool(self.path)

    @property
    def of_links(self) -> bool:
        """Return whether it is the load balancer's end of each monitored link."""
        return not self.host and not self.path

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host or 'link'}:{self.port}"


def parse_report_address(text: str) -> Endpoint:
    """Parse a report address: `unix:PATH`, `HOST:PORT`, or `link:PORT` for the far end of each monitored link.

    Raises:
        ValueError: it is none of these.
    """
    endpoint = _parse_dial(text, REPORT_EXAMPLES)
    return endpoint._replace(host="") if endpoint.host == "link" else endpoint


def parse_dial_address(text: str) -> Endpoint:
    """Parse a manager's address in the mesh's form: `unix:///PATH` or `tcp://HOST:PORT`; the scheme is optional.

    Raises:
        ValueError: it is none of these.
    """
    return _parse_dial(text.strip().removeprefix("tcp://"), DIAL_EXAMPLES)


def check_collector_address(text: str) -> None:
    """Refuse text that is not the address of a collector: `http://HOST:PORT` or `https://HOST:PORT`; empty means none.

    Raises:
        ValueError: it is neither.
    """
    scheme, slashes, place = text.strip().partition("://")
    if not text.strip():
        return
    if not slashes or scheme not in {"http", "https"} or place.startswith("unix:"):
        raise ValueError(f"not the address of a collector, such as {COLLECTOR_EXAMPLES}")
    _parse_dial(place.rstrip("/"), COLLECTOR_EXAMPLES)


def _parse_dial(text: str, examples: str) -> Endpoint:
    text = text.strip()
    if text.startswith("unix:"):
        path = text.removeprefix("unix:").removeprefix("//")
        if not path.startswith("/"):
            raise ValueError(f"the path of a unix socket is absolute, such as {examples}")
        return Endpoint(path=path)
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"an IPv6 address is written in brackets, such as {examples}")
    # Host names are ASCII; other names crash the gRPC library.
    named = host.isascii() and host.isprintable() and not {" ", "/"} & set(host)
    if not colon or not host or not named or not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65535):
        raise ValueError(f"not an address to dial, such as {examples}")
    return Endpoint(host=host, port=int(port))


def unix_target(path: Path | str) -> str:
    """Return a path as a gRPC address, a URI: ASCII, with `%`, `#` and `?` escaped."""
    return f"unix:{quote(os.fsencode(path))}"
