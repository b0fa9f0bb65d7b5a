"""What a dashboard is made of: queries, panels with their units and limits, and a layout in rows of 24 columns."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

Json = dict[str, Any]

DATASOURCE: Final[Json] = {"type": "prometheus", "uid": "${datasource}"}
VERIFIER: Final = 'instance=~"$verifier"'
EDGE: Final = 'instance=~"$edge"'
_WIDTH: Final = 24

GREEN, YELLOW, RED, BLUE = "green", "yellow", "red", "blue"


@dataclass(frozen=True, slots=True)
class Query:
    """PromQL, and what its series are called; `is_instant` asks for this moment only."""

    expr: str
    legend: str = "__auto"
    is_instant: bool = False

    def target(self, ref_id: str, *, is_table: bool = False, is_heatmap: bool = False) -> Json:
        """As Grafana writes it."""
        shape = "table" if is_table else "heatmap" if is_heatmap else "time_series"
        return {
            "refId": ref_id,
            "datasource": DATASOURCE,
            "expr": self.expr,
            "legendFormat": self.legend,
            "editorMode": "code",
            "format": shape,
            "instant": self.is_instant,
            "range": not self.is_instant,
        }


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel without its place.

    Args:
        kind: Grafana's name of it.
        unit: Grafana's name of the unit, such as s, percentunit or ops.
        limits: (value, colour from there on), after a base of green; None: the series' own colours.
        options, custom: as this kind of panel has them.
    """

    kind: str
    title: str
    description: str
    queries: Sequence[Query]
    unit: str
    width: int
    height: int
    options: Json
    custom: Json
    limits: Sequence[tuple[float, str]] | None = None
    base: str = GREEN
    decimals: int | None = None
    minimum: float | None = 0.0
    maximum: float | None = None
    overrides: Sequence[Json] = ()
    transformations: Sequence[Json] = ()

    def json(self, number: int, x: int, y: int) -> Json:
        """With its place."""
        defaults: Json = {"unit": self.unit, "custom": self.custom, "mappings": []}
        steps: list[Json] = [{"value": None, "color": self.base}]
        steps += [{"value": value, "color": colour} for value, colour in self.limits or ()]
        defaults["thresholds"] = {"mode": "absolute", "steps": steps}
        defaults["color"] = {"mode": "thresholds" if self.kind in ("stat", "bargauge") else "palette-classic"}
        for name, value in (("decimals", self.decimals), ("min", self.minimum), ("max", self.maximum)):
            if value is not None:
                defaults[name] = value
        is_table, is_heatmap = self.kind == "table", self.kind == "heatmap"
        return {
            "id": number,
            "type": self.kind,
            "title": self.title,
            "description": self.description,
            "datasource": DATASOURCE,
            "gridPos": {"x": x, "y": y, "w": self.width, "h": self.height},
            "targets": [
                query.target(chr(ord("A") + index), is_table=is_table, is_heatmap=is_heatmap)
                for index, query in enumerate(self.queries)
            ],
            "fieldConfig": {"defaults": defaults, "overrides": list(self.overrides)},
            "options": self.options,
            "transformations": list(self.transformations),
        }


def lines(
    title: str,
    description: str,
    unit: str,
    *queries: Query,
    width: int = 8,
    is_stacked: bool = False,
    maximum: float | None = None,
    limits: Sequence[tuple[float, str]] | None = None,
) -> Panel:
    """Values over time; limits are drawn as dashed lines."""
    custom = {
        "drawStyle": "line",
        "lineWidth": 1,
        "fillOpacity": 35 if is_stacked else 8,
        "showPoints": "never",
        "spanNulls": False,
        "axisSoftMin": 0,
        "stacking": {"mode": "normal" if is_stacked else "none", "group": "A"},
        "thresholdsStyle": {"mode": "dashed" if limits else "off"},
    }
    options = {
        "legend": {"showLegend": True, "displayMode": "table", "placement": "bottom", "calcs": ["mean", "lastNotNull"]},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    base = "transparent" if limits else GREEN
    return Panel(
        "timeseries", title, description, queries, unit, width, 8, options, custom, limits, base, maximum=maximum
    )


def number(
    title: str,
    description: str,
    unit: str,
    expr: str,
    *,
    limits: Sequence[tuple[float, str]] | None = None,
    base: str = GREEN,
    decimals: int | None = None,
) -> Panel:
    """One number and its recent course."""
    options = {
        "colorMode": "value",
        "graphMode": "area",
        "justifyMode": "auto",
        "orientation": "auto",
        "textMode": "auto",
        "wideLayout": True,
        "showPercentChange": False,
        "percentChangeColorMode": "standard",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
    }
    return Panel(
        "stat", title, description, [Query(expr, title)], unit, 4, 4, options, {}, limits, base, decimals=decimals
    )


def bars(title: str, description: str, unit: str, query: Query, *, maximum: float | None = None) -> Panel:
    """One bar for each series, as of now; a query over time, since only of those the order is Prometheus' own."""
    options = {
        "displayMode": "basic",
        "orientation": "horizontal",
        "valueMode": "color",
        "showUnfilled": True,
        "namePlacement": "auto",
        "sizing": "auto",
        "minVizWidth": 8,
        "minVizHeight": 12,
        "maxVizHeight": 300,
        "legend": {"showLegend": False, "displayMode": "hidden", "placement": "bottom", "calcs": []},
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
    }
    return Panel("bargauge", title, description, [query], unit, 8, 8, options, {}, None, BLUE, 2, maximum=maximum)


def heatmap(title: str, description: str, unit: str, expr: str, *, width: int = 8) -> Panel:
    """How a histogram's values are spread, over time; `expr` has one series for each `le`."""
    options = {
        "calculate": False,
        "cellGap": 1,
        "color": {
            "mode": "scheme",
            "scheme": "Blues",
            "reverse": False,
            "steps": 32,
            "exponent": 0.5,
            "fill": "dark-blue",
        },
        "exemplars": {"color": "orange"},
        "filterValues": {"le": 1e-9},
        "legend": {"show": True},
        "rowsFrame": {"layout": "auto"},
        "showValue": "never",
        "tooltip": {"mode": "single", "yHistogram": True},
        "yAxis": {"axisPlacement": "left", "unit": unit, "reverse": False},
    }
    return Panel("heatmap", title, description, [Query(expr, "{{le}}")], unit, width, 8, options, {}, minimum=None)


def table(
    title: str, description: str, *columns: tuple[str, str, str], by: Sequence[str], width: int = 12, height: int = 8
) -> Panel:
    """One row for each combination of the labels `by`, one column for each (title, unit, expression)."""
    overrides = [
        {
            "matcher": {"id": "byName", "options": f"Value #{chr(ord('A') + index)}" if len(columns) > 1 else "Value"},
            "properties": [{"id": "displayName", "value": name}, {"id": "unit", "value": unit}],
        }
        for index, (name, unit, _) in enumerate(columns)
    ]
    hidden = {name: True for name in ("Time", "__name__", "job") if name not in by}
    transformations = [
        {"id": "merge", "options": {}},
        {"id": "organize", "options": {"excludeByName": hidden, "indexByName": {}, "renameByName": {}}},
    ]
    options = {"showHeader": True, "cellHeight": "sm", "frameIndex": 0}
    custom = {"align": "auto", "cellOptions": {"type": "auto"}, "inspect": False}
    queries = [Query(expr, is_instant=True) for _, _, expr in columns]
    return Panel(
        "table",
        title,
        description,
        queries,
        "short",
        width,
        height,
        options,
        custom,
        minimum=None,
        overrides=overrides,
        transformations=transformations,
    )


Section = tuple[str, Sequence[Panel]]


def _variable(name: str, label: str, query: str) -> Json:
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": DATASOURCE,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
        "options": [],
    }


def dashboard(uid: str, title: str, description: str, sections: Sequence[Section]) -> Json:
    """A dashboard of headed sections, with the variables that all of ours have."""
    panels: list[Json] = []
    y = 0
    for heading, members in sections:
        panels.append(
            {
                "id": len(panels) + 1,
                "type": "row",
                "title": heading,
                "collapsed": False,
                "gridPos": {"x": 0, "y": y, "w": _WIDTH, "h": 1},
                "panels": [],
            }
        )
        y += 1
        x = height = 0
        for panel in members:
            if x + panel.width > _WIDTH:
                x, y = 0, y + height
            panels.append(panel.json(len(panels) + 1, x, y))
            x, height = x + panel.width, panel.height
        y += height
    source = {
        "name": "datasource",
        "label": "Data source",
        "type": "datasource",
        "query": "prometheus",
        "current": {"text": "Prometheus", "value": "prometheus"},
        "multi": False,
        "includeAll": False,
        "options": [],
    }
    variables = [
        source,
        _variable("model", "Model", "label_values(specedge_verifier_info, model)"),
        _variable("verifier", "Verifier", 'label_values(specedge_verifier_info{model=~"$model"}, instance)'),
        _variable("edge", "Edge agent", 'label_values(specedge_edge_info{model=~"$model"}, instance)'),
    ]
    link = {
        "title": "SpecEdge",
        "type": "dashboards",
        "tags": ["specedge"],
        "asDropdown": True,
        "icon": "external link",
        "includeVars": True,
        "keepTime": True,
        "targetBlank": False,
        "tooltip": "",
        "url": "",
    }
    return {
        "uid": uid,
        "title": title,
        "description": description,
        "tags": ["specedge"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "fiscalYearStartMonth": 0,
        "timezone": "browser",
        "time": {"from": "now-1h", "to": "now"},
        "refresh": "30s",
        "annotations": {"list": []},
        "links": [link],
        "templating": {"list": variables},
        "panels": panels,
    }
