"""What came out: a table of differences for each task, and an HTML page with its plot."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from sqlalchemy import Engine

from benchmarks.quality.matrix import Planned
from pipeline.accounting.report import render_comparison
from pipeline.accounting.wording import points, ratio, span
from pipeline.evaluation.comparing import Comparison, Side, compare
from pipeline.reporting import write_whole

Done = tuple[Planned, str]
"""A job that is done, with its id."""


def report(engine: Engine, out: Path, task: str, jobs: Sequence[Done]) -> str:
    """The task's table as Markdown; the same as ``TASK.json`` and ``TASK.html`` in ``out``."""
    found = compare(engine, [job for _, job in jobs])
    write_whole(out / f"{task}.json", json.dumps(found.to_json(), indent=1).encode())
    write_whole(out / f"{task}.html", render_comparison(found).encode())
    return "\n\n".join(_table(task, found, metric) for metric in found.metrics)


def against(engine: Engine, ours: Done, theirs: Sequence[Done]) -> str:
    """A job set against others, rate by rate in their order: what is compared has about the same tokens."""
    pairs = zip(_labels(ours), [label for one in theirs for label in _labels(one)], strict=True)
    rows = [compare(engine, [mine], baseline=its) for mine, its in pairs]
    metric = rows[0].metrics[0]
    lines = [f"| {metric}, equal tokens | prompt tokens | difference |", "|---|---:|---:|"]
    for found in rows:
        base, mine = found.sides
        tokens = f"{base.tokens or 0:,.0f} and {mine.tokens or 0:,.0f}"
        lines.append(f"| {_name(mine)} against {_name(base)} | {tokens} | {_difference(mine, metric)} |")
    return "\n".join(lines)


def _labels(done: Done) -> list[str]:
    planned, job = done
    return [f"{job}@{rate:g}" for rate in planned.spec.rates] or [job]


def _table(task: str, found: Comparison, metric: str) -> str:
    head = f"| {task}: {metric} | prompt tokens | times fewer | mean | 95% interval | scored | to the full prompt |"
    return "\n".join([head, "|---|" + "---:|" * 6, *(_row(side, metric) for side in found.sides)])


def _row(side: Side, metric: str) -> str:
    its = side.metrics[metric]
    tokens = "–" if side.tokens is None else f"{side.tokens:,.0f}"
    cells = [
        _name(side), tokens, ratio(side.ratio), points(its.value), span(its.low, its.high),
        f"{side.scored} of {side.documents}", "" if side.baseline else _difference(side, metric),
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _name(side: Side) -> str:
    return side.name.partition("-")[2] + ("" if side.rate is None else f", {1 / side.rate:.3g}x asked")


def _difference(side: Side, metric: str) -> str:
    its = side.metrics[metric]
    gap = f"{points(its.difference)} ({span(its.difference_low, its.difference_high)})"
    return gap if its.common == side.scored else f"{gap}, over {its.common}"
