"""Parser of addresses to connect to: load balancers that receive reports, and a network service manager."""

from typing import NamedTuple

REPORT_EXAMPLES = "unix:/run/lbguard/lbguard.sock, lb-a:7443, [fd00::1]:7443, link:7443"
"""Examples in errors about report addresses."""

DIAL_EXAMPLES = "unix:///var/lib/networkservicemesh/nsm.io.sock, tcp://127.0.0.1:5001"
"""Examples in errors about managers' addresses."""


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
    endpoint = _parse(text, REPORT_EXAMPLES)
    return endpoint._replace(host="") if endpoint.host == "link" else endpoint


def parse_dial_address(text: str) -> Endpoint:
    """Parse a manager's address in the mesh's form: `unix:///PATH` or `tcp://HOST:PORT`; the scheme is optional.

    Raises:
        ValueError: it is none of these.
    """
    return _parse(text.strip().removeprefix("tcp://"), DIAL_EXAMPLES)


def _parse(text: str, examples: str) -> Endpoint:
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
