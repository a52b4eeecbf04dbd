"""An encoder for the tiny model, and stages and documents to try it on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from by_hand import Silent, work_through
from sqlalchemy import Engine
from tiny_models import lines, save_tiny_encoder

from pipeline.memory.encode_stage import Encode
from pipeline.producer import submit
from pipeline.storage.jobs import find_job
from schemas.document import Document, PromptParts
from schemas.job import JobSpec, TargetSpec
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


def spec(folder: Path, model: Path, rows: list[dict[str, Any]], **settings: Any) -> JobSpec:
    folder.mkdir(exist_ok=True)
    corpus = folder / f"corpus-{len(rows)}.jsonl"
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    stage = {"kind": "encode", "encoder": str(encoder_of(model)), "seconds_per_shard": 0.5, **settings}
    job = {"input": {"path": str(corpus)}, "output": {"path": str(folder)}, "target": {"model": str(model)}}
    return JobSpec.model_validate({**job, "stages": [stage]})


def rows_of(root: Path) -> list[dict[str, Any]]:
    return [row for path in sorted((root / "data").iterdir()) for row in pq.read_table(path).to_pylist()]


def root_of(engine: Engine, job: str) -> Path:
    return Path(find_job(engine, job).output)


def done(engine: Engine, job: JobSpec) -> str:
    name = submit(engine, job, Silent()).job_id
    work_through(engine, name)
    assert find_job(engine, name).state == "done"
    return name
