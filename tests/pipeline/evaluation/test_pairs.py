"""What a judge gets of two jobs: the same sample of both, and no text that is not in it."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.evaluation.loading import EvaluatedJob
from pipeline.evaluation.pairs import pairs_of
from pipeline.evaluation.results import Scores, suffix
from schemas.evaluate import EvaluateSpec
from schemas.job import JobSpec

DOCUMENTS, CHARACTERS = 400, 20_000
EVALUATE = {"kind": "evaluate", "task": "qa"}


def evaluated(folder: Path, name: str, rate: float | None, first: int = 0) -> EvaluatedJob:
    """A job that has answered all documents but the ``first``, each with a text of its own."""
    ids = [f"d{at}" for at in range(first, DOCUMENTS)]
    ending = "" if rate is None else suffix(rate)
    rows = {
        "doc_id": [one + ending for one in ids],
        "text": [f"{name} {one} ".ljust(CHARACTERS, "x") for one in ids],
        "answer": ["so"] * len(ids),
        "generated": [f"{name} says {one}" for one in ids],
    }
    (folder / name / "data").mkdir(parents=True)
    schema = pa.schema([(column, pa.string()) for column in rows])
    pq.write_table(pa.table(rows, schema), folder / name / "data" / "part.parquet")
    stages = [{"kind": "generate", "max_new_tokens": 4}, EVALUATE]
    spec = JobSpec.model_validate({"input": {"path": "x"}, "target": {"model": "m"}, "stages": stages})
    scores = Scores(rate, ids, pa.table({"answer": pa.array(rows["answer"], pa.string())}))
    return EvaluatedJob(name, name, str(folder / name), spec, EvaluateSpec.model_validate(EVALUATE), scores, {})


@pytest.mark.parametrize("rate", [None, 0.5])
def test_a_sample_is_the_same_at_any_rate_and_reads_only_its_own_texts(rate: float | None, tmp_path: Path) -> None:
    ours, theirs = evaluated(tmp_path, "ours", rate, first=5), evaluated(tmp_path, "theirs", None)
    every = pairs_of(ours, theirs, None)
    assert len(every) == DOCUMENTS - 5
    tracemalloc.start()
    few = pairs_of(ours, theirs, 4)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert few == every[:4] and most < DOCUMENTS * CHARACTERS / 4
    for one in few:
        assert (one.ours, one.theirs) == (f"ours says {one.id}", f"theirs says {one.id}")
        assert one.prompt.startswith(f"theirs {one.id} ") or one.prompt.startswith(f"ours {one.id} ")


def test_where_nothing_is_common_there_is_nothing_to_judge(tmp_path: Path) -> None:
    ours = evaluated(tmp_path, "ours", None, first=DOCUMENTS)
    assert pairs_of(ours, evaluated(tmp_path, "theirs", None), 4) == []
