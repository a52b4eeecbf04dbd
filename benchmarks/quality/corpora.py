"""What the corpora of all tasks share: rows of JSON lines, as the pipeline reads them."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypedDict

from pipeline.reporting import write_whole


class Row(TypedDict):
    """One prompt with its reference answer: a document of the pipeline."""

    id: str
    instruction: str
    contexts: list[str]
    question: str
    answer: str


def read(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a JSON lines file."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def write(path: Path, rows: Iterable[Row]) -> int:
    """Write rows as JSON lines, whole or not at all; returns their number. A file that says the same stays as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    text = "".join(lines).encode()
    if not path.is_file() or path.read_bytes() != text:
        write_whole(path, text)
    return len(lines)


def several(answers: Sequence[str]) -> str:
    """Reference answers as one column holds them: a JSON list, each of them right."""
    return json.dumps(list(dict.fromkeys(answers)), ensure_ascii=False)


def drawn(name: str) -> random.Random:
    """Chance that follows from a name: the same corpus every time, on every machine."""
    return random.Random(f"contextmill {name}")
