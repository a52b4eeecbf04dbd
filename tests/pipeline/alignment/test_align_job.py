"""Alignment as jobs: answers of two targets, one shard over all of them, taken over where it was left."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from by_hand import Silent, do, open_shards, take, work_through
from pydantic import ValidationError
from sqlalchemy import Engine, delete, select, update

from pipeline.alignment.answers import gather
from pipeline.alignment.training import Trainer
from pipeline.cli.aligning import _recipe
from pipeline.models.adapters import WEIGHTS
from pipeline.producer import submit
from pipeline.storage.jobs import find_job, resume_job
from pipeline.storage.reaping import bury
from schemas.align_file import AlignFile
from schemas.job import JobSpec
from schemas.settings import Settings
from schemas.tables import Part, Shard, Usage

PROMPTS = 14


def file_of(tmp_path: Path, model: Path, **align: Any) -> AlignFile:
    corpus = tmp_path / "prompts.jsonl"
    rows = [{"id": f"q{number}", "text": f"What is {number} plus {number * 3}?"} for number in range(PROMPTS)]
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    fast = {"epochs": 1, "documents_per_step": 8, "checkpoint_seconds": 0.0}
    answers = {"max_new_tokens": 8}
    return AlignFile.model_validate(
        {
            "name": "both",
            "input": {"path": str(corpus)},
            "output": {"path": str(tmp_path / "out")},
            "align": {"model": str(model), **fast, **align},
            "targets": [
                {"model": str(model), "answers": answers},
                {"model": str(model), "answers": {**answers, "temperature": 1.0, "seed": 3}},
            ],
        }
    )


def submitted(engine: Engine, spec: JobSpec, workers: int = 2) -> str:
    return submit(engine, spec, Silent(), workers=workers).job_id


def answered(engine: Engine, spec: AlignFile) -> list[str]:
    ids = [submitted(engine, job) for job in spec.answer_jobs()]
    for job_id in ids:
        work_through(engine, job_id)
    return ids


def shard_of(engine: Engine, job_id: str) -> Any:
    with engine.connect() as connection:
        return connection.execute(select(Shard).where(Shard.job_id == job_id, Shard.stage == 0)).one()


def test_answers_of_two_targets_are_learned_in_one_shard(engine: Engine, tiny_model: Path, tmp_path: Path) -> None:
    spec = file_of(tmp_path, tiny_model)
    ids = answered(engine, spec)
    assert len(set(ids)) == 2
    pairs = gather(engine, ids, spec.output.path, spec.name)
    assert gather(engine, ids, spec.output.path, spec.name) == pairs
    assert (pairs.pairs, pairs.unanswered) == (2 * PROMPTS, 0)
    rows = pq.read_table(pairs.path).to_pylist()
    assert [row["id"] for row in rows] == [f"{target}/q{number}" for target in (1, 2) for number in range(PROMPTS)]
    published = pq.read_table(Path(find_job(engine, ids[1]).output) / "data").to_pylist()
    assert [row["answer"] for row in rows[PROMPTS:]] == [row["generated"] for row in published]

    job_id = submitted(engine, spec.training_job(pairs.path))
    assert open_shards(engine, job_id) == [f"0-0-{2 * PROMPTS}"], "one, however many workers there are"
    work_through(engine, job_id)
    job = find_job(engine, job_id)
    assert job.state == "done"
    made = pq.read_table(Path(job.output) / "data").to_pylist()
    held = {row["text"] for row in made if row["split"] == "held_out"}
    assert 0 < len(held) < PROMPTS and not held & {row["text"] for row in made if row["split"] == "train"}
    assert all(math.isfinite(row["nll_before"]) and row["nll_after"] < 50 for row in made if row["text"] in held)
    assert (Path(job.output) / "align" / "adapter" / WEIGHTS).is_file()
    with engine.connect() as connection:
        usage = connection.execute(select(Usage).where(Usage.job_id == job_id)).all()
    assert all(row.tokens_in > row.tokens_out > 0 and row.seconds > 0 for row in usage) and len(usage) == 2 * PROMPTS


def test_a_shard_that_was_left_goes_on_from_its_checkpoint(
    engine: Engine, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = file_of(tmp_path, tiny_model, epochs=3)
    pairs = gather(engine, answered(engine, spec), spec.output.path, spec.name)
    job_id = submitted(engine, spec.training_job(pairs.path))
    shard = open_shards(engine, job_id)[0]
    steps: list[float] = []
    step = Trainer.step

    def failing(self: Trainer, *arguments: Any) -> float:
        if len(steps) == 4:
            raise RuntimeError("the machine has a bad day")
        steps.append(step(self, *arguments))
        return steps[-1]

    monkeypatch.setattr(Trainer, "step", failing)
    assert do(engine, take(engine, job_id, shard)) == "failed"

    def well(self: Trainer, *arguments: Any) -> float:
        steps.append(step(self, *arguments))
        return steps[-1]

    monkeypatch.setattr(Trainer, "step", well)
    with engine.begin() as connection:
        connection.execute(update(Shard).where(Shard.job_id == job_id).values(not_before=None))
    assert do(engine, take(engine, job_id, shard, owner="another")) == "done"
    assert len(steps) == 3 * math.ceil(sum(row["split"] == "train" for row in rows_of(engine, job_id)) / 8)


def rows_of(engine: Engine, job_id: str) -> list[dict[str, Any]]:
    """What the shard committed."""
    with engine.connect() as connection:
        (path,) = connection.scalars(select(Part.path).where(Part.job_id == job_id, Part.stage == 0))
    rows: list[dict[str, Any]] = pq.read_table(Path(find_job(engine, job_id).output) / path).to_pylist()
    return rows


def test_a_spent_shard_stops_the_job_instead_of_being_split(
    engine: Engine, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two halves would be two adapters of half the answers."""
    spec = file_of(tmp_path, tiny_model)
    pairs = gather(engine, answered(engine, spec), spec.output.path, spec.name)
    job_id = submitted(engine, spec.training_job(pairs.path))
    broken = monkeypatch.context()
    with broken as patch:
        patch.setattr(Trainer, "step", lambda *arguments: 1 / 0)
        for _ in range(3):
            with engine.begin() as connection:
                connection.execute(update(Shard).where(Shard.job_id == job_id).values(not_before=None))
            assert do(engine, take(engine, job_id, open_shards(engine, job_id)[0])) == "failed"
    assert bury(engine, 3) == 1
    job = find_job(engine, job_id)
    assert (job.state, job.stop_code) == ("stopped", "error") and "align failed 3 times: ZeroDivisionError" in job.error
    assert shard_of(engine, job_id).state == "pending"
    assert resume_job(engine, job_id)
    work_through(engine, job_id)
    assert find_job(engine, job_id).state == "done"


def test_what_a_budget_bought_is_gathered_though_nothing_is_published(
    engine: Engine, tiny_model: Path, tmp_path: Path
) -> None:
    spec = file_of(tmp_path, tiny_model)
    job_id = submitted(engine, spec.answer_jobs()[0])
    first, *_ = open_shards(engine, job_id)
    assert do(engine, take(engine, job_id, first)) == "done"
    with engine.begin() as connection:
        connection.execute(delete(Shard).where(Shard.job_id == job_id, Shard.state == "pending"))
    some = gather(engine, [job_id], spec.output.path, spec.name)
    assert 0 < some.pairs < PROMPTS and some.pairs + some.unanswered == PROMPTS
    assert pq.read_metadata(some.path).num_rows == some.pairs


def test_align_stands_alone_in_its_job(tiny_model: Path) -> None:
    stages = [{"kind": "copy"}, {"kind": "align", "model": str(tiny_model)}]
    with pytest.raises(ValidationError, match="a job of its own \\(`contextmill align` makes them\\)"):
        JobSpec.model_validate({"input": {"path": "x"}, "stages": stages})
    with pytest.raises(ValidationError, match="two targets are the same"):
        AlignFile.model_validate({"name": "x", "input": {"path": "x"}, "targets": [{"model": "x"}, {"model": "x"}]})
    with pytest.raises(ValidationError, match="teacher and kl_weight"):
        JobSpec.model_validate({"input": {"path": "x"}, "stages": [{"kind": "align", "teacher": "x"}]})


def test_an_adapter_of_another_teacher_under_the_same_name_is_another(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the weights under the teacher's name change, the command must not take the adapter for its own."""
    spec = file_of(tmp_path, tiny_model, teacher=str(tmp_path / "teacher"), kl_weight=0.5)
    digests = {str(tiny_model): "scorer"}
    monkeypatch.setattr("pipeline.models.digest_of", lambda name, *_: digests[name])
    recipes = []
    for weights in ("one", "two", "one"):
        digests[str(tmp_path / "teacher")] = weights
        recipes.append(_recipe(spec, Settings(), replace_=True))
    assert recipes[0] == recipes[2] != recipes[1]
