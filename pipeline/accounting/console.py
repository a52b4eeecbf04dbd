"""What the terminal shows: the estimate before a run, the summary at its end."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.accounting.estimate import Estimate
from pipeline.accounting.figures import DraftingFigures, EvaluationFigures, RateFigures, StageFigures, Summary
from pipeline.accounting.savings import Saving
from pipeline.accounting.wording import amount, count, counted, duration, money, percent, points, ratio, size, span

SHOWN = 5
"""Reasons of failure that are named; the report has them all."""
WIDE = 100
"""Columns of a terminal from which every column of figures has room."""


def print_summary(summary: Summary, console: Console) -> None:
    """Print what became of the documents, tokens and seconds by stage, money saved per price, and where things are."""
    d = summary.documents
    took = "" if summary.wall_seconds is None else f" in {duration(summary.wall_seconds)}"
    console.print(_line(f"{summary.name} ", summary.state, f"{took} ({summary.job_id})"))
    if summary.error:
        console.print(Text(summary.error, style="red"), soft_wrap=True)  # a path in it is there to be copied
    parts = [("done", d.done), ("of them reused", d.reused), ("rejected", d.rejected), ("dead", d.dead)]
    parts += [("pending", d.pending)] if d.pending else []
    parts += [("collapsed", d.collapsed)] if d.collapsed else []
    console.print(Text("documents  " + "   ".join(f"{name} {number:,}" for name, number in parts)))
    for rejection in summary.rejections[:SHOWN]:
        console.print(Text(f"  {rejection.count:,} {rejection.status} in {rejection.stage}: {rejection.code}"))
    if rest := sum(rejection.count for rejection in summary.rejections[SHOWN:]):
        console.print(Text(f"  {rest:,} for other reasons"))
    console.print(_stages(summary.stages, console.width >= WIDE))
    for line in _copied(summary):
        console.print(Text(line))
    if summary.evaluations:
        console.print(_evaluations(summary.evaluations))
    for drafting in summary.drafting:
        console.print(_drafting(drafting))
        for name in drafting.idle:
            console.print(Text(f"{name} drafted nothing: it did not pay, or the log says why"))
    if summary.savings:
        console.print(_savings(summary.savings))
    if summary.rates:
        console.print(_rates(summary.rates))
    for line in (*_money(summary), *_estimate(summary)):
        console.print(Text(line))
    console.print(_places(summary), soft_wrap=True)


def print_estimate(made: Estimate, console: Console) -> None:
    """Print what a job would take: tokens, worker time, peak memory and money, and what each of them rests on."""
    head = f"{counted(made.documents, 'document')}, {counted(made.characters, 'character')}"
    head += f", about {counted(made.tokens, 'token')}"
    console.print(Text(head, style="bold"))
    table = _table("stage", "tokens in", "tokens out", "on", "time", "memory")
    table.columns[0].no_wrap = True
    for stage in made.stages:
        memory = "-" if stage.memory_bytes == 0 else size(stage.memory_bytes)
        cells = (stage.device, duration(stage.seconds), memory)
        table.add_row(stage.kind, count(stage.tokens_in), count(stage.tokens_out), *cells)
    console.print(table)
    for stage in made.stages:
        if stage.hosted:
            bill = f"{money(stage.expected_microusd)}, at most {money(stage.worst_microusd)}"
            console.print(Text(f"calls cost {bill}"))
    if made.savings:
        console.print(_savings(made.savings, "would save at"))
    notes = [f"{stage.kind}: {note}" for stage in made.stages for note in stage.notes]
    for note in dict.fromkeys((*made.notes, *notes)):
        console.print(Text(f"note: {note}", style="dim"))


def _line(before: str, state: str, after: str) -> Text:
    style = {"done": "bold green", "running": "bold cyan"}.get(state, "bold red")
    return Text.assemble((before, "bold"), (state, style), after)


def _table(*headings: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for place, heading in enumerate(headings):
        table.add_column(heading, justify="right" if place else "left", no_wrap=place > 0, overflow="fold")
    return table


def _stages(stages: Iterable[StageFigures], wide: bool) -> Table:
    """``wide`` has room for the kept share and the latencies."""
    kept, latency = (("kept",), ("p50", "p99")) if wide else ((), ())
    table = _table("tokens", "before", "asked for", "achieved", *kept, "seconds", "tokens/s", *latency, "cost")
    table.columns[0].no_wrap = True
    for stage in stages:
        speed = stage.tokens_in_per_second
        table.add_row(
            stage.kind,
            count(stage.tokens_in),
            "-" if stage.tokens_asked is None else count(stage.tokens_asked),
            count(stage.tokens_out),
            *("-" if stage.tokens_asked is None else percent(stage.tokens_out, stage.tokens_in) for _ in kept),
            f"{stage.seconds:,.1f}",
            "-" if speed is None else count(speed),
            *(duration(stage.latency[p[1:]]) if stage.latency else "-" for p in latency),
            _cost(stage),
        )
    return table


def _evaluations(rows: Sequence[EvaluationFigures]) -> Table:
    """Every mean with what it is over: a document that gave no answer is in none of them."""
    rates = any(row.rate is not None for row in rows)
    table = _table("points of 100", *(("rate", "ratio") if rates else ()), "mean", "95% interval", "scored")
    table.columns[0].no_wrap = True
    for row in rows:
        rate = (f"{row.rate:g}", ratio(row.ratio)) if rates else ()
        scored = f"{row.scored:,} of {row.documents:,}"
        table.add_row(row.metric, *rate, points(row.value), span(row.low, row.high), scored)
    return table


def _drafting(drafting: DraftingFigures) -> Table:
    """The target's line says what drafting came to, the others what each model drafted."""
    table = _table("drafted by", "passes", "drafted", "accepted", "share", "tokens a pass", "SWI")
    for place, one in enumerate(drafting.models):
        share = "-" if one.share is None else f"{one.share:.0%}"
        drafts = ("-", "-", "-") if place == 0 else (count(one.drafted), count(one.accepted), share)
        whole = ("", "") if place else (f"{drafting.tokens_per_pass:.2f}", f"{drafting.swi:.2f}")
        table.add_row(f"for {one.model}" if place == 0 else one.model, count(one.passes), *drafts, *whole)
    return table


def _cost(stage: StageFigures) -> str:
    if stage.cost_microusd is None:
        return money(None) if stage.unpriced else "-"
    return f"{'≥ ' if stage.unpriced else ''}{money(stage.cost_microusd)}"


def _savings(savings: Sequence[Saving], heading: str = "saved at") -> Table:
    """``savings`` is not empty; tokens and worker time are the same at every price."""
    removed, worker = count(savings[0].tokens_removed), money(savings[0].worker_microusd)
    table = _table(heading, f"{removed} tokens", f"less {worker} work", "even at tok/s")
    for saving in savings:
        style = "" if saving.net_microusd is None else "green" if saving.net_microusd >= 0 else "red"
        table.add_row(
            Text(saving.target),
            money(saving.gross_microusd),
            Text(money(saving.net_microusd), style=style),
            "-" if saving.break_even is None else count(saving.break_even),
        )
    return table


def _rates(rates: Sequence[RateFigures]) -> Table:
    """One line per rate, with what it alone would save at the first known price."""
    known = next((place for place, saving in enumerate(rates[0].savings) if saving.net_microusd is not None), None)
    table = _table("rate", "documents", "before", "asked for", "achieved", "kept", "seconds", "net saved")
    for one in rates:
        table.add_row(
            f"{one.rate:g}",
            f"{one.compressed:,}" + ("" if one.compressed == one.documents else f" of {one.documents:,}"),
            *map(count, (one.tokens_in, one.tokens_asked, one.tokens_out)),
            percent(one.tokens_out, one.tokens_in),
            f"{one.seconds:,.1f}",
            "-" if known is None else money(one.savings[known].net_microusd),
        )
    return table


def _money(summary: Summary) -> list[str]:
    lines = []
    if summary.budget:
        b = summary.budget
        lines.append(f"budget     {money(b.spent_microusd)} spent of {money(b.limit_microusd)}")
    unpriced = sum(stage.unpriced for stage in summary.stages)
    if unpriced:
        lines.append(f"cost       unknown for {unpriced:,} of the answers, which are not in the sum")
    rowless = sum(stage.rowless_microusd for stage in summary.stages)
    if rowless:
        lines.append(f"cost       {money(rowless)} of it for answers without a row (refused, or uncommitted)")
    for row in summary.requests:
        if row.state == "lost":
            bill = "at unknown cost" if row.reserved_microusd is None else f"at most {money(row.reserved_microusd)}"
            lines.append(f"calls      {row.calls:,} lost: nobody saw their end; perhaps billed, {bill}")
    return lines


def _copied(summary: Summary) -> list[str]:
    return [
        f"copied     {stage.copied:,} of {counted(stage.documents, 'document')}: no longer than asked for"
        for stage in summary.stages
        if stage.copied
    ]


def _estimate(summary: Summary) -> list[str]:
    shown = [
        r for r in summary.comparisons if r.unit in ("seconds", "microusd") and None not in (r.estimated, r.actual)
    ]
    lines = [f"{r.what} {amount(r.estimated, r.unit)}, was {amount(r.actual, r.unit)}" for r in shown]
    return [f"{'' if place else 'estimate':<10} {line}" for place, line in enumerate(lines)]


def _places(summary: Summary) -> Text:
    data = {"parquet": summary.places.data} if summary.state == "done" else {}  # published at the end
    held = summary.places.slot_bytes
    slots = {"slots": f"{summary.places.output.rstrip('/')}/slots ({size(held)})"} if held is not None else {}
    places = {**data, **slots, "database": summary.places.database, **summary.places.files}
    # One line each and never wrapped: a path is there to be copied.
    return Text("\n".join(f"{name:<10} {path}" for name, path in places.items()))
