"""lbguard keeps load-balanced connections alive while a service mesh heals its links."""

__version__ = "0.1.0"

DEFAULT_SOCKET = "/run/lbguard/lbguard.sock"
"""Default socket of the API, for the service and for the commands."""
