"""A small corpus of prompts with answers, and stages that learn from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.alignment.stage import Align
from schemas.align import AlignSpec
from schemas.document import Document, PromptParts
from schemas.job import TargetSpec


def document(number: int, answer: str | None = None) -> Document:
    parts = PromptParts(contexts=(f"What is {number} plus {number * 3}? " + "Think about it. " * (number % 4),))
    text = answer if answer is not None else f"The answer is that {number} plus {number * 3} gives {number * 4}."
    return Document(number, f"d{number}", parts, parts.content_hash(), answer=text)


DOCUMENTS = [document(number) for number in range(24)]


def spec(model: Path | str, **changes: Any) -> AlignSpec:
    """Few steps of several passes, large enough to be seen."""
    given = {"epochs": 2, "documents_per_step": 6, "learning_rate": 1e-2, "held_out": 0.2, "checkpoint_seconds": 0.0}
    return AlignSpec.model_validate({"kind": "align", "model": str(model), "batch_tokens": 130, **given, **changes})


def stage(model: Path | str, **changes: Any) -> Align:
    return Align(spec(model, **changes), TargetSpec(model=str(model)))
