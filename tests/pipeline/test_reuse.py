"""A result is taken over only where the same documents went through the very same stage."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hosted_rig import documents, new_job
from sqlalchemy import Engine, insert, update

from pipeline.reuse import CANDIDATES, taken_over
from pipeline.storage.filesystem import resolve_path
from pipeline.storage.parts import table_from_rows, write_part
from pipeline.storage.sql import open_engine
from schemas.records import STAGE_FIELDS, part_schema
from schemas.tables import Job, Usage

DOCUMENTS = documents(3)


@pytest.fixture
def engine(database_url: str, tmp_path: Path) -> Iterator[Engine]:
    """Last night compressed two of three documents with the stage of hash ``half``."""
    made = open_engine(database_url)
    new_job(made, "last")
    schema = part_schema(["compress"], {"job": "last"})
    numbers = {"tokens_original": 9, "tokens_asked": 5, "tokens_compressed": 4, "copied": False}
    rows: list[dict[str, Any]] = [
        {"seq": d.seq, "doc_id": d.id, "content_hash": d.content_hash, "text": d.prompt, "answer": None, **numbers,
         "compressed": f"short {d.seq}", "compress_method": "m", "kept": None, "listed": None, "rate_asked": 0.5,
         "compress_seconds": 2.0, "compress_reused_from": None}
        for d in DOCUMENTS[:2]
    ]  # fmt: skip
    fs, path = resolve_path(tmp_path / "_parts" / "a.parquet")
    write_part(fs, path, table_from_rows(rows, schema), schema)
    usage = [
        {"job_id": "last", "stage": 0, "seq": d.seq, "stage_hash": "half", "content_hash": d.content_hash,
         "part": "_parts/a.parquet", "row": row, "tokens_in": 9, "tokens_out": 4, "seconds": 2.0}
        for row, d in enumerate(DOCUMENTS[:2])
    ]  # fmt: skip
    with made.begin() as connection:
        connection.execute(update(Job).values(output=str(tmp_path)))
        connection.execute(insert(Usage), usage)
    yield made
    made.dispose()


def test_the_same_stage_gives_its_results_for_free(engine: Engine) -> None:
    taken = taken_over(engine, "tonight", "compress", "half", DOCUMENTS)
    assert {seq: (result.fields["compressed"], job) for seq, (result, job) in taken.items()} == {
        0: ("short 0", "last"),
        1: ("short 1", "last"),
    }
    assert {(result.tokens_in, result.tokens_out, result.cost_microusd) for result, _ in taken.values()} == {(9, 4, 0)}


def test_a_column_that_was_added_since_is_null(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    younger = STAGE_FIELDS["compress"].append(pa.field("since", pa.int64()))
    monkeypatch.setitem(STAGE_FIELDS, "compress", younger)
    taken = taken_over(engine, "tonight", "compress", "half", DOCUMENTS)
    assert [result.fields["since"] for result, _ in taken.values()] == [None, None]


def test_another_stage_gives_nothing(engine: Engine) -> None:
    """Half of the tokens would pass for a third of them, in the rows and in all nights to come."""
    assert taken_over(engine, "tonight", "compress", "a third", DOCUMENTS) == {}


def test_a_job_takes_nothing_from_itself(engine: Engine) -> None:
    assert taken_over(engine, "last", "compress", "half", DOCUMENTS) == {}


def test_a_text_under_many_ids_does_not_hide_the_older_job_that_still_has_it(engine: Engine, tmp_path: Path) -> None:
    """Last night's folder is gone, and there the text stood under as many ids as jobs are tried."""
    new_job(engine, "newer")
    gone = {"job_id": "newer", "stage": 0, "stage_hash": "half", "content_hash": DOCUMENTS[0].content_hash,
            "part": "_parts/gone.parquet", "row": 0, "tokens_in": 9, "tokens_out": 4, "seconds": 2.0}  # fmt: skip
    with engine.begin() as connection:
        connection.execute(
            update(Job).where(Job.id == "newer").values(output=str(tmp_path / "gone"), created_at=Job.created_at + 1)
        )
        connection.execute(insert(Usage), [gone | {"seq": seq} for seq in range(CANDIDATES)])
    taken = taken_over(engine, "tonight", "compress", "half", DOCUMENTS)
    assert {seq: job for seq, (_, job) in taken.items()} == {0: "last", 1: "last"}
