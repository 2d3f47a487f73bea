"""Page at `/` of the metrics port: state, version, and where everything else is."""

from collections.abc import Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, metadata

from lbguard import __version__
from lbguard.printable import html_text
from lbguard.telemetry.page_style import BASE_STYLE

PAGES = {
    "/metrics": "metrics for Prometheus (docs/metrics.md, docs/monitoring.md)",
    "/healthz": "whether the process lives: 200 or 503, with the reasons",
    "/readyz": "whether all inputs are read: 200 or 503, with the reasons",
}
"""The other pages, and what they show."""

COMMANDS = {
    "lbguard top": "streams, targets, links and decisions, live",
    "lbguard explain STREAM/IDENTIFIER": "why a target is in its state, and what follows",
    "lbguard events --follow": "decisions as they are made",
    "lbguard check-config --host": "problems of settings and machine",
}

_STYLE = (
    BASE_STYLE
    + """
body { max-width: 760px; } h2 { font-size: 18px; margin: 28px 0 6px; }
td { text-align: left; vertical-align: top; padding: 5px 14px 5px 0; border-bottom: 1px solid var(--line); }
td:first-child { white-space: nowrap; } .good { color: var(--ok); } .bad { color: var(--out); font-weight: 600; }
"""
)


@cache
def _documentation() -> str:
    """Return the address of the documentation that the package names; empty: none."""
    try:
        named = metadata("lbguard").get_all("Project-URL") or []
    except PackageNotFoundError:
        return ""
    urls = dict(entry.partition(", ")[::2] for entry in named)
    return next((url for name in ("Documentation", "Homepage") if (url := urls.get(name, "")).startswith("http")), "")


def landing_page(not_alive: Sequence[str], not_ready: Sequence[str]) -> bytes:
    """Return the page as HTML; it refers to nothing outside itself but the documentation.

    Args:
        not_alive: why the loop counts as hung; empty when it is alive.
        not_ready: why the service is not ready; empty when it is.
    """
    states = "".join(
        f"<tr><td>{name}</td><td>{_verdict(reasons)}</td></tr>"
        for name, reasons in (("alive", not_alive), ("ready", not_ready))
    )
    pages = "".join(f'<tr><td><a href="{path}">{path}</a></td><td>{text}</td></tr>' for path, text in PAGES.items())
    commands = "".join(f"<tr><td><code>{name}</code></td><td>{text}</td></tr>" for name, text in COMMANDS.items())
    there = _documentation()
    named = f'<a href="{html_text(there)}">{html_text(there)}</a>' if there else "docs/README.md of the sources"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>lbguard</title><style>{_STYLE}</style></head><body><h1>lbguard</h1>"
        f'<p class="soft">Version {html_text(__version__)}. Keeps load-balanced connections alive while a service mesh'
        f" heals its links.</p><table>{states}</table><h2>Pages</h2><table>{pages}</table>"
        f"<h2>Commands in the container</h2><table>{commands}</table>"
        f"<h2>Documentation</h2><p>{named}</p></body></html>\n"
    ).encode()


def _verdict(reasons: Sequence[str]) -> str:
    if reasons:
        return f'<span class="bad">no</span>: {html_text("; ".join(reasons))}'
    return '<span class="good">yes</span>'
