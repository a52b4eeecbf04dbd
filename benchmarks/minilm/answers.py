"""A task-like score: what of the answers to questions about a text is left when it is compressed unseen.

No target model is asked to speak: counted are reference answers that still stand word for word in the compressed text,
and how probable the first of them is to a small model that has read the compressed text and the question.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.minilm.labels import RATES, compressed
from pipeline.compression.reading import read
from pipeline.compression.scoring import Scorer, Window
from pipeline.models import LoadedModel, ModelPool

PARAGRAPHS, QUESTIONS = 5, 8
"""Neighbours of one article in a text; most questions asked about it."""

Found = dict[str, dict[str, float]]


@dataclass(frozen=True, slots=True)
class Asked:
    """A text, and questions about it with their reference answers."""

    text: str
    questions: tuple[tuple[str, tuple[str, ...]], ...]


def squad(data: Path, count: int, seed: int) -> list[Asked]:
    """``count`` texts of SQuAD 1.1's development set, below ``data``: paragraphs of one article, questions on them."""
    paragraphs = _rows(data / "squad" / "dev-v1.1.contexts.jsonl")
    asked: dict[str, list[tuple[str, tuple[str, ...]]]] = {}
    for row in _rows(data / "squad" / "dev-v1.1.questions.jsonl"):
        asked.setdefault(row["context_id"], []).append((row["question"], tuple(row["answers"])))
    articles: dict[str, list[dict[str, Any]]] = {}
    for one in paragraphs:
        articles.setdefault(one["title"], []).append(one)
    groups = [
        some[begin : begin + PARAGRAPHS] for some in articles.values() for begin in range(0, len(some), PARAGRAPHS)
    ]
    rng = np.random.default_rng(seed)
    found = []
    for place in rng.permutation(len(groups))[:count].tolist():
        questions = [one for paragraph in groups[place] for one in asked.get(paragraph["id"], [])]
        chosen = rng.permutation(len(questions))[:QUESTIONS].tolist()
        text = "\n\n".join(paragraph["context"] for paragraph in groups[place])
        found.append(Asked(text, tuple(questions[one] for one in chosen)))
    return found


def scores(
    some: Sequence[Asked],
    methods: Mapping[str, dict[str, Any]],
    reader: LoadedModel,
    batch_tokens: int,
    pool: ModelPool,
) -> Found:
    """By method (settings of its stage) and rate, and for the whole text and none: ``kept`` and ``nats``."""
    texts = [one.text for one in some]
    found: Found = {}
    for name, left in (("whole text", texts), ("no text", [""] * len(texts))):
        found[name] = _score(some, left, reader, batch_tokens)
    for name, method in methods.items():
        for rate in RATES:
            spans = compressed(texts, {**method, "rate": rate}, pool)
            left = [
                "" if kept is None else "".join(text[begin:end] for begin, end in kept.tolist())
                for text, kept in zip(texts, spans, strict=True)
            ]
            found[f"{name} {rate}"] = _score(some, left, reader, batch_tokens)
    return found


def _score(some: Sequence[Asked], left: Sequence[str], reader: LoadedModel, batch_tokens: int) -> dict[str, float]:
    """``kept``: share of questions of which a reference answer stands in what is left. ``nats``: of the first one."""
    pairs = [
        (text, question, answers) for one, text in zip(some, left, strict=True) for question, answers in one.questions
    ]
    kept = [any(answer.lower() in text.lower() for answer in answers) for text, _, answers in pairs]
    prompts = [f"{text}\n\nQuestion: {question}\nAnswer:" for text, question, _ in pairs]
    nats = _nats(reader, prompts, [f" {answers[0]}" for *_, answers in pairs], batch_tokens)
    return {"kept": round(float(np.mean(kept)), 4), "nats": round(float(np.mean(nats)), 4)}


def _nats(reader: LoadedModel, prompts: Sequence[str], answers: Sequence[str], batch_tokens: int) -> list[float]:
    """-log p of each whole answer after its prompt."""
    before, after = (reader.tokenizer(list(one), add_special_tokens=False)["input_ids"] for one in (prompts, answers))
    windows = [Window(np.array(one + two), len(one)) for one, two in zip(before, after, strict=True)]
    return [float(one.sum()) for one in read(Scorer(reader, batch_tokens), windows, lambda tokens: None)]


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
