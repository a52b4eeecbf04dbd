"""Passages of free text: what the teacher compresses and the student learns from."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from pipeline.reporting import write_whole

SHARES = {
    "books": 0.40, "python-docs": 0.15, "qmsum-train": 0.13, "gsm8k": 0.10, "debian": 0.08, "speeches": 0.08,
    "squality-train": 0.05, "wikipedia-qed": 0.01,
}  # fmt: skip
"""Of the characters, by source: the corpus is two thirds novels, prompts are not."""

SHORTEST, LONGEST = 300, 4500
"""Characters of a passage, evenly spread on a logarithmic scale: most prompts' parts are short, and every source text
is no longer. The long ones are twice what the encoder reads at once: it must not learn that a window begins a text."""

HELD_OUT = 0.04
NOTES = re.compile(r"<<.*?>>")
"""GSM8K's notes for a calculator, which no prompt has."""

EXAMPLES = 5  # questions with their answers in a passage of GSM8K


@dataclass(frozen=True, slots=True)
class Passage:
    """``held`` passages are never trained on; whole documents are held out, so no passage has a trained neighbour."""

    id: str
    source: str
    held: bool
    text: str


def collect(data: Path, characters: int, seed: int) -> list[Passage]:
    """About ``characters`` of passages from the corpus below ``data`` and its GSM8K, mixed by ``SHARES``, shuffled."""
    by_source: dict[str, list[Passage]] = {}
    for source, id_, held, text in _documents(data):
        rng = np.random.default_rng([seed, int(_hash(id_)[:8], 16)])
        some = [Passage(f"{id_}:{begin}", source, held, piece) for begin, piece in cut(text, rng)]
        by_source.setdefault(source, []).extend(some)
    order = np.random.default_rng(seed)
    chosen = [
        one for source, share in SHARES.items() for one in _some(by_source.get(source, []), share * characters, order)
    ]
    order.shuffle(chosen)
    return chosen


def cut(text: str, rng: np.random.Generator) -> Iterator[tuple[int, str]]:
    """The text in passages of random lengths, cut where a paragraph, a line, a sentence or at least a word ends."""
    begin = 0
    while begin < len(text):
        end = begin + int(np.exp(rng.uniform(np.log(SHORTEST), np.log(LONGEST))))
        if end < len(text):
            least = begin + (end - begin) * 2 // 3
            ends = (text.rfind(mark, least, end) + len(mark) for mark in ("\n\n", "\n", ". ", " "))
            end = next((one for one in ends if one > least), end)
        if text[begin:end].strip() and end - begin >= SHORTEST // 2:
            yield begin, text[begin:end].strip()
        begin = end


def made_from(data: Path, characters: int, seed: int) -> dict[str, object]:
    """All that ``collect`` depends on."""
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in _files(data)}
    fixed = {"shares": SHARES, "shortest": SHORTEST, "longest": LONGEST, "held": HELD_OUT, "examples": EXAMPLES}
    return {"files": files, "characters": characters, "seed": seed, **fixed}


def write(passages: list[Passage], path: Path) -> None:
    """As JSON lines, compressed; whole or not at all."""
    lines = "".join(json.dumps(asdict(one), ensure_ascii=False) + "\n" for one in passages)
    write_whole(path, gzip.compress(lines.encode(), mtime=0))


def read(path: Path) -> list[Passage]:
    """What ``write`` wrote."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [Passage(**json.loads(line)) for line in file]


def _documents(data: Path) -> Iterator[tuple[str, str, bool, str]]:
    """Source, id, whether it is held out, and text. The corpus's own valid part is held out whole."""
    train, valid, gsm8k = _files(data)
    for path in (train, valid):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            for row in map(json.loads, file):
                yield _source(row), row["id"], path == valid or _held(row["id"]), row["text"]
    with gsm8k.open(encoding="utf-8") as file:
        rows = [f"Question: {row['question']}\n{NOTES.sub('', row['answer'])}" for row in map(json.loads, file)]
    for begin in range(0, len(rows), EXAMPLES):
        yield "gsm8k", f"gsm8k-{begin}", _held(f"gsm8k-{begin}"), "\n\n".join(rows[begin : begin + EXAMPLES])


def _files(data: Path) -> tuple[Path, Path, Path]:
    return data / "corpus" / "train.jsonl.gz", data / "corpus" / "valid.jsonl.gz", data / "gsm8k" / "train.jsonl"


def _source(row: dict[str, str]) -> str:
    return row["source"].split("/")[0]


def _held(id_: str) -> bool:
    return int(_hash(id_)[8:16], 16) < HELD_OUT * 2**32


def _hash(id_: str) -> str:
    return hashlib.sha256(id_.encode()).hexdigest()


def _some(passages: list[Passage], characters: float, rng: np.random.Generator) -> list[Passage]:
    order = rng.permutation(len(passages))
    lengths = np.cumsum([len(passages[place].text) for place in order])
    return [passages[place] for place in order[: int(np.searchsorted(lengths, characters, side="right"))].tolist()]
