"""What an encoder is worth, on the terminal: its evaluation, and texts that it repeats."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.accounting.wording import counted, points, span, visible
from pipeline.evaluation.display import print_comparison

if TYPE_CHECKING:
    from pipeline.evaluation.bootstrap import Interval
    from pipeline.memory.evaluated import Continued, Evaluation, Latency, Repeated, Stored
    from pipeline.memory.repeating import Repetition

REPEATED = "kind", "tokens", "slots", "BLEU-4", "interval", "prefix", "likeliest", "nats"
STORED = "kind", "tokens", "slots", "stored", "BLEU-4", "difference", "prefix", "nats"
CONTINUED = "kind", "tokens", "slots", "alone", "text", "last tokens", "slots", "kept"
REPETITIONS = "text", "tokens", "bytes", "slots", "their bytes", "BLEU-4", "prefix"
LATENCIES = "tokens", "slots", "encode, ms", "read slots, ms", "read text, ms"


def print_evaluation(found: Evaluation, console: Console) -> None:
    """What comes back of contexts, what their slots say of what follows, and what that takes."""
    tables = {
        "repeated from slots": (REPEATED, [repeated_row(one) for one in found.repeated]),
        "by how slots are stored": (STORED, [stored_row(one) for one in found.stored if found.compares_forms]),
        "perplexity of what follows": (CONTINUED, [continued_row(one) for one in found.continued]),
        "seconds for one context": (LATENCIES, [latency_row(one) for one in found.latencies]),
    }
    for note in notes(found):
        console.print(note, soft_wrap=True)
    for title, (headings, rows) in tables.items():
        if rows:
            console.print(_table(title, headings, rows))
    for kind, size in dict.fromkeys(found.short):
        console.print(f"{kind}: no text has {size} tokens", markup=False, soft_wrap=True)
    if found.answers is not None:
        print_comparison(found.answers, console)


def notes(found: Evaluation) -> list[str]:
    """What is to be known before its tables are read, a line each."""
    said = []
    if found.unfinished:
        said.append(f"interrupted after {found.measured} of {found.total}: the tables are of those")
    if found.starts:
        said.append("contexts are the first tokens of texts (of those of --texts)")
    if found.refine:
        also = f" and {counted(found.continuations, 'continuation')} of each" if found.continuations else ""
        said.append(f"slots were fitted to their spans{also} first, in {counted(found.refine, 'step')} at most")
    return said


def repeated_row(one: Repeated) -> list[str]:
    """In points of 100; nats a token."""
    bleu: Interval | None = one.bleu4
    said = [points(bleu.value), span(bleu.low, bleu.high)] if bleu else ["–", "–"]
    rest = [points(one.prefix.value), points(one.agreement.value), f"{one.nats.value:.3f}"]
    return [one.kind, f"{one.tokens:,}", f"{one.slots:,}", *said, *rest]


def stored_row(one: Stored) -> list[str]:
    """Scores and their difference to the first form's in points of 100; nats a token."""
    apart, said = one.difference, points(one.bleu4.value if one.bleu4 else None)
    gap = f"{points(apart.value)} ({span(apart.low, apart.high)})" if apart else "–"
    rest = [said, gap, points(one.prefix.value), f"{one.nats.value:.3f}"]
    return [one.kind, f"{one.tokens:,}", f"{one.slots:,}", one.form, *rest]


def continued_row(one: Continued) -> list[str]:
    """Perplexities, and the share kept in points of 100."""
    behind = [f"{value:.2f}" for value in (one.none, one.full, one.tail, one.behind_slots)]
    return [one.kind, f"{one.tokens:,}", f"{one.slots:,}", *behind, points(one.kept)]


def latency_row(one: Latency) -> list[str]:
    """In milliseconds."""
    times = [f"{1e3 * value:.2f}" for value in (one.encode, one.read_slots, one.read_text)]
    return [f"{one.tokens:,}", f"{one.slots:,}", *times]


def _table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 2, 0, 0), header_style="dim",
        title=title, title_justify="left", title_style="bold",
    )  # fmt: skip
    for place, heading in enumerate(headings):
        whole = place > 0 and heading != "difference"  # where the terminal is narrow, its interval goes below
        table.add_column(heading, justify="left" if place == 0 and heading == "kind" else "right", no_wrap=whole)
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def print_repetitions(repeated: Sequence[Repetition], read: Sequence[str], console: Console, most: int | None) -> None:
    """Each text, and where it was ``read``, above what comes back of it; then all in figures. ``most``: characters that
    are shown."""
    rows = []
    for number, (one, source) in enumerate(zip(repeated, read, strict=True), 1):
        more = Text(" ..." if most is not None and len(one.text) > most else "", "dim")
        found = marked(visible(one.text), visible(one.found), console.is_terminal)
        head = Text(f"text {number}", "bold") + Text(f"  {source}", "not bold dim")
        console.print(head, Text(visible(one.text[:most])) + more, sep="\n")
        console.print(Text(f"from its {counted(one.slots, 'slot')}", "bold"), found[:most] + more, sep="\n")
        console.print()
        rows.append(repetition_row(number, one))
    console.print(_table("repeated from slots alone", REPETITIONS, rows))


def repetition_row(number: int, one: Repetition) -> list[str]:
    """Counts, bytes; scores in points of 100."""
    counts = [f"{value:,}" for value in (one.tokens, len(one.text.encode()), one.slots, one.bytes)]
    return [str(number), *counts, points(one.bleu4), points(one.prefix)]


def marked(text: str, found: str, coloured: bool) -> Text:
    """``found``, with its words marked that do not stand there in ``text`` (red, or in brackets), and those of it in
    whose place nothing stands (struck out, or in ``[- -]``)."""
    before, after = text.split(), found.split()
    pieces = []
    for what, first, last, begin, end in difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        words, missing = " ".join(after[begin:end]), " ".join(before[first:last])
        if what == "equal":
            pieces.append(Text(words))
        elif words:
            pieces.append(Text(words if coloured else f"[{words}]", "red"))
        else:
            pieces.append(Text(missing if coloured else f"[-{missing}-]", "red strike"))
    return Text(" ").join(pieces)
