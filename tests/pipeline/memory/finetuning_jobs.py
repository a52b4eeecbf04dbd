"""Questions about contexts, and a stage that learns to answer them in a second or two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pipeline.holding_out import is_held_out
from pipeline.memory.stage import Finetune
from schemas.document import Document, PromptParts, context_hash
from schemas.job import TargetSpec
from schemas.memory import FinetuneSpec

SETTINGS: dict[str, Any] = {
    "kind": "finetune",
    "encoder": {"rank": 4, "alpha": 8.0},
    "lessons": [{"tokens": 12, "ratio": 2.0, "share": 0.5}, {"tokens": 16, "ratio": 2.0, "share": 0.5}],
    "steps": 24,
    "rows_per_step": 8,
    "warmup": 2,
    "learning_rate": 1e-2,
    "memory_rate": 1.0,
    "held_out": 0.3,
    "measured": 3,
    "max_new_tokens": 8,
    "multi_span": 0.25,
    "autoencoding": 0.25,
    "checkpoint_seconds": 0.0,
}
QUESTIONS = {"How many are there?": "There are a few of them.", "What comes then?": "Then comes the end."}
WORDS = ["the", "clips", "sold", "half", "a", "dozen", "in", "May", "and", "April", "for", "3", "dollars", "each"]


def row(number: int, contexts: tuple[str, ...], question: str, answer: str | None, instruction: str = "") -> Document:
    parts = PromptParts(instruction, contexts, question)
    return Document(number, f"r{number}", parts, parts.content_hash(), answer=answer)


def rows(contexts: int = 14) -> list[Document]:
    """Each context, of 8 to 60 tokens, with every question: a random model learns no more than what is answered."""
    random = np.random.default_rng(0)
    texts = [" ".join(random.choice(WORDS, 7 + 3 * at)) for at in range(contexts)]
    asked = [(text, *each) for text in texts for each in QUESTIONS.items()]
    return [row(number, (text,), question, answer) for number, (text, question, answer) in enumerate(asked)]


ROWS = rows()


def stage(model: Path, **changes: Any) -> Finetune:
    return Finetune(FinetuneSpec.model_validate({**SETTINGS, **changes}), TargetSpec(model=str(model)))


REHEARSAL: dict[str, Any] = {"weight": 0.25, "tokens_per_step": 96, "autoencoding": 0.75}


def texts(number: int) -> list[Document]:
    """Of the contexts that are not held out, end to end, in ever another order."""
    said = list(dict.fromkeys(one.parts.contexts[0] for one in ROWS))
    said = [one for one in said if not is_held_out(context_hash(one), SETTINGS["held_out"])]
    return [row(200 + at, (" ".join(said[at:] + said[:at]),), "", None) for at in range(number)]


def rehearsing(model: Path, **changes: Any) -> Finetune:
    return stage(model, **{"rehearsal": REHEARSAL, **changes})
