"""The run's plots as SVG text, one panel each, so that a page can lay them out for any screen.

Matplotlib is an optional extra and imported on first use. Text and axes are drawn in `currentColor`: the page decides.
"""

import importlib
import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from specedge.errors import SpecEdgeError
from specedge_bench.records import RequestRecord
from specedge_bench.run_folder import Run
from specedge_bench.session_timeline import Timeline, labels_apart, pick_timeline
from specedge_bench.summary import CellSummary
from specedge_bench.tables import natural_key

Axes = Any
"""A `matplotlib.axes.Axes`; its stubs differ between releases and are absent without the extra."""

# A colour no plot uses, replaced by `currentColor` in the finished SVG.
_INK = "#010203"
# Mid tones that keep a contrast of 3:1 on a white and on a near-black page.
_COLORS = ("#2f7fd1", "#d1660f", "#1f9468", "#b352c4", "#d0455a", "#8a7a1f", "#7a828c")
_MARKERS = ("o", "s", "D", "^", "v", "P", "X")
_DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)))
_MAX_CURVE_POINTS = 200
# A line of the legend: its height in inches, how many letters it holds, and how many the sample of a curve takes.
_LEGEND_LINE_IN, _LEGEND_CHARS, _HANDLE_CHARS = 0.19, 72, 6
_LABEL_SHARE = 0.06  # of a timeline's width that a number with two digits takes


class MissingMatplotlib(SpecEdgeError):
    """Plots were asked for without the library that draws them."""

    def __init__(self) -> None:
        super().__init__("plots need matplotlib: pip install 'specedge[bench]'")


@dataclass(frozen=True, slots=True)
class Plot:
    """One panel: its section of the report, a title and the drawing."""

    section: str
    title: str
    svg: str


def draw_all(run: Run, summaries: Sequence[CellSummary]) -> list[Plot]:
    """Every plot the run has data for.

    Raises:
        MissingMatplotlib: the optional extra is not installed.
    """
    pen = _Pen([summary.system for summary in summaries])
    return [
        *_cdfs(pen, run, summaries),
        *_throughput(pen, summaries),
        *_itl_over_rtt(pen, summaries),
        *_acceptance(pen, summaries),
        *_timelines(pen, run, summaries),
    ]


class _Pen:
    """Draws panels; a system keeps its colour, marker and dashes in all of them."""

    def __init__(self, systems: Iterable[str]) -> None:
        try:
            self._settings = importlib.import_module("matplotlib").rc_context
            # The figure and its canvas alone: pyplot keeps global state and looks for a screen.
            self._figure = importlib.import_module("matplotlib.figure").Figure
            self._canvas = importlib.import_module("matplotlib.backends.backend_svg").FigureCanvasSVG
            self._ticker = importlib.import_module("matplotlib.ticker")
        except ImportError as error:
            raise MissingMatplotlib from error
        self._rank = {system: rank for rank, system in enumerate(dict.fromkeys(systems))}

    def color(self, system: str) -> str:
        return _COLORS[self._rank[system] % len(_COLORS)]

    def marker(self, system: str) -> str:
        return _MARKERS[self._rank[system] % len(_MARKERS)]

    def dashes(self, system: str) -> str | tuple[int, tuple[int, ...]]:
        return _DASHES[self._rank[system] % len(_DASHES)]

    @staticmethod
    def legend(axes: Axes) -> None:
        """The legend above the axes, where no curve can run through it; the figure grows with its lines."""
        labels = axes.get_legend_handles_labels()[1]
        num_fitting = _LEGEND_CHARS // (max(map(len, labels), default=0) + _HANDLE_CHARS)
        columns = max(1, min(num_fitting, 3 if len(labels) <= 3 else 2))
        num_lines = -(-len(labels) // columns)
        axes.figure.set_figheight(axes.figure.get_figheight() + _LEGEND_LINE_IN * max(0, num_lines - 1))
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, fontsize=9, columnspacing=1.2)

    @staticmethod
    def from_zero(axes: Axes) -> None:
        """A y axis from 0 to a little above the highest mark, which would be cut in half otherwise."""
        axes.set_ylim(0, 1.05 * axes.get_ylim()[1])

    def log_axis(self, axes: Axes) -> None:
        """A logarithmic x axis with plain numbers at 1, 2 and 5 of every decade."""
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(self._ticker.LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(self._ticker.FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(self._ticker.NullFormatter())

    def panel(self, section: str, title: str, draw: Callable[[Axes], None], height: float = 3.4) -> Plot:
        """Runs `draw` on empty axes and returns the finished panel."""
        settings = {
            # Ids derive from the salt: equal input gives equal bytes, and two panels of a page never share one.
            "svg.hashsalt": f"{section} {title}",
            "svg.fonttype": "none",
            "font.family": "sans-serif",
            "font.size": 11.0,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.alpha": 0.18,
            "legend.frameon": False,
            **dict.fromkeys(
                ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color"), _INK
            ),
        }
        with self._settings(settings):
            figure = self._figure(figsize=(5.6, height), layout="constrained")
            self._canvas(figure)
            axes = figure.add_subplot()
            draw(axes)
            buffer = io.StringIO()
            figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        return Plot(section, title, _inline(buffer.getvalue(), title))


def _inline(svg: str, title: str) -> str:
    """The drawing without its XML head, as wide as its place on the page, with a name for screen readers."""
    body = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'(<svg[^>]*?) (?:width|height)="[^"]*"', r"\1", body)
    body = re.sub(r'(<svg[^>]*?) (?:width|height)="[^"]*"', r"\1", body)
    label = title.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return body.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)


def _panels(summaries: Sequence[CellSummary]) -> list[tuple[str, str, list[CellSummary]]]:
    """Every network's lowest and highest load with the cells there; more panels than that nobody reads."""
    chosen = []
    for network in dict.fromkeys(summary.network for summary in summaries):
        here = [summary for summary in summaries if summary.network == network]
        loads = sorted({summary.load for summary in here}, key=natural_key)
        for load in dict.fromkeys((loads[0], loads[-1])):
            chosen.append((network, load, [summary for summary in here if summary.load == load]))
    return chosen


def _cdfs(pen: _Pen, run: Run, summaries: Sequence[CellSummary]) -> list[Plot]:
    samples: Mapping[str, Callable[[RequestRecord], list[float]]] = {
        "Inter-token latency (per token)": lambda request: request.token_gaps_s(),
        "Time to first token": lambda request: [request.ttft_s] if request.bursts else [],
    }
    answered: dict[str, list[RequestRecord]] = {}
    for request in run.requests:
        if request.status == "ok":
            answered.setdefault(request.cell, []).append(request)
    plots = []
    for section, values_of in samples.items():
        for network, load, cells in _panels(summaries):
            curves = {
                cell.system: [1e3 * value for request in answered.get(cell.cell, []) for value in values_of(request)]
                for cell in cells
            }

            def draw(axes: Axes, curves: Mapping[str, list[float]] = curves) -> None:
                for system, values in curves.items():
                    _draw_cdf(axes, values, pen.color(system), pen.dashes(system), system)
                pen.log_axis(axes)
                axes.set_xlabel("ms")
                axes.set_ylabel("share at or below")
                axes.set_ylim(0, 1.02)
                pen.legend(axes)

            if any(_positive(values).size for values in curves.values()):
                plots.append(pen.panel(section, f"{network}, {load}", draw))
    return plots


def _positive(values: Sequence[float]) -> np.ndarray:
    array = np.array(values, dtype=np.float64)
    return np.sort(array[array > 0])


def _draw_cdf(axes: Axes, values: Sequence[float], color: str, dashes: object, label: str) -> None:
    """A step curve; thinned, since a page needs no more than a few hundred points."""
    ordered = _positive(values)
    if not ordered.size:
        return
    ranks = np.unique(np.linspace(0, ordered.size - 1, min(_MAX_CURVE_POINTS, ordered.size)).round().astype(int))
    axes.step(ordered[ranks], (ranks + 1) / ordered.size, where="post", color=color, linestyle=dashes, label=label)


def _throughput(pen: _Pen, summaries: Sequence[CellSummary]) -> list[Plot]:
    plots = []
    groups = dict.fromkeys((summary.network, natural_key(summary.load)[0]) for summary in summaries)
    for network, kind in groups:
        cells = [cell for cell in summaries if cell.network == network and natural_key(cell.load)[0] == kind]

        def draw(axes: Axes, cells: Sequence[CellSummary] = cells, kind: str = kind) -> None:
            for system in dict.fromkeys(cell.system for cell in cells):
                points = sorted((cell for cell in cells if cell.system == system), key=lambda cell: _load_x(cell))
                middle = np.array([cell.throughput.mean for cell in points])
                ends = np.array([[cell.throughput.low, cell.throughput.high] for cell in points])
                reach = np.nan_to_num(np.abs(ends - middle[:, None])).T  # [2, points]
                axes.errorbar(
                    [_load_x(cell) for cell in points],
                    middle,
                    yerr=reach,
                    color=pen.color(system),
                    marker=pen.marker(system),
                    linestyle=pen.dashes(system),
                    capsize=3,
                    label=system,
                )
            axes.set_xlabel("requests per second" if kind == "poisson" else "sessions")
            axes.set_ylabel("tokens/s")
            pen.from_zero(axes)
            pen.legend(axes)

        plots.append(pen.panel("Throughput over load", f"{network}, {kind}", draw))
    return plots


def _load_x(cell: CellSummary) -> float:
    """Where the load stands on the axis: its own number, else its number of users."""
    return natural_key(cell.load)[1] or float(cell.num_users)


def _rtt_ms(cell: CellSummary) -> float:
    return cell.rtt_ms_configured


def _itl_over_rtt(pen: _Pen, summaries: Sequence[CellSummary]) -> list[Plot]:
    plots = []
    for load in sorted({summary.load for summary in summaries}, key=natural_key):
        cells = [cell for cell in summaries if cell.load == load and cell.latencies.itl_token.num_samples]
        cells = [cell for cell in cells if np.isfinite(_rtt_ms(cell))]

        def draw(axes: Axes, cells: Sequence[CellSummary] = cells) -> None:
            for system in dict.fromkeys(cell.system for cell in cells):
                points = sorted((cell for cell in cells if cell.system == system), key=_rtt_ms)
                rtts = [_rtt_ms(cell) for cell in points]
                look = {"color": pen.color(system), "marker": pen.marker(system)}
                middle = [1e3 * cell.latencies.itl_token.mean for cell in points]
                tail = [1e3 * cell.latencies.itl_token.p95 for cell in points]
                axes.plot(rtts, middle, linestyle="-", label=f"{system}, mean", **look)
                axes.plot(rtts, tail, linestyle=":", alpha=0.7, label=f"{system}, p95", **look)
            axes.set_xlabel("round trip between edge and verifier, ms")
            axes.set_ylabel("ITL per token, ms")
            pen.from_zero(axes)
            pen.legend(axes)

        if cells:
            plots.append(pen.panel("Inter-token latency over round trip", load, draw))
    return plots


def _acceptance(pen: _Pen, summaries: Sequence[CellSummary]) -> list[Plot]:
    plots = []
    for network, load, cells in _panels(summaries):
        drafting = [cell for cell in cells if any(np.isfinite(cell.speculation.acceptance_by_depth))]

        def draw(axes: Axes, drafting: Sequence[CellSummary] = drafting) -> None:
            for cell in drafting:
                shares = cell.speculation.acceptance_by_depth
                look = {"color": pen.color(cell.system), "marker": pen.marker(cell.system)}
                axes.plot(range(1, len(shares) + 1), shares, label=cell.system, **look)
            axes.set_xlabel("depth of the draft token")
            axes.set_xticks(range(1, max(len(cell.speculation.acceptance_by_depth) for cell in drafting) + 1))
            axes.set_ylabel("share of trees")
            axes.set_ylim(0, 1.02)
            pen.legend(axes)

        if drafting:
            plots.append(pen.panel("Acceptance by depth", f"{network}, {load}", draw))
    return plots


def _timelines(pen: _Pen, run: Run, summaries: Sequence[CellSummary]) -> list[Plot]:
    """One session of every system, on the network with the longest round trip and the lowest load there."""
    known = [cell for cell in summaries if np.isfinite(_rtt_ms(cell))]
    if not known:
        return []
    network = max(known, key=_rtt_ms).network
    lowest = min({cell.load for cell in known if cell.network == network}, key=natural_key)
    plots = []
    for cell in known:
        if (cell.network, cell.load) != (network, lowest):
            continue
        timeline = pick_timeline(cell.cell, _rtt_ms(cell) / 1e3, run.requests, run.steps)
        if timeline is not None:

            def draw(axes: Axes, timeline: Timeline = timeline) -> None:
                _draw_timeline(axes, timeline)

            plots.append(pen.panel("Timeline of one session", f"{cell.system}, {network}, {lowest}", draw, 2.8))
    return plots


def _draw_timeline(axes: Axes, timeline: Timeline) -> None:
    lanes = (
        ("verifier, other steps", 2.0, timeline.other_steps, _COLORS[6]),
        ("verifier", 2.0, timeline.steps, _COLORS[0]),
        ("network", 1.0, timeline.network, _COLORS[1]),
        ("edge", 0.0, timeline.edge, _COLORS[2]),
    )
    for label, level, spans, color in lanes:
        bars = [(1e3 * start, 1e3 * (end - start)) for start, end in spans]
        axes.broken_barh(bars, (level - 0.35, 0.7), color=color, alpha=0.85, linewidth=0, label=label)
    last_s = timeline.bursts[-1][0]
    # A burst that no step could be matched with has no bar; the axis has to reach it all the same.
    axes.set_xlim(-0.03 * 1e3 * last_s, 1.03 * 1e3 * last_s)
    for arrival_s, count in labels_apart(timeline.bursts, _LABEL_SHARE * last_s):
        axes.annotate(str(count), (1e3 * arrival_s, -1.0), ha="center", va="center", fontsize=9)
    axes.set_yticks([-1, 0, 1, 2], ["tokens", "edge", "network", "verifier"])
    axes.grid(False, axis="y")
    axes.set_ylim(-1.5, 2.5)
    axes.set_xlabel("ms since the request was sent")
