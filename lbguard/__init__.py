"""lbguard keeps load-balanced connections alive while a service mesh heals its links."""

__version__ = "0.1.0"

DEFAULT_SOCKET = "/run/lbguard/lbguard.sock"
"""Where the service serves its API and commands look for it, unless a setting says otherwise."""
