"""lbguard keeps load-balanced connections alive while a service mesh heals its links."""

__version__ = "0.1.0"
