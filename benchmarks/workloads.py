"""The prompts that speed is measured on: of a file, or from a folder of real texts (gsm8k, prose, squality, qmsum)."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, Literal

from schemas.document import PromptParts

INSTRUCTION = "Please reference the following examples to answer the math question,\n"
SHOTS = 14
CHARACTERS_PER_TOKEN = 6
"""More than English has."""

PIECE = 2**16
"""Characters that are tokenised at once."""

Demonstrations = Literal["drawn", "distinct", "fixed"]


def gsm8k(data: Path, count: int, demonstrations: Demonstrations = "drawn", seed: int = 0) -> list[PromptParts]:
    """Few-shot prompts: 14 solved training questions and one of the test.

    ``drawn``: demonstrations are drawn at random for each prompt, so that some come again in other prompts.
    ``distinct``: none comes again; where the training questions are used up, they get a number in front.
    ``fixed``: the same 14 in every prompt.
    """
    solved = [f"Question: {row['question']}\nLet's think step by step\n{row['answer']}" for row in _rows(data, "train")]
    asked = [f"Question: {row['question']}" for row in _rows(data, "test")]
    draw = random.Random(seed)
    draw.shuffle(asked)
    shown = _demonstrations(solved, demonstrations, draw)
    return [PromptParts(INSTRUCTION, next(shown), asked[place % len(asked)]) for place in range(count)]


def _demonstrations(solved: list[str], how: Demonstrations, draw: random.Random) -> Iterator[tuple[str, ...]]:
    fixed = tuple(draw.sample(solved, SHOTS))
    while how == "fixed":
        yield fixed
    while how == "drawn":
        yield tuple(draw.sample(solved, SHOTS))
    stream = _marked(draw.sample(solved, len(solved)))
    while True:
        yield tuple(islice(stream, SHOTS))


def documents(data: Path, count: int, tokens: int, tokenizer: Any) -> list[PromptParts]:
    """Single contexts of ``tokens`` tokens: books, stories and meetings end to end, cut without overlap.

    Where the texts are used up, pieces come again with a number in front: no two documents are equal.
    """
    return Library.of(data, count * tokens, tokenizer).documents(count, tokens)


@dataclass(frozen=True, slots=True)
class Library:
    """Texts end to end, and where their tokens begin: tokenised once, cut as often as need be."""

    text: str
    begins: list[int]

    @classmethod
    def of(cls, data: Path, tokens: int, tokenizer: Any) -> Library:
        """At least ``tokens`` tokens, where ``data`` has as many."""
        text = _at_least(_texts(data), CHARACTERS_PER_TOKEN * tokens)
        pieces = range(0, len(text), PIECE)  # some tokenizers take the square of a text's length
        found = tokenizer.backend_tokenizer.encode_batch(
            [text[start : start + PIECE] for start in pieces], add_special_tokens=False
        )
        return cls(text, [start + begin for start, one in zip(pieces, found, strict=True) for begin, _ in one.offsets])

    def documents(self, count: int, tokens: int) -> list[PromptParts]:
        """Single contexts of ``tokens`` tokens, without overlap; used up, they come again with a number in front."""
        cuts = [*self.begins[::tokens], *([len(self.text)] if len(self.begins) % tokens == 0 else [])]
        pieces = [self.text[begin:end] for begin, end in pairwise(cuts)]
        return [PromptParts(contexts=(piece,)) for piece in islice(_marked(pieces), count)]


def prose(data: Path, characters: int) -> str:
    """So many characters of English, over again where the texts are used up."""
    text = _at_least(_texts(data), characters)
    return (text * -(-characters // len(text)))[:characters]


def of_file(path: Path, count: int | None) -> list[PromptParts]:
    """``count`` prompts from the rows of ``path``, over and over; all of them once where no count is given.

    A row has ``instruction``, ``contexts`` and ``question``, or ``text``. Each further time its contexts get a number
    in front, so that none is scored once for all.
    """
    rows = list(_read(path))
    return [_parts(rows[place % len(rows)], place // len(rows)) for place in range(count or len(rows))]


def _parts(row: dict[str, Any], turn: int) -> PromptParts:
    contexts = row.get("contexts") or [row["text"]]
    mark = f"({turn}) " if turn else ""
    return PromptParts(row.get("instruction", ""), tuple(mark + text for text in contexts), row.get("question", ""))


def _at_least(texts: Iterator[str], characters: int) -> str:
    taken: list[str] = []
    while sum(map(len, taken)) < characters and (text := next(texts, None)) is not None:
        taken.append(text)
    return "\n\n".join(taken)


def _texts(data: Path) -> Iterator[str]:
    for path in sorted((data / "prose").glob("*.txt")):
        yield path.read_text(encoding="utf-8")
    for name in ("train", "dev"):
        yield from (row["document"] for row in _read(data / "squality" / f"{name}.jsonl"))
    yield from (row["transcript"] for row in _read(data / "qmsum" / "val.jsonl"))


def _marked(texts: list[str]) -> Iterator[str]:
    """The texts over and over, each further time with its number in front."""
    yield from texts
    turn = 1
    while True:
        yield from (f"({turn}) {text}" for text in texts)
        turn += 1


def _rows(data: Path, name: str) -> list[dict[str, Any]]:
    return list(_read(data / "gsm8k" / f"{name}.jsonl"))


def _read(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        raise SystemExit(f"{path}: no such file (--data names a folder with gsm8k, prose, squality and qmsum in it)")
    with path.open(encoding="utf-8") as file:
        yield from (json.loads(row) for row in file if row.strip())
