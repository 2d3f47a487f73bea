"""Parser of listen addresses: `host:port`, `[host]:port` or `:port`."""

import ipaddress
from typing import NamedTuple

EXAMPLES = ":9464, 127.0.0.1:9464, [::1]:9464, or empty for off"
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
        raise ValueError(f"not a listen address, such as {EXAMPLES}")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError("an IPv6 address is written in brackets, such as [::1]:9464")
    if host:
        try:
            ipaddress.ip_address(host)
        except ValueError:
            raise ValueError(f"{host!r} is not an IP address; write one, such as {EXAMPLES}") from None
    return ListenAddress(host, int(port_text))
