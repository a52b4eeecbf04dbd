"""The report's plots as inline SVG, by matplotlib's object interface: no pyplot, no global figure."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from pipeline.accounting.figures import BINS, DraftingFigures, Ratios, RejectionFigures, StageFigures
from pipeline.accounting.savings import Saving
from pipeline.accounting.wording import MINUS, counted, duration, money

INK, MUTED, GRID = "#1f2933", "#52606d", "#dde3ea"
BLUE, AMBER, GREEN, RED, GREY = "#1d4ed8", "#b45309", "#15803d", "#b91c1c", "#94a3b8"
LINES = (BLUE, AMBER, GREEN, RED)
SERIES = (*LINES, "#7c3aed", "#0e7490", "#be185d", GREY)
MARKERS = "os^D"
WIDTH = 5.0
_STYLE = {
    "svg.fonttype": "none",  # text stays text: searchable, and set in the reader's own font
    "font.size": 9,
    "axes.edgecolor": GREY,
    "axes.labelcolor": MUTED,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": GRID,
}


def savings_plot(savings: Sequence[Saving]) -> str:
    """Gross and net per known price, in dollars. Empty where no price is known."""
    known = [saving for saving in savings if saving.gross_microusd is not None and saving.net_microusd is not None]
    if not known:
        return ""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _axes(1.2 + 0.62 * len(known))
        places = range(len(known))
        gross, net = [(s.gross_microusd or 0) / 1e6 for s in known], [(s.net_microusd or 0) / 1e6 for s in known]
        axes.barh([p - 0.19 for p in places], gross, 0.34, color=GREY, label="gross: tokens not sent")
        axes.barh([p + 0.19 for p in places], net, 0.34, color=[GREEN if v >= 0 else RED for v in net])
        axes.barh([0], [0], 0, color=GREEN, label="net of worker time")
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.set_yticks(places, labels=[_label(s.target) for s in known], parse_math=False)
        axes.invert_yaxis()
        axes.xaxis.set_major_locator(MaxNLocator(5))
        digits = max(2, 2 - math.floor(math.log10(max(map(abs, [*gross, *net, 1e-6])))))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _dollars(value, digits)))
        _finish(figure, axes, "x")
        return _svg(figure, "savings", "Money saved per price", _said((s.target, money(s.net_microusd)) for s in known))


def ratio_plot(ratios: Ratios) -> str:
    """Documents by asked and by achieved ratio of compressed to original tokens."""
    if not ratios.achieved:
        return ""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _axes(2.7)
        edges = [100 * i / BINS for i in range(BINS + 2)]
        achieved = [ratios.achieved.get(i, 0) for i in range(BINS + 1)]
        asked = [ratios.asked.get(i, 0) for i in range(BINS + 1)]
        axes.stairs(achieved, edges, fill=True, color=BLUE, alpha=0.8, label="achieved")
        axes.stairs(asked, edges, color=AMBER, linewidth=1.8, label="asked")
        axes.set_xlim(0, 100 + 100 / BINS)
        axes.set_xlabel("compressed tokens as % of original (the last bar: not shortened)")
        axes.set_ylabel("documents")
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        _finish(figure, axes, "y")
        total = sum(achieved)
        text = f"{counted(total, 'document')}; {ratios.over_budget:,} came out over their budget."
        return _svg(figure, "ratios", "Achieved against asked ratio", text)


def latency_plot(stages: Sequence[StageFigures]) -> str:
    """Latency by percentile, one line per stage."""
    timed = [stage for stage in stages if stage.latency]
    if not timed:
        return ""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _axes(2.7)
        for stage, colour in zip(timed, LINES, strict=False):
            points = [int(p) for p in stage.latency]
            axes.plot(points, list(stage.latency.values()), color=colour, linewidth=1.8, label=stage.kind)
            marked = [p for p in (50, 90, 99) if str(p) in stage.latency]
            axes.plot(marked, [stage.latency[str(p)] for p in marked], "o", color=colour, markersize=4)
        values = [value for stage in timed for value in stage.latency.values()]
        if min(values) > 0 and max(values) > 50 * min(values):
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.4g} s"))
        axes.set_xticks([1, 25, 50, 75, 90, 99])
        axes.set_xlabel("percentile of documents")
        _finish(figure, axes, "y")
        middle = ((stage.kind, duration(stage.latency.get("50"))) for stage in timed)
        return _svg(figure, "latency", "Latency percentiles", "Median: " + _said(middle))


def failure_plot(rejections: Sequence[RejectionFigures], most: int = 12) -> str:
    """Documents without a result by reason, the most frequent first."""
    shown = sorted(rejections, key=lambda r: -r.count)[:most]
    if not shown:
        return ""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _axes(1.0 + 0.34 * len(shown))
        bars = axes.barh(range(len(shown)), [r.count for r in shown], 0.62,
                         color=[RED if r.status == "dead" else AMBER for r in shown])  # fmt: skip
        axes.bar_label(bars, labels=[f"{r.count:,}" for r in shown], padding=3, color=MUTED)
        names = [_label(f"{r.stage}: {r.code}") for r in shown]
        axes.set_yticks(range(len(shown)), labels=names, parse_math=False)
        axes.invert_yaxis()
        axes.margins(x=0.15)
        axes.set_xlabel("documents (amber: rejected, red: dead)")
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.grid(axis="x")
        pairs = ((f"{r.stage}, {r.code}", f"{r.count:,}") for r in shown)
        return _svg(figure, "failures", "Failures by reason", _said(pairs))


def acceptance_plot(drafting: DraftingFigures) -> str:
    """Tokens that each model drafted, and those of them that stand in answers. Empty where nothing was drafted."""
    drafters = [one for one in drafting.models if one.drafted]
    if not drafters:
        return ""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _axes(1.2 + 0.62 * len(drafters))
        places = range(len(drafters))
        axes.barh([p - 0.19 for p in places], [one.drafted for one in drafters], 0.34, color=GREY, label="drafted")
        axes.barh([p + 0.19 for p in places], [one.accepted for one in drafters], 0.34, color=GREEN, label="accepted")
        axes.set_yticks(places, labels=[_label(one.model) for one in drafters], parse_math=False)
        axes.invert_yaxis()
        axes.set_xlabel("tokens")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        _finish(figure, axes, "x")
        said = _said((one.model, f"{one.accepted:,} of {one.drafted:,}") for one in drafters)
        return _svg(figure, f"acceptance-{drafting.stage}", "Drafts and what was accepted", said)


@dataclass(frozen=True, slots=True)
class QualityPoint:
    """A score and its interval, at so many times fewer tokens."""

    series: str
    ratio: float
    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Unit:
    """In what a score is told: ``times`` what it is, with so many ``places``."""

    label: str
    times: float
    places: int


POINTS, NATS = Unit("points of 100", 100.0, 1), Unit("nats a token", 1.0, 3)


def quality_plot(points: Sequence[QualityPoint], metric: str) -> str:
    """Quality over compression ratio, a line per series with 95% intervals. Empty where nothing varies."""
    axis = Axis("times fewer tokens", lambda value: f"{value:.3g}x")
    return _lines(points, f"quality-{_id(metric)}", metric, axis, f"{metric} over compression ratio")


def lengths_plot(points: Sequence[QualityPoint], name: str, metric: str, unit: Unit = POINTS) -> str:
    """A score over the tokens of a context (their ``ratio``), as above."""
    axis = Axis("tokens of a context", lambda value: f"{value:,.0f}")
    return _lines(points, name, metric, axis, f"{metric} over the tokens of a context", unit)


def curve_plot(curve: Sequence[tuple[int, float]]) -> str:
    """A training's (step, loss in nats), as at most a thousand points, each the mean of its neighbours."""
    if len(curve) < 2:
        return ""
    each = -(-len(curve) // 1_000)
    parts = [curve[at : at + each] for at in range(0, len(curve), each)]
    steps, means = [part[0][0] for part in parts], [sum(loss for _, loss in part) / len(part) for part in parts]
    with matplotlib.rc_context(_STYLE):
        figure, axes = _axes(2.8)
        axes.plot(steps, means, color=BLUE, linewidth=1.2)
        axes.set_xlabel("step")
        axes.set_ylabel("nats a token")
        axes.grid(axis="both")
        return _svg(figure, "curve", "Loss over steps", f"From {means[0]:.3f} to {means[-1]:.3f} nats a token.")


@dataclass(frozen=True, slots=True)
class Axis:
    """What lies along a logarithmic axis, and how its ticks are told."""

    label: str
    tick: Callable[[float], str]


def _lines(points: Sequence[QualityPoint], name: str, metric: str, axis: Axis, title: str, unit: Unit = POINTS) -> str:
    if len({(point.series, point.ratio) for point in points}) < 2:
        return ""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _axes(3.4)
        names = list(dict.fromkeys(point.series for point in points))
        for place, series in enumerate(names):
            _quality_line(axes, [point for point in points if point.series == series], place, unit.times)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(_few(sorted({point.ratio for point in points}))))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: axis.tick(value)))
        axes.xaxis.set_minor_locator(NullLocator())
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, -unit.times / 100), max(high, unit.times / 100))
        axes.set_xlabel(axis.label)
        axes.set_ylabel(f"{_label(metric)}, {unit.label}")
        axes.grid(axis="both")
        if len(names) > 1:
            figure.legend(loc="outside upper left", ncols=2, frameon=False, borderaxespad=0)
        pairs = ((f"{p.series} at {axis.tick(p.ratio)}", f"{unit.times * p.value:.{unit.places}f}") for p in points)
        return _svg(figure, name, title, _said(pairs))


def _quality_line(axes: Any, points: Sequence[QualityPoint], place: int, times: float) -> None:
    ordered = sorted(points, key=lambda point: point.ratio)
    values = [times * point.value for point in ordered]
    errors = [
        [times * max(0.0, point.value - point.low) for point in ordered],
        [times * max(0.0, point.high - point.value) for point in ordered],
    ]
    axes.errorbar(
        [point.ratio for point in ordered], values, yerr=errors, color=SERIES[place % len(SERIES)],
        marker=MARKERS[place // len(SERIES) % len(MARKERS)], markersize=4, linewidth=1.5, elinewidth=0.9, capsize=2,
        label=_label(ordered[0].series),
    )  # fmt: skip


def _few(ratios: Sequence[float]) -> list[float]:
    """The ratios that have room on a logarithmic axis, the first and the last among them."""
    room = math.log(ratios[-1] / ratios[0]) / 9
    kept = [ratios[0]]
    for ratio in ratios[1:]:
        if math.log(ratio / kept[-1]) > room:
            kept.append(ratio)
    return kept


def _id(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "-", text)


def _axes(height: float) -> tuple[Any, Any]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.add_subplot()


def _finish(figure: Any, axes: Any, grid: str) -> None:
    axes.grid(axis=grid)
    figure.legend(loc="outside upper left", ncols=2, frameon=False, borderaxespad=0)


def _label(text: str) -> str:
    """Text from outside as a tick label: short, and in letters the font that measures it has."""
    plain = text.encode("ascii", "replace").decode()
    plain = "".join(letter if letter.isprintable() else "?" for letter in plain)
    return plain if len(plain) <= 34 else plain[:31] + "..."


def _said(pairs: Iterable[tuple[str, str]]) -> str:
    return "; ".join(f"{name}: {value}" for name, value in pairs) + "."


def _dollars(value: float, digits: int) -> str:
    return f"{MINUS if value < -(10**-digits) / 2 else ''}${abs(value):,.{digits}f}"


def _svg(figure: Any, name: str, title: str, description: str) -> str:
    """The figure as an ``<svg>`` element with a title and a description, and nothing that names another address."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):  # the same figures give the same file; ids differ by plot
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        FigureCanvasSVG(figure).print_svg(buffer, metadata=nothing)
    body = buffer.getvalue()
    body = body[body.index("<svg") :]
    body = re.sub(r'\s(?:xmlns(?::\w+)?|version|width|height)="[^"]*"', "", body.split(">", 1)[0]) + _rest(body, name)
    head = f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-desc">{escape(description)}</desc>'
    body = body.replace("<svg", f'<svg role="img" aria-labelledby="{name}-title {name}-desc"', 1)
    return body.replace(">", ">" + head, 1)


def _rest(body: str, name: str) -> str:
    """Everything after the opening tag, its ids made this plot's own: several plots share one page."""
    rest = ">" + body.split(">", 1)[1]
    rest = re.sub(r'\bid="', f'id="{name}-', rest)
    return re.sub(r"(url\(#|href=\"#)", rf"\1{name}-", rest)
