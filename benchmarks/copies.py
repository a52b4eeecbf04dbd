"""How many tokens a pass copied drafts give, from answers that are there: no model is needed, as drafts change none.

    python -m benchmarks.copies ANSWERS.parquet --corpus CORPUS.jsonl --tokenizer MODEL --copied 3 7

ANSWERS are results of jobs (``doc_id``, ``generated``, and ``compressed`` where prompts were); CORPUS has ``id``,
``instruction``, ``contexts`` and ``question`` of their documents. For each job: tokens a pass where a target that says
just these answers checks so many copied tokens at once, copied from the prompt as it was sent and the answer so far;
and, where prompts were compressed, from their originals, too.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from benchmarks.measuring import save, table
from benchmarks.quality.corpora import read
from pipeline.generation.maxgram import PADDING, propose
from pipeline.models import load_tokenizer
from schemas.document import SEPARATOR

_ROWS = 50
"""Answers worked on at once."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Tokens of an answer, of the prompt it was given to, and of that prompt's original where it is another."""

    original: Sequence[int]
    prompt: Sequence[int]
    tokens: Sequence[int]


def main() -> None:
    arguments = _parse()
    found = []
    for job, answers in _answers(arguments).items():
        compressed = any(one.original for one in answers)
        for whole in (False, True) if compressed else (False,):
            row: dict[str, Any] = {"job": job, "copied from": "original and prompt" if whole else "prompt"}
            row["answers"] = len(answers)
            row |= {f"copies {count}": tokens_a_pass(answers, count, whole) for count in arguments.copied}
            found.append(row)
            print(json.dumps(row), flush=True)
    save(arguments.json, {"rows": found})
    print(table(found, list(found[0])))


def tokens_a_pass(answers: Sequence[Answer], count: int, whole: bool) -> float:
    """The reading of the prompt is a pass, too, which gives the first token."""
    tokens = sum(len(one.tokens) for one in answers)
    return tokens / sum(_passes(answers[at : at + _ROWS], count, whole) for at in range(0, len(answers), _ROWS))


def _passes(answers: Sequence[Answer], count: int, whole: bool) -> int:
    known = [[*(one.original if whole else ()), *one.prompt, one.tokens[0]] for one in answers]
    width = max(len(text) + len(one.tokens) for text, one in zip(known, answers, strict=True)) + count
    lines = torch.full((len(answers), PADDING + width), -1)
    for row, text in enumerate(known):
        lines[row, PADDING : PADDING + len(text)] = torch.tensor(text)
    length = torch.tensor([PADDING + len(text) for text in known])
    said = [np.array(one.tokens) for one in answers]
    made, passes = np.ones(len(answers), np.int64), len(answers)
    while len(going := np.flatnonzero(made < [len(one) for one in said])):
        drafts = propose(lines[going], length[going], count).numpy()
        for row, draft in zip(going.tolist(), drafts, strict=True):
            ahead = said[row][made[row] : made[row] + count + 1]
            right = np.logical_and.accumulate(draft[: len(ahead) - 1] == ahead[:-1])
            new = ahead[: 1 + int(right.sum())]
            lines[row, length[row] : length[row] + len(new)] = torch.from_numpy(new)
            length[row] += len(new)
            made[row] += len(new)
            passes += 1
    return passes


def _answers(arguments: argparse.Namespace) -> dict[str, list[Answer]]:
    """By job and rate; of at most ``--documents``, and where prompts were compressed of those whose text is there."""
    tokenizer = load_tokenizer(arguments.tokenizer)
    corpus = {row["id"]: row for row in read(arguments.corpus)}

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    found: dict[str, list[Answer]] = defaultdict(list)
    for name, row in _rows(arguments):
        whole = corpus.get(row["doc_id"].partition("@")[0])
        if whole is None or len(found[name]) == arguments.documents:
            continue
        parts = whole["instruction"], *whole["contexts"], whole["question"]
        original = encode(SEPARATOR.join(part for part in parts if part))
        tokens = encode(row["generated"])
        if len(tokens) > 1:
            compressed = row.get("compressed")
            found[name].append(
                Answer(original, encode(compressed), tokens) if compressed else Answer([], original, tokens)
            )
    return {name: answers for name, answers in sorted(found.items()) if answers}


def _rows(arguments: argparse.Namespace) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for path in arguments.answers:
        data = pq.read_table(path)
        columns = {"doc_id", "generated", "compressed", "tokens_compressed", "job"} & set(data.column_names)
        for row in data.select(sorted(columns)).to_pylist():
            sent = row.get("compressed") or row.get("tokens_compressed") is None  # else its prompt is not there
            rate = row["doc_id"].partition("@")[2]
            if row["generated"] and sent:
                yield f"{row.get('job') or path.parent.name}{f' at {rate}' if rate else ''}", row


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("answers", type=Path, nargs="+", metavar="ANSWERS")
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--tokenizer", required=True, help="the target's")
    parser.add_argument("--copied", type=int, nargs="+", default=[3, 7])
    parser.add_argument("--documents", type=int, default=200, help="of each job, at most")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
