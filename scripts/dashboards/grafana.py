"""Parts of a dashboard, and its JSON as Grafana imports it (schema version 39, Grafana 10.4 and later).

In expressions `@lb` stands for the labels that choose a pod, `@stream` for those and the stream, `@target` for
those and the target.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dashboards.runbook import anchor

Json = dict[str, Any]

_LB = 'namespace=~"$namespace",pod=~"$pod"'
_STREAM = f'{_LB},stream=~"$stream"'
_SELECTORS = {"@target": f'{_STREAM},identifier=~"$identifier"', "@stream": _STREAM, "@lb": _LB}
_DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
_GRID = 24

# Grafana's $__rate_interval is four scrapes, or a step and a scrape, whichever is longer. With steps as short as a
# scrape an event would be counted in four of them; with steps of a minute it is rarely counted in two.
_STEP = "1m"
_TAG = "lbguard"
_BY_NUMBER = 3
"""Grafana's order of the values of a variable: by number, ascending."""

RUNBOOK = "docs/runbook.md"
"""Address of the runbook until another is set: a path in the repository. The chart puts its own value here."""

TARGET_PAGE = "lbguard-target"
"""Identifier of the dashboard of one target."""

_STREAM_OF, _IDENTIFIER_OF = "${__field.labels.stream}", "${__field.labels.identifier}"
_TO_TARGET = {
    "title": f"Target {_STREAM_OF}/{_IDENTIFIER_OF}",
    "url": f"/d/{TARGET_PAGE}?${{datasource:queryparam}}&${{namespace:queryparam}}&${{pod:queryparam}}"
    f"&var-stream={_STREAM_OF}&var-identifier={_IDENTIFIER_OF}&${{__url_time_range}}",
    "targetBlank": False,
}

GREEN, YELLOW, ORANGE, RED, BLUE, PURPLE, GREY = "green", "yellow", "orange", "red", "blue", "purple", "#808080"

YES_NO = {0: ("no", RED), 1: ("yes", GREEN)}
ALARM = {0: ("no", GREEN), 1: ("yes", RED)}
TARGET_STATES = {
    1: ("active", GREEN),
    2: ("held", YELLOW),
    3: ("frozen", BLUE),
    4: ("withdrawn", RED),
    5: ("draining", PURPLE),
}

STATE_COLORS = {
    "pending": GREY,
    "active": GREEN,
    "held": YELLOW,
    "frozen": BLUE,
    "withdrawn": RED,
    "draining": PURPLE,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One panel. `queries` are pairs of an expression and a legend.

    `unit` is one of Grafana's; `thresholds` are pairs of a value and the colour from there on, below all of them it is
    green; `values` name numbers and give them colours; `colors` gives colours by legend. `none` is shown while there is
    no data, for panels whose series begin with the first event. `below`: legends drawn below the axis. A series that
    has the labels of a target leads to its page.
    """

    title: str
    about: str
    queries: Sequence[tuple[str, str]]
    kind: Literal["timeseries", "stat", "state-timeline"] = "timeseries"
    unit: str = "short"
    width: int = 8
    height: int = 8
    minimum: float | None = 0
    maximum: float | None = None
    decimals: int | None = None
    thresholds: Sequence[tuple[float, str]] = ()
    values: dict[int, tuple[str, str]] | None = None
    colors: dict[str, str] | None = None
    below: str = ""
    stacked: bool = False
    bars: bool = False
    none: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Panels under a heading."""

    title: str
    panels: Sequence[Panel]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dashboard:
    """A dashboard. `pods`: the metric whose pods can be chosen (`one_pod`: one of them); `streams`: streams as well.

    `one_target`: it is about one target of a stream.
    """

    uid: str
    title: str
    about: str
    rows: Sequence[Row]
    pods: str
    one_pod: bool = False
    streams: bool = True
    one_target: bool = False


def stat(title: str, about: str, expr: str, **more: Any) -> Panel:
    """Return a small panel with one number."""
    return Panel(title=title, about=about, queries=[(expr, "")], kind="stat", **({"width": 4, "height": 4} | more))


def expression(text: str) -> str:
    """Return an expression with its selectors written out, on one line."""
    for name, labels in _SELECTORS.items():
        text = text.replace(name, labels)
    return " ".join(text.split())


def render(dashboard: Dashboard) -> Json:
    """Return a dashboard's JSON."""
    return {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "description": dashboard.about,
        "tags": [_TAG],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "links": [
            {
                "type": "dashboards",
                "title": "lbguard",
                "tags": [_TAG],
                "asDropdown": False,
                "includeVars": True,
                "keepTime": True,
                "icon": "external link",
                "targetBlank": False,
                "tooltip": "",
                "url": "",
            }
        ],
        "annotations": {"list": [_alerts()]},
        "templating": {"list": list(_variables(dashboard))},
        "panels": list(_panels(dashboard.rows)),
    }


def _alerts() -> Json:
    expr = 'ALERTS{alertname=~"Lbguard.*",alertstate="firing",namespace=~"$namespace"}'
    return {
        "name": "Alerts",
        "datasource": _DATASOURCE,
        "enable": True,
        "iconColor": RED,
        "expr": expr,
        "step": "30s",
        "titleFormat": "{{alertname}}",
        "textFormat": "{{pod}} {{stream}}",
    }


def _variables(dashboard: Dashboard) -> Iterator[Json]:
    yield {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus", "refresh": 1}
    yield _variable("namespace", "Namespace", f"label_values({dashboard.pods}, namespace)")
    pods = f'label_values({dashboard.pods}{{namespace=~"$namespace"}}, pod)'
    yield _variable("pod", "Pod", pods, many=not dashboard.one_pod)
    if dashboard.streams:
        streams = expression("label_values(lbguard_stream_available{@lb}, stream)")
        yield _variable("stream", "Stream", streams, many=not dashboard.one_target)
    if dashboard.one_target:
        identifiers = expression("label_values(lbguard_target_state_code{@stream}, identifier)")
        yield _variable("identifier", "Identifier", identifiers, many=False) | {"sort": _BY_NUMBER}
    if any(anchor(panel.title) for row in dashboard.rows for panel in row.panels):
        yield {"name": "runbook", "label": "Runbook at", "type": "textbox", "query": RUNBOOK, "current": _text(RUNBOOK)}


def _text(text: str) -> Json:
    return {"text": text, "value": text}


def _variable(name: str, label: str, query: str, *, many: bool = True) -> Json:
    variable: Json = {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": _DATASOURCE,
        "query": {"query": query, "refId": f"variable-{name}"},
        "definition": query,
        "refresh": 2,
        "sort": 1,
        "multi": many,
        "includeAll": many,
    }
    # Series without the label, from a Prometheus outside of Kubernetes, match "all" as well.
    return variable | ({"allValue": ".*", "current": {"text": "All", "value": "$__all"}} if many else {})


def _panels(rows: Sequence[Row]) -> Iterator[Json]:
    number, top = 1, 0
    for row in rows:
        place = {"h": 1, "w": _GRID, "x": 0, "y": top}
        yield {"id": number, "type": "row", "title": row.title, "collapsed": False, "gridPos": place, "panels": []}
        number, top, left, height = number + 1, top + 1, 0, 0
        for panel in row.panels:
            if left + panel.width > _GRID:
                top, left, height = top + height, 0, 0
            place = {"h": panel.height, "w": panel.width, "x": left, "y": top}
            yield _panel(panel, number, place)
            number, left, height = number + 1, left + panel.width, max(height, panel.height)
        top += height


def _panel(panel: Panel, number: int, place: Json) -> Json:
    now = panel.kind == "stat"
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.about,
        "datasource": _DATASOURCE,
        "gridPos": place,
        "links": _links(panel),
        **({"interval": _STEP} if any("increase(" in expr for expr, _ in panel.queries) and not now else {}),
        "fieldConfig": {"defaults": _defaults(panel), "overrides": list(_overrides(panel))},
        "options": _options(panel),
        "targets": [
            {
                "refId": chr(ord("A") + place),
                "datasource": _DATASOURCE,
                "expr": expression(expr),
                "legendFormat": legend,
                "editorMode": "code",
                "instant": now,
                "range": not now,
            }
            for place, (expr, legend) in enumerate(panel.queries)
        ],
    }


def _links(panel: Panel) -> list[Json]:
    there = anchor(panel.title)
    return [{"title": "Runbook", "url": f"${{runbook}}#{there}", "targetBlank": True}] if there else []


def _defaults(panel: Panel) -> Json:
    steps = [{"color": GREEN, "value": None}, *({"color": color, "value": at} for at, color in panel.thresholds)]
    colored = panel.kind != "timeseries"
    defaults: Json = {
        "unit": panel.unit,
        "color": {"mode": "thresholds" if colored else "palette-classic"},
        "thresholds": {"mode": "absolute", "steps": steps},
        "mappings": _mappings(panel.values or {}),
        "custom": _custom(panel),
        "links": [_TO_TARGET] if any("{{identifier}}" in legend for _, legend in panel.queries) else [],
    }
    bounds = {"min": panel.minimum, "max": panel.maximum, "decimals": panel.decimals, "noValue": panel.none or None}
    return defaults | {name: value for name, value in bounds.items() if value is not None}


def _custom(panel: Panel) -> Json:
    match panel.kind:
        case "timeseries":
            return {
                "drawStyle": "bars" if panel.bars else "line",
                "lineWidth": 1,
                "fillOpacity": 60 if panel.bars else 25 if panel.stacked else 5,
                "showPoints": "never",
                "spanNulls": False,
                "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
                "thresholdsStyle": {"mode": "dashed" if panel.thresholds else "off"},
            }
        case "state-timeline":
            return {"fillOpacity": 80, "lineWidth": 0}
        case _:
            return {}


def _mappings(values: dict[int, tuple[str, str]]) -> list[Json]:
    if not values:
        return []
    options = {
        str(value): {"text": text, "color": color, "index": index}
        for index, (value, (text, color)) in enumerate(values.items())
    }
    return [{"type": "value", "options": options}]


def _overrides(panel: Panel) -> Iterator[Json]:
    for legend, color in (panel.colors or {}).items():
        fixed = {"id": "color", "value": {"mode": "fixed", "fixedColor": color}}
        yield {"matcher": {"id": "byName", "options": legend}, "properties": [fixed]}
    if panel.below:
        below = {"id": "custom.transform", "value": "negative-Y"}
        yield {"matcher": {"id": "byRegexp", "options": panel.below}, "properties": [below]}


def _options(panel: Panel) -> Json:
    match panel.kind:
        case "stat":
            return {
                "colorMode": "background",
                "graphMode": "none",
                "justifyMode": "center",
                "textMode": "value",
                "orientation": "auto",
                "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            }
        case "state-timeline":
            return {
                "mergeValues": True,
                "showValue": "never",
                "rowHeight": 0.9,
                "alignValue": "left",
                "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
                "tooltip": {"mode": "single", "sort": "none"},
            }
        case _:
            legend = {
                "displayMode": "table",
                "placement": "bottom",
                "showLegend": True,
                "calcs": ["lastNotNull", "max"],
            }
            return {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}}
