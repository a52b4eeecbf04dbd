"""What a dry run rests on: rates that earlier runs measured for the very same stage, else assumed ones."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from by_hand import Silent
from pydantic import SecretStr
from sqlalchemy import Engine

from pipeline.models import ModelError
from pipeline.producer import Submission, submit
from pipeline.stages import stage_hashes
from pipeline.storage.schema import migrate
from pipeline.storage.sql import insert_ignore, open_engine
from pipeline.surveying import estimate_job
from schemas.job import JobSpec
from schemas.settings import Settings
from schemas.tables import Usage


@pytest.fixture
def engine(sqlite_url: str) -> Iterator[Engine]:
    made = open_engine(sqlite_url)
    migrate(made)
    yield made
    made.dispose()


def spec_of(folder: Path, model: Path, text: str) -> JobSpec:
    corpus = folder / "corpus.jsonl"
    corpus.write_text(json.dumps({"text": text}) + "\n")
    stages = [{"kind": "compress", "model": str(model), "rate": 0.5}, {"kind": "generate"}]
    raw = {"input": {"path": str(corpus)}, "output": {"path": str(folder / "out")}, "target": {"model": str(model)}}
    return JobSpec.model_validate({**raw, "stages": stages})


def used(engine: Engine, made: Submission, stage_hash: str, reused_from: str | None = None) -> None:
    """A row of ``usage`` as a finished compression leaves it: 100 tokens in 4 seconds."""
    key = {"job_id": made.job_id, "stage": 0, "seq": 0, "stage_hash": stage_hash, "content_hash": "x", "part": "p"}
    row = {**key, "row": 0, "tokens_in": 100, "tokens_out": 50, "seconds": 4.0, "reused_from": reused_from}
    with engine.begin() as connection:
        insert_ignore(connection, Usage, [row])


def test_times_are_measured_or_said_to_be_assumed(
    engine: Engine, sqlite_url: str, tmp_path: Path, tiny_model: Path
) -> None:
    settings = Settings(database_url=SecretStr(sqlite_url))
    jobs = [spec_of(tmp_path, tiny_model, "before")]
    _, _, assumed = estimate_job(jobs[0], settings)
    assert set(assumed) == {"compress", "generate"}
    assert all(basis.startswith("time assumed, not measured yet: for ") for basis in assumed.values())

    stage_hash = stage_hashes(jobs[0])[0]
    for number, reused_from in enumerate((None, None, "another job")):
        made = submit(engine, spec_of(tmp_path, tiny_model, f"document {number} " * 20), Silent())
        used(engine, made, stage_hash, reused_from)
    estimate, _, known = estimate_job(spec_of(tmp_path, tiny_model, "now " * 50), settings)
    assert known["compress"] == "time measured in 2 runs with this database"
    assert known["generate"] == assumed["generate"]
    assert estimate.stages[0].seconds == pytest.approx(estimate.stages[0].tokens_in * 4.0 / 100)


def test_what_submission_would_refuse_is_said_before_it(tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "c.jsonl").write_text('{"text": "one"}\n')
    raw = {
        "input": {"path": str(tmp_path / "c.jsonl")},
        "output": {"path": str(tmp_path)},
        "target": {"model": str(tiny_model)},
        "stages": [{"kind": "pretrain", "lessons": [{"tokens": 4000, "ratio": 4.0, "share": 1.0}]}],
    }
    with pytest.raises(ModelError, match="a lesson of 4000 tokens takes 5001 places with its slots"):
        estimate_job(JobSpec.model_validate(raw), Settings())


def test_a_stage_that_does_nothing_has_no_speed(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text('{"text": "one"}\n')
    raw = {
        "input": {"path": str(tmp_path / "c.jsonl")},
        "output": {"path": str(tmp_path)},
        "stages": [{"kind": "copy"}],
    }
    assert estimate_job(JobSpec.model_validate(raw), Settings())[2] == {}
