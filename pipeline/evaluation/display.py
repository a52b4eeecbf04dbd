"""Jobs beside each other on the terminal, a table for each metric."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.accounting.wording import count, counted, money, points, ratio, span
from pipeline.evaluation.bootstrap import Interval
from pipeline.evaluation.comparing import Comparison, Side
from pipeline.evaluation.judging import Judged

WIDE = 120
"""Columns of a terminal from which every figure has room."""


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print each metric in points of 100, with differences to the baseline over the common documents."""
    for metric in comparison.metrics:
        console.print(_table(comparison, metric, console.width >= WIDE))
    if comparison.judge is not None:
        print_judged(comparison, console)
    console.print(
        Text("differences: over the documents that both jobs scored; intervals: 95%, bootstrap", style="dim"),
        soft_wrap=True,
    )


def print_judged(comparison: Comparison, console: Console) -> None:
    """Print how each side fared against the baseline, in shares of the pairs that were read."""
    base = ", ".join(dict.fromkeys(side.name for side in comparison.sides if side.baseline))
    table = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 2, 0, 0), header_style="dim",
        title=f"against {base}, judged by {comparison.judge}", title_justify="left", title_style="bold",
    )  # fmt: skip
    table.add_column("judged", overflow="fold")
    for heading in JUDGED[:-1] if console.width < WIDE else JUDGED:
        table.add_column(heading, justify="right", no_wrap=heading != "margin")
    for label, side in _labelled(comparison):
        if side.judged is not None:
            table.add_row(label, *judged_row(side.judged)[: len(table.columns) - 1])
    console.print(table)
    for label, side in _labelled(comparison):
        if side.judged is not None and (left := _left_out(side.judged)):
            console.print(label + Text(f": {left}"), soft_wrap=True)
    console.print(Text(JUDGED_NOTE, style="dim"), soft_wrap=True)


JUDGED = "win", "tie", "lose", "margin", "of", "by order", "intervals of win, tie, lose"
JUDGED_NOTE = (
    "win: preferred in both orders; margin: win - lose; of: pairs whose verdicts were read; "
    "by order: share of them that swapping the answers changed"
)


def judged_row(one: Judged) -> list[str]:
    """Shares in points of 100."""
    shares = one.win, one.tie, one.lose
    margin = f"{points(one.margin.value)} ({_span(one.margin)})" if one.margin else "–"
    order = points(one.order.value if one.order else None)
    return [
        *(points(share.value if share else None) for share in shares), margin, f"{one.read:,} of {one.pairs:,}", order,
        ", ".join(map(_span, shares)),
    ]  # fmt: skip


def _left_out(one: Judged) -> str:
    """What is in no share, in words."""
    unread = f"{counted(one.unread, 'pair')} unread: the judge's verdict is none" if one.unread else ""
    unanswered = (
        f"{counted(one.unanswered, 'pair')} unanswered: the judge took or wrote nothing" if one.unanswered else ""
    )
    return "; ".join(filter(None, (unread, unanswered)))


def _span(one: Interval | None) -> str:
    return span(one.low, one.high) if one else "–"


def _labelled(comparison: Comparison) -> list[tuple[Text, Side]]:
    """Each side with its name and rate; with its job's id, too, where another's are the same."""
    names = [side.name + ("" if side.rate is None else f" at {side.rate:g}") for side in comparison.sides]
    return [
        (Text(name if names.count(name) == 1 else f"{name} ({side.job_id[:6]})"), side)
        for name, side in zip(names, comparison.sides, strict=True)
    ]


def _table(comparison: Comparison, metric: str, wide: bool) -> Table:
    """``wide`` has room for tokens, the means' own intervals and what the documents cost."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column(metric, overflow="fold")
    rows = [_row(side, metric, wide) for side in comparison.sides]
    for heading in rows[0]:
        table.add_column(heading, justify="right", no_wrap=True)
    for (label, _), row in zip(_labelled(comparison), rows, strict=True):
        table.add_row(label, *row.values())
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
