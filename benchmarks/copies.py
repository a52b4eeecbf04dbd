"""How many tokens a pass copied drafts give, from answers that are there: no model is needed, as drafts change none.

    python -m benchmarks.copies ANSWERS.parquet --corpus CORPUS.jsonl --tokenizer MODEL --copied 3 7
    python -m benchmarks.copies tests/data/decoding/smollm2_greedy.parquet --earlier 0 512 2048 8192

ANSWERS are results of jobs (``doc_id``, ``generated``, and ``compressed`` where prompts were); CORPUS has ``id``,
``instruction``, ``contexts`` and ``question`` of their documents. Or they are token ids, ``prompt`` and ``answer``
(those of ``exact_decoding``). For each job: tokens a pass where a target that says just these answers checks so many
copied tokens at once, copied from the prompt as it was sent and the answer so far; where prompts were compressed, from
their originals, too; and with ``--earlier`` from so many tokens of the answers before, ``--rows`` of which are written
at once, where nothing matches with and without what their bigrams say.
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
from pipeline.generation.earlier import Earlier
from pipeline.generation.maxgram import PADDING, chained, propose
from pipeline.models import load_tokenizer
from schemas.document import SEPARATOR


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
            for earlier in arguments.earlier:
                for bigrams in (False, True) if earlier else (False,):
                    row: dict[str, Any] = {"job": job, "copied from": "original and prompt" if whole else "prompt"}
                    row |= {"earlier": earlier, "bigrams": bigrams, "answers": len(answers)}
                    way = Way(whole, earlier, bigrams, arguments.rows)
                    row |= {f"copies {count}": tokens_a_pass(answers, count, way) for count in arguments.copied}
                    found.append(row)
                    print(json.dumps(row), flush=True)
    save(arguments.json, {"rows": found})
    print(table(found, list(found[0])))


@dataclass(frozen=True, slots=True)
class Way:
    """What is copied from beside prompt and answer: the ``whole`` original, so many tokens of ``earlier`` answers, and
    their ``bigrams`` where nothing matches. So many ``rows`` are written at once."""

    whole: bool = False
    earlier: int = 0
    bigrams: bool = False
    rows: int = 50


def tokens_a_pass(answers: Sequence[Answer], count: int, way: Way) -> float:
    """The reading of the prompt is a pass, too, which gives the first token."""
    tokens, passes = sum(len(one.tokens) for one in answers), 0
    earlier = Earlier(1 + max(max(one.tokens) for one in answers))
    for at in range(0, len(answers), way.rows):
        some = answers[at : at + way.rows]
        passes += _passes(some, count, way, earlier)
        for one in some if way.earlier else ():
            earlier.add(one.tokens, way.earlier)
        earlier.count()
    return tokens / passes


def _passes(answers: Sequence[Answer], count: int, way: Way, earlier: Earlier) -> int:
    before = earlier.text(way.earlier).tolist() if way.earlier else []
    known = [[*before, *(one.original if way.whole else ()), *one.prompt, one.tokens[0]] for one in answers]
    width = max(len(text) + len(one.tokens) for text, one in zip(known, answers, strict=True)) + count
    lines = torch.full((len(answers), PADDING + width), -1)
    for row, text in enumerate(known):
        lines[row, PADDING : PADDING + len(text)] = torch.tensor(text)
    chains = torch.zeros(len(earlier.follows), count, dtype=torch.int32) if way.bigrams else None
    if chains is not None:
        chained(torch.from_numpy(earlier.follows), chains)
    length = torch.tensor([PADDING + len(text) for text in known])
    said = [np.array(one.tokens) for one in answers]
    made, passes = np.ones(len(answers), np.int64), len(answers)
    while len(going := np.flatnonzero(made < [len(one) for one in said])):
        drafts = propose(lines[going], length[going], count, chains).numpy()
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
    if not arguments.corpus:
        return {path.stem: _told(path, arguments.documents) for path in arguments.answers}
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


def _told(path: Path, most: int) -> list[Answer]:
    """Of token ids."""
    return [Answer([], row["prompt"], row["answer"]) for row in pq.read_table(path).to_pylist()[:most]]


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
    parser.add_argument("--corpus", type=Path, help="without it, answers are token ids")
    parser.add_argument("--tokenizer", help="the target's")
    parser.add_argument("--copied", type=int, nargs="+", default=[3, 7])
    parser.add_argument("--documents", type=int, default=200, help="of each job, at most")
    parser.add_argument("--earlier", type=int, nargs="+", default=[0], help="tokens of earlier answers")
    parser.add_argument("--rows", type=int, default=50, help="answers written at once")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if bool(arguments.corpus) != bool(arguments.tokenizer):
        parser.error("--corpus and --tokenizer: both, or neither")
    return arguments


if __name__ == "__main__":
    main()
