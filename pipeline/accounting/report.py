"""The HTML report: one self-contained file that asks nothing of any network, safe to open whatever the corpus held."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pipeline.accounting import wording
from pipeline.accounting.figures import Summary
from pipeline.memory import display
from schemas.records import SHORTENING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.cuts import Cut
    from pipeline.evaluation.bootstrap import Interval
    from pipeline.evaluation.comparing import Comparison
    from pipeline.memory.evaluated import Evaluation
    from pipeline.models.encoders import EncoderManifest


SHOWN = 3_000
"""Characters of a document that the report shows: it stays a page, however long the documents are."""


class ReportMissing(RuntimeError):  # noqa: N818
    """The packages that make the HTML report are not installed."""


def render_html(summary: Summary, cuts: Sequence[tuple[str, Cut]] = ()) -> str:
    """The report of a job as one HTML document (UTF-8). Raises ``ReportMissing`` without jinja2 or matplotlib.

    ``cuts``: documents to be shown with what was removed, and what each of them is an example of.
    """
    environment, plots = _tools()
    page = environment.get_template("report.html")
    html: str = page.render(
        s=summary,
        spec=json.dumps(summary.spec, indent=2, ensure_ascii=False),
        cuts=[(what, cut, SHOWN) for what, cut in cuts],
        **_figures(summary, plots),
    )
    return html


def render_comparison(comparison: Comparison) -> str:
    """Jobs beside each other as one HTML document (UTF-8). Raises ``ReportMissing`` without jinja2 or matplotlib."""
    environment, plots = _tools()
    svgs = [
        (metric, _trusted(plots.quality_plot(_comparison_points(comparison, metric, plots), metric)))
        for metric in comparison.metrics
    ]
    html: str = environment.get_template("compare.html").render(c=comparison, plots=[pair for pair in svgs if pair[1]])
    return html


def render_encoder(found: Evaluation, name: str, manifest: EncoderManifest, curve: Sequence[tuple[int, float]]) -> str:
    """What a memory encoder is worth as one HTML document (UTF-8): ``curve`` has the loss of each step of its training.

    Raises ``ReportMissing`` without jinja2 or matplotlib.
    """
    environment, plots = _tools()
    rows = {
        "repeated": display.repeated_row,
        "stored": display.stored_row,
        "continued": display.continued_row,
        "latency": display.latency_row,
    }
    environment.filters.update({f"encoder_{name}": row for name, row in rows.items()})
    html: str = environment.get_template("encoder.html").render(
        e=found, name=name, manifest=manifest, display=display, curve=_trusted(plots.curve_plot(curve)),
        plots=[pair for pair in _encoder_plots(found, plots) if pair[1]],
    )  # fmt: skip
    return html


def _encoder_plots(found: Evaluation, plots: Any) -> list[tuple[str, Any]]:
    made = []
    for metric, field, unit in (
        ("BLEU-4", "bleu4", plots.POINTS),
        ("prefix", "prefix", plots.POINTS),
        ("cross entropy", "nats", plots.NATS),
    ):
        points = [
            plots.QualityPoint(f"{one.kind}, {one.tokens / one.slots:.3g} a slot", one.tokens, *_ends(value))
            for one in found.repeated
            if (value := getattr(one, field)) is not None
        ]
        drawn = plots.lengths_plot(points, f"encoder-{field}", metric, unit)
        made.append((f"{metric} over the tokens of a context", _trusted(drawn)))
    return made


def _ends(score: Interval) -> tuple[float, float, float]:
    return score.value, score.low, score.high


def _tools() -> tuple[Any, Any]:
    """The template engine and the plots.

    Every text is escaped by the engine, only our own plots go in as they are; and the pages' policy
    (``Content-Security-Policy``) lets them run no script and load nothing.
    """
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined

        from pipeline.accounting import plots
    except ImportError as error:
        raise ReportMissing(
            f"the HTML report lacks {error.name}: pip install jinja2 matplotlib (our extra 'report')"
        ) from error
    environment = Environment(
        loader=PackageLoader("pipeline.accounting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in (
        "money",
        "count",
        "counted",
        "duration",
        "percent",
        "size",
        "moment",
        "amount",
        "points",
        "span",
        "ratio",
        "visible",
    ):
        environment.filters[name] = getattr(wording, name)
    return environment, plots


def _figures(summary: Summary, plots: Any) -> dict[str, Any]:
    d = summary.documents
    compress = next((stage for stage in summary.stages if stage.kind in SHORTENING), None)
    costs = [stage.cost_microusd for stage in summary.stages if stage.cost_microusd is not None]
    return {
        "compress": compress,
        "share": [
            ("done", "done here", max(0, d.done - d.reused)),
            ("reused", "taken over", d.reused),
            ("rejected", "rejected", d.rejected),
            ("dead", "dead", d.dead),
            ("pending", "pending", d.pending),
        ],
        "rows": d.accepted + d.rejected_input,
        "known": next((saving for saving in summary.savings if saving.net_microusd is not None), None),
        "paid": sum(costs) if costs else None,
        "unpriced": sum(stage.unpriced for stage in summary.stages),
        "rowless": sum(stage.rowless_microusd for stage in summary.stages),
        "lost": sum(row.reserved_microusd or 0 for row in summary.requests if row.state == "lost"),
        "hosted": bool(summary.requests) or summary.budget is not None,
        "uncompressed": d.accepted - compress.documents if compress else 0,
        "savings_svg": _trusted(plots.savings_plot(summary.savings)),
        "ratio_svg": _trusted(plots.ratio_plot(summary.ratios)),
        "latency_svg": _trusted(plots.latency_plot(summary.stages)),
        "quality_svgs": _quality(summary, plots),
        "acceptance_svgs": [_trusted(plots.acceptance_plot(one)) for one in summary.drafting],
        "failure_svg": _trusted(plots.failure_plot(summary.rejections)),
    }


def _quality(summary: Summary, plots: Any) -> list[tuple[str, Any]]:
    """A plot for each metric of a job with several rates."""
    rows = [row for row in summary.evaluations if row.ratio is not None and row.value is not None]
    made = []
    for metric in dict.fromkeys(row.metric for row in rows):
        points = [
            plots.QualityPoint(summary.name, row.ratio, row.value, row.low, row.high)
            for row in rows
            if row.metric == metric
        ]
        made.append((f"{metric} over compression ratio", _trusted(plots.quality_plot(points, metric))))
    return [pair for pair in made if pair[1]]


def _comparison_points(comparison: Comparison, metric: str, plots: Any) -> list[Any]:
    return [
        plots.QualityPoint(side.series, side.ratio, found.value, found.low, found.high)
        for side in comparison.sides
        if side.ratio is not None and (found := side.metrics[metric]).value is not None
    ]


def _trusted(svg: str) -> Any:
    from markupsafe import Markup

    return Markup(svg)
