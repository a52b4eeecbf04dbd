"""An encoder for the tiny model, and stages and documents to try it on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tiny_models import lines, save_tiny_encoder

from pipeline.memory.encode_stage import Encode
from schemas.document import Document, PromptParts
from schemas.job import TargetSpec
from schemas.memory import EncodeSpec


def encoder_of(model: Path, name: str = "encoder", **spec: Any) -> Path:
    """Spans of 16 tokens in 4 slots; made once for a model."""
    folder = model.parent / f"{model.name}-{name}"
    return folder if folder.exists() else save_tiny_encoder(folder, model, **spec)


def stage(model: Path, encoder: Path | str | None = None, **settings: Any) -> Encode:
    given = {"kind": "encode", "encoder": str(encoder or encoder_of(model)), **settings}
    return Encode(EncodeSpec.model_validate(given), TargetSpec(model=str(model)))


def document(seq: int, *contexts: str, question: str = "Who?", instruction: str = "") -> Document:
    parts = PromptParts(instruction, contexts, question)
    return Document(seq, f"d{seq}", parts, parts.content_hash())


TEXTS = [" ".join(lines()[at * 5 : at * 5 + 2 + at % 4]) for at in range(12)]
DOCUMENTS = [document(at, *TEXTS[at : at + 1 + at % 3]) for at in range(10)]
