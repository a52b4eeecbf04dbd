"""Texts to pretrain on, and a stage that does so in a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tiny_models import lines

from pipeline.memory.stage import Pretrain
from pipeline.stages import Outcome, Result
from schemas.document import Document, PromptParts
from schemas.job import TargetSpec
from schemas.memory import PretrainSpec

SETTINGS: dict[str, Any] = {
    "kind": "pretrain",
    "encoder": {"rank": 4, "alpha": 8.0},
    "lessons": [{"tokens": 12, "ratio": 2.0, "share": 0.5}, {"tokens": 16, "ratio": 2.0, "share": 0.5}],
    "autoencoding": 0.75,
    "steps": 30,
    "tokens_per_step": 512,
    "warmup": 2,
    "learning_rate": 1e-2,
    "memory_rate": 1.0,
    "held_out": 0.2,
    "checkpoint_seconds": 0.0,
}


def text(number: int, content: str) -> Document:
    parts = PromptParts(contexts=(content,))
    return Document(number, f"t{number}", parts, parts.content_hash())


TEXTS = [text(at, "\n".join(lines()[at * 6 : at * 6 + 6])) for at in range(20)]


def stage(model: Path, **changes: Any) -> Pretrain:
    return Pretrain(PretrainSpec.model_validate({**SETTINGS, **changes}), TargetSpec(model=str(model)))


def written(outcomes: list[Outcome]) -> list[Any]:
    """What must not differ: all but seconds."""
    rows = [outcome.fields for outcome in outcomes if isinstance(outcome, Result)]
    return [{name: value for name, value in row.items() if not name.endswith("seconds")} for row in rows]
