"""Jobs over a small corpus that are worked through in the test's own process, with a tiny random model's answers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from by_hand import Silent, work_through
from sqlalchemy import Engine

from pipeline.producer import submit
from pipeline.storage.jobs import find_job
from schemas.job import JobSpec

GENERATE: dict[str, Any] = {"kind": "generate", "max_new_tokens": 6}
EXACT: dict[str, Any] = {"kind": "evaluate", "metrics": ["exact_match"]}
Row = dict[str, Any]


def questions(number: int) -> list[Row]:
    """Prompts of some 60 tokens, each with an answer that is never right."""
    context = "Janet sold {} clips in April, and half as many in May. She gave {} of them to a friend. "
    return [
        {
            "id": f"q{n}",
            "contexts": [context.format(n, n + 1) * 2],
            "question": f"How many are {n} clips?",
            "answer": "?",
        }
        for n in range(number)
    ]


def corpus(folder: Path, name: str, rows: Sequence[Mapping[str, Any]]) -> Path:
    """The rows as JSON lines."""
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def worked(
    engine: Engine, folder: Path, model: Path, rows: Sequence[Mapping[str, Any]], *stages: Row, name: str
) -> str:
    """The job of these stages over the rows, done; returns its id."""
    spec = JobSpec.model_validate(
        {
            "name": name,
            "input": {"path": str(corpus(folder, name, rows))},
            "output": {"path": str(folder / "out")},
            "target": {"model": str(model)},
            "stages": list(stages),
        }
    )
    job = submit(engine, spec, Silent()).job_id
    work_through(engine, job)
    assert find_job(engine, job).state == "done"
    return job


def data(engine: Engine, job: str) -> list[Row]:
    """The rows of a job's ``data/``, in order."""
    rows = pq.read_table(f"{find_job(engine, job).output}/data").to_pylist()
    return sorted(rows, key=lambda row: int(row["seq"]))


def with_answers(rows: Sequence[Row], answers: Sequence[str], right: Sequence[int]) -> list[Row]:
    """The same questions; those at ``right`` get the answer that the model gives."""
    return [
        {**row, "answer": answer if place in right else "?"}
        for place, (row, answer) in enumerate(zip(rows, answers, strict=True))
    ]
