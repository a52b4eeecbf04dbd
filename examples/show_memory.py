"""Sets answers of `make demo-memory` beside each other: from the text, from its slots, and from nothing.

    python examples/show_memory.py RUNS

RUNS is the output folder of the three jobs that examples/memory.toml names.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipeline.accounting.footprint import BYTES, read_shape
from pipeline.accounting.wording import size, visible
from pipeline.models import resolve

SIDES = {"the text": "memory-text", "its slots": "memory", "nothing": "memory-nothing"}
"""What is answered from, and the name of the job that does."""

MEANS = "tokens_prompt", "encode_seconds", "generate_seconds", "token_f1", "contains_answer"
"""Columns of their rows (docs/output.md)."""
WIDTHS = 6, 16, 9, 9, 10, 13

Row = dict[str, Any]
Rows = dict[str, Row]
"""By the id of their document."""


def read(runs: Path) -> dict[str, Rows]:
    """The rows of each side. Raises ``SystemExit`` for a job that is not there, or not done."""
    return {side: _rows(runs, name) for side, name in SIDES.items()}


def _rows(runs: Path, name: str) -> Rows:
    folders = [
        path for path in runs.glob(f"{name}-*/data") if re.fullmatch(rf"{name}-[0-9a-f]{{12}}", path.parent.name)
    ]
    if not folders:
        raise SystemExit(f"error: no finished job {name} in {runs}: run examples/memory.toml as it says at its head")
    newest = max(folders, key=lambda path: path.stat().st_mtime)
    return {row["doc_id"]: row for row in pq.read_table(newest).to_pylist()}


def answers(sides: dict[str, Rows], questions: dict[str, str]) -> str:
    """Every question with what is right, and what was answered. ``questions``: by the id of their document."""
    lines = []
    for doc_id, question in questions.items():
        right = json.loads(sides["the text"][doc_id]["answer"])[0]
        lines += [f"{question}  ({right})"]
        for side, rows in sides.items():
            row = rows[doc_id]
            said = " ".join(visible(row["generated"]).split())
            lines.append(f"  from {side:<9} ({row['tokens_prompt']:>3} read)  {said}")
        lines.append("")
    return "\n".join(lines)


def figures(sides: dict[str, Rows], place: int) -> str:
    """The means of each side. ``place``: bytes of keys and values that the model keeps for each token or slot it
    reads."""
    lines = [_line("answers from", "read", "kept to answer", "encode", "answer", "token F1", "right in it")]
    lines.append("-" * len(lines[0]))
    for side, rows in sides.items():
        of = {name: _mean(rows, name) for name in MEANS}
        kept, scores = size(round(of["tokens_prompt"] * place)), (of["token_f1"], of["contains_answer"])
        times = (f"{of[name]:.2f} s" if of[name] else "-" for name in ("encode_seconds", "generate_seconds"))
        lines.append(_line(side, f"{of['tokens_prompt']:.0f}", kept, *times, *(f"{100 * one:.1f}" for one in scores)))
    return "\n".join(lines)


def _mean(rows: Rows, name: str) -> float:
    return sum(row.get(name) or 0.0 for row in rows.values()) / len(rows)


def _line(first: str, *others: str) -> str:
    return f"{first:<14}" + "".join(f"{other:>{width}}" for other, width in zip(others, WIDTHS, strict=True))


NOTE = """
Means of {number} answers. read: tokens and slots of a prompt; kept to answer: keys and values of these, in float32.
Seconds are an answer's share of the work. token F1: words in common with the right answer, of 100; right in it:
answers that hold the right one, of 100. The model is small, and often wrong even from the text: read that first."""


def main() -> None:
    """Print all of it."""
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    sides = read(Path(sys.argv[1]))
    corpus = Path(__file__).with_name("memory.jsonl").read_text(encoding="utf-8")
    questions = {row["id"]: row["question"] for row in map(json.loads, corpus.splitlines())}
    model = next(iter(sides["its slots"].values()))["generate_model"]
    shape = read_shape(resolve(model).folder)
    assert shape is not None
    print(answers(sides, questions))
    print(figures(sides, 2 * shape.layers * shape.key_value_width * BYTES["float32"]))
    print(NOTE.format(number=len(questions)))


if __name__ == "__main__":
    main()
