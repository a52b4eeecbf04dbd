"""The HTML report: one self-contained file that asks nothing of any network, safe to open whatever the corpus held."""

from __future__ import annotations

import json
from typing import Any

from pipeline.accounting import wording
from pipeline.accounting.figures import Summary


class ReportMissing(RuntimeError):  # noqa: N818
    """The packages that make the HTML report are not installed."""


def render_html(summary: Summary) -> str:
    """The report of a job as one HTML document (UTF-8). Raises ``ReportMissing`` without jinja2 or matplotlib.

    Every text is escaped by the template engine, only our own plots go in as they are; and the page's policy
    (``Content-Security-Policy``) lets it run no script and load nothing.
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
    for name in ("money", "count", "duration", "percent", "size", "moment", "amount"):
        environment.filters[name] = getattr(wording, name)
    page = environment.get_template("report.html")
    return page.render(
        s=summary, spec=json.dumps(summary.spec, indent=2, ensure_ascii=False), **_figures(summary, plots)
    )


def _figures(summary: Summary, plots: Any) -> dict[str, Any]:
    d = summary.documents
    compress = next((stage for stage in summary.stages if stage.kind == "compress"), None)
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
        "failure_svg": _trusted(plots.failure_plot(summary.rejections)),
    }


def _trusted(svg: str) -> Any:
    from markupsafe import Markup

    return Markup(svg)
