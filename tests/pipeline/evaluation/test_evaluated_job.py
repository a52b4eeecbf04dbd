"""A job that evaluates itself: rows, SQL, Parquet; what is missing is said; an answer key is never taken over."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from by_hand import work_through
from jobs_by_hand import EXACT, GENERATE, Row, data, questions, with_answers, worked
from pydantic import ValidationError
from sqlalchemy import Engine, func, select, update

from pipeline.accounting.estimate import estimate
from pipeline.storage.jobs import find_job, resume_job
from pipeline.storage.schema import migrate
from pipeline.storage.sql import open_engine
from schemas.base import DEFAULT_MODEL
from schemas.job import JobSpec
from schemas.records import EVALUATION
from schemas.tables import Evaluation, Rejection, Usage

ALL = {"kind": "evaluate", "task": "summary", "metrics": ["exact_match", "bleu4", "rougeL"]}


def evaluations(engine: Engine, job: str) -> list[Row]:
    query = select(Evaluation).where(Evaluation.job_id == job).order_by(Evaluation.place)
    with engine.connect() as connection:
        return [dict(row._mapping) for row in connection.execute(query)]


def published(engine: Engine, job: str) -> list[Row]:
    table = pq.read_table(f"{find_job(engine, job).output}/evaluation.parquet")
    assert table.schema.equals(EVALUATION)
    rows: list[Row] = table.to_pylist()
    return rows


def test_other_reference_answers_are_scored_anew_though_no_answer_is_generated_again(
    engine: Engine, tmp_path: Path, tiny_model: Path
) -> None:
    """Texts hash without their answers: taking scores over would mark tonight's answers by last night's key."""
    asked = questions(8)
    first = worked(engine, tmp_path, tiny_model, asked, GENERATE, ALL, name="first")
    (row,) = {(r["metric"], r["value"]) for r in evaluations(engine, first) if r["metric"] == "exact_match"}
    assert row == ("exact_match", 0.0)
    said = [r["generated"].strip() for r in data(engine, first)]
    assert len(set(said)) == 8
    second = worked(engine, tmp_path, tiny_model, with_answers(asked, said, [0, 1, 2]), GENERATE, ALL, name="second")
    rows = data(engine, second)
    assert {r["generate_reused_from"] for r in rows} == {first}
    assert [r["exact_match"] for r in rows] == [1.0] * 3 + [0.0] * 5
    assert [r["prediction"] for r in rows] == said
    found = {r["metric"]: r for r in evaluations(engine, second)}
    assert list(found) == ["exact_match", "bleu4", "rougeL", "corpus_bleu4"]
    exact = found["exact_match"]
    assert (exact["value"], exact["scored"], exact["documents"], exact["rate"]) == (3 / 8, 8, 8, None)
    assert exact["low"] < exact["value"] < exact["high"]
    assert 0 < found["corpus_bleu4"]["value"] < found["bleu4"]["value"] < 1
    assert exact["tokens_original"] is None  # nothing was compressed
    assert exact["tokens_prompt"] == sum(r["tokens_prompt"] for r in rows)
    in_sql = [{name: r[name] for name in EVALUATION.names} for r in evaluations(engine, second)]
    assert published(engine, second) == in_sql
    with engine.connect() as connection:
        scored_here = select(func.count()).where(Usage.job_id == second, Usage.stage == 1, Usage.reused_from.is_(None))
        assert connection.scalar(scored_here) == 8


def test_rows_without_a_reference_answer_are_refused_by_name_and_counted(
    engine: Engine, tmp_path: Path, tiny_model: Path
) -> None:
    asked = questions(5)
    asked[1]["answer"] = None
    asked[3]["answer"] = " "
    broken = {"id": "q9", "contexts": 3, "answer": "?"}
    job = worked(engine, tmp_path, tiny_model, [*asked, broken], GENERATE, EXACT, name="gaps")
    (row,) = evaluations(engine, job)
    assert (row["scored"], row["documents"]) == (3, 6)
    with engine.connect() as connection:
        query = select(Rejection).where(Rejection.job_id == job, Rejection.stage == 1).order_by(Rejection.source)
        refused = connection.execute(query).all()
    assert [(r.doc_id, r.code, r.status) for r in refused] == [
        ("q1", "no_reference", "rejected"),
        ("q3", "no_reference", "rejected"),
    ]
    assert "gaps.jsonl:2 (document q1) has no reference answer" in refused[0].reason
    assert "[input.columns] answer" in refused[0].reason


def test_a_job_of_which_nothing_has_a_score_has_no_mean(engine: Engine, tmp_path: Path, tiny_model: Path) -> None:
    asked = [{**row, "answer": None} for row in questions(2)]
    job = worked(engine, tmp_path, tiny_model, asked, GENERATE, EXACT, name="none")
    (row,) = evaluations(engine, job)
    assert (row["value"], row["low"], row["high"], row["scored"], row["documents"]) == (None, None, None, 0, 2)
    assert published(engine, job)[0]["value"] is None


def test_a_publication_done_again_leaves_one_result(engine: Engine, tmp_path: Path, tiny_model: Path) -> None:
    job = worked(engine, tmp_path, tiny_model, questions(3), GENERATE, EXACT, name="again")
    before = evaluations(engine, job)
    shutil.rmtree(f"{find_job(engine, job).output}/data")
    with engine.begin() as connection:
        connection.execute(update(Evaluation).values(value=0.9))
    assert resume_job(engine, job)
    work_through(engine, job)
    assert evaluations(engine, job) == before


def test_each_rate_of_a_job_has_its_own_result(engine: Engine, tmp_path: Path, tiny_model: Path) -> None:
    compress = {"kind": "compress", "model": str(tiny_model), "rates": [0.75, 0.5]}
    job = worked(engine, tmp_path, tiny_model, questions(4), compress, GENERATE, EXACT, name="rates")
    high, low = evaluations(engine, job)
    assert (high["rate"], low["rate"]) == (0.75, 0.5)
    assert {(row["scored"], row["documents"]) for row in (high, low)} == {(4, 4)}
    rows = data(engine, job)
    assert len(rows) == 8
    for row in (high, low):
        mine = [one for one in rows if one["doc_id"].endswith(f"@{row['rate']:g}")]
        assert row["tokens_compressed"] == sum(one["tokens_compressed"] for one in mine)
        assert row["tokens_original"] == sum(one["tokens_original"] for one in mine)
    assert low["tokens_compressed"] < high["tokens_compressed"] < high["tokens_original"] == low["tokens_original"]


@pytest.mark.parametrize(
    ("stages", "complaint"),
    [
        ([EXACT], "put a generate stage before it"),
        ([EXACT, GENERATE], "put a generate stage before it"),
        ([GENERATE, {"kind": "evaluate"}], "give a task, metrics, or both"),
        ([GENERATE, {"kind": "evaluate", "metrics": ["bleu4", "bleu4"]}], "each of them once"),
        ([GENERATE, {"kind": "evaluate", "task": "riddles"}], "Input should be 'gsm8k'"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_before_anything_runs(stages: list[Row], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        JobSpec.model_validate({"input": {"path": "x"}, "stages": stages})


def test_an_estimate_spends_nothing_on_scores(tiny_model: Path) -> None:
    target = {"model": str(tiny_model)}
    spec = JobSpec.model_validate({"input": {"path": "x"}, "target": target, "stages": [GENERATE, EXACT]})
    scoring = estimate(spec, 100, 40_000).stages[1]
    assert (scoring.tokens_in, scoring.tokens_out, scoring.seconds, scoring.expected_microusd) == (0, 0, 0.0, None)


FACTS = {
    "The capital of France is Paris. It lies on the Seine.": ("What is the capital of France?", "Paris"),
    "The bridge was built in 1883 by John Roebling.": ("In which year was the bridge built?", "1883"),
    "Anna keeps three cats, and Tom keeps a green parrot.": ("What colour is Tom's parrot?", "green"),
}


@pytest.mark.usefixtures("model_cache")
@pytest.mark.model
def test_the_real_model_answers_what_it_has_just_read(sqlite_url: str, tmp_path: Path) -> None:
    engine = open_engine(sqlite_url)
    migrate(engine)
    rows = [
        {"id": str(n), "contexts": [text], "question": f"Question: {asked}\nAnswer:", "answer": answer}
        for n, (text, (asked, answer)) in enumerate(FACTS.items())
    ]
    generate = {"kind": "generate", "chat": False, "max_new_tokens": 12, "stop": ["\n"]}
    job = worked(engine, tmp_path, Path(DEFAULT_MODEL), rows, generate, {"kind": "evaluate", "task": "qa"}, name="real")
    found = {row["metric"]: row for row in evaluations(engine, job)}
    assert found["contains_answer"]["value"] == 1.0
    assert 0 < found["token_f1"]["value"] <= 1
    assert all(row["scored"] == row["documents"] == 3 for row in found.values())
    engine.dispose()
