"""A small target that has something to say, and stages that distill drafters for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from align_pairs import DOCUMENTS
from tiny_models import save_tiny_llama

from pipeline.alignment.distilling import Distill
from pipeline.generation.stage import Generate
from pipeline.models import ModelPool
from pipeline.stages import Result, Run
from schemas.document import Document
from schemas.job import TargetSpec
from schemas.stage import DistillSpec, GenerateSpec

END = "<|im_end|>"
ANSWERS = {"kind": "generate", "max_new_tokens": 24}


def spec(**changes: Any) -> DistillSpec:
    given = {"epochs": 3, "documents_per_step": 6, "learning_rate": 1e-2, "held_out": 0.2, "checkpoint_seconds": 0.0}
    begun = {} if "drafter" in changes else {"layers": 1}
    return DistillSpec.model_validate(
        {"kind": "distill", "batch_tokens": 200, "answers": ANSWERS, **given, **begun, **changes}
    )


def stage(target: Path | str, **changes: Any) -> Distill:
    return Distill(spec(**changes), TargetSpec(model=str(target)))


def save_taught(folder: Path, pool: ModelPool) -> Path:
    """A model of three layers that was random until it learned to answer ``DOCUMENTS``, more or less."""
    (folder / "random").mkdir()
    random = save_tiny_llama(folder / "random", layers=3)
    documents = [replace(one, answer=f"{one.answer}{END}") for one in DOCUMENTS]
    taught = stage(random, drafter=str(random), kl_weight=0.0, epochs=20, measured=1, checkpoint_seconds=60.0)
    taught.run(documents, Run(pool, folder=str(folder / "taught")))
    return folder / "taught" / "model"


def answered(target: Path, pool: ModelPool) -> list[Document]:
    """``DOCUMENTS`` with what the target answers, as the command gathers it."""
    generate = Generate(GenerateSpec.model_validate(ANSWERS), TargetSpec(model=str(target)))
    rows = [one.fields for one in generate.run(DOCUMENTS, Run(pool)) if isinstance(one, Result)]
    ends = [END if row["finish_reason"] == "stop" else "" for row in rows]
    return [replace(one, answer=row["generated"] + end) for one, row, end in zip(DOCUMENTS, rows, ends, strict=True)]
