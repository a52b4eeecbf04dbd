"""Jobs beside each other on the terminal, a table for each metric."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.accounting.wording import count, money, points, ratio, span
from pipeline.evaluation.comparing import Comparison, Side

WIDE = 120
"""Columns of a terminal from which every figure has room."""


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print each metric in points of 100, with differences to the baseline over the common documents."""
    for metric in comparison.metrics:
        console.print(_table(comparison, metric, console.width >= WIDE))
    console.print(
        Text("differences: over the documents that both jobs scored; intervals: 95%, bootstrap", style="dim"),
        soft_wrap=True,
    )


def _table(comparison: Comparison, metric: str, wide: bool) -> Table:
    """``wide`` has room for tokens, the means' own intervals and what the documents cost."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column(metric, overflow="fold")
    rows = [_row(side, metric, wide) for side in comparison.sides]
    for heading in rows[0]:
        table.add_column(heading, justify="right", no_wrap=True)
    for side, row in zip(comparison.sides, rows, strict=True):
        table.add_row(Text(side.name + ("" if side.rate is None else f" at {side.rate:g}")), *row.values())
    return table


def _row(side: Side, metric: str, wide: bool) -> dict[str, str]:
    """Heading -> cell."""
    found = side.metrics[metric]
    gap = f"{points(found.difference)} ({span(found.difference_low, found.difference_high)})"
    tokens = "–" if side.tokens is None else count(side.tokens)
    cells = {
        "tokens": tokens,
        "fewer": ratio(side.ratio),
        "mean": points(found.value),
        "interval": span(found.low, found.high),
        "scored": f"{side.scored:,} of {side.documents:,}",
        "difference": "baseline" if side.baseline else gap if found.difference is not None else "–",
        "over": "" if side.baseline else count(found.common),
        "per 1,000": money(side.cost_microusd),
    }
    return {name: cell for name, cell in cells.items() if wide or name not in ("tokens", "interval", "per 1,000")}
