"""Slots through the pipeline: a slot file counts when its part does, and no document is encoded twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from by_hand import Silent, do, open_shards, take, work_through
from encoding_jobs import DOCUMENTS, TEXTS, done, encoder_of, root_of, rows_of, spec
from pydantic import ValidationError
from safetensors.numpy import load_file
from sqlalchemy import Engine, select, update

from pipeline.memory.store import SlotsError, read_slots
from pipeline.models.encoders import read_manifest
from pipeline.producer import submit
from schemas.job import JobSpec
from schemas.tables import Shard, Usage


def corpus(number: int = 8) -> list[dict[str, Any]]:
    return [
        {"id": one.id, "contexts": list(one.parts.contexts), "question": "Who?"}
        for one in (DOCUMENTS + DOCUMENTS)[:number]
    ]


def test_each_part_has_its_slots_beside_it(engine: Engine, tmp_path: Path, tiny_model: Path) -> None:
    root = root_of(engine, done(engine, spec(tmp_path, tiny_model, corpus())))
    parts = {path.stem for path in (root / "_parts").iterdir()}
    assert {path.stem for path in (root / "slots").iterdir()} == parts and len(parts) > 1
    assert {path.suffix for path in (root / "slots").iterdir()} == {".safetensors"}
    revision = read_manifest(encoder_of(tiny_model)).revision
    rows = rows_of(root)
    assert [row["doc_id"] for row in rows] == [one.id for one in DOCUMENTS[:8]]
    for row in rows:
        assert read_slots(str(root), row, revision).shape == (row["slots"], 64)
        assert row["slots_key"] == row["content_hash"]


def test_an_unchanged_document_is_never_encoded_twice(
    engine: Engine, tmp_path: Path, tiny_model: Path, encoded: list[int]
) -> None:
    first = done(engine, spec(tmp_path / "a", tiny_model, corpus(4)))
    of_four = sum(encoded)
    encoded.clear()
    job = spec(tmp_path / "b", tiny_model, corpus(5))
    second = done(engine, job)
    rows = rows_of(root_of(engine, second))
    assert 0 < sum(encoded) < rows[-1]["slot_spans"] < of_four, "one of its contexts is another document's, too"
    assert [row["encode_reused_from"] for row in rows] == [*[first] * 4, None]
    with engine.connect() as connection:
        usage = connection.execute(select(Usage).where(Usage.job_id == second).order_by(Usage.seq)).all()
    assert [(one.tokens_in, one.tokens_out) for one in usage] == [
        (row["tokens_original"], row["tokens_compressed"]) for row in rows
    ]
    assert [one.seconds > 0 for one in usage] == [False] * 4 + [True]
    # The slots are the job's own: what made them may go.
    for path in (root_of(engine, first) / "slots").iterdir():
        path.unlink()
    assert all(len(read_slots(str(root_of(engine, second)), row)) == row["slots"] for row in rows)
    encoded.clear()
    third = done(engine, spec(tmp_path / "c", tiny_model, corpus(6)))
    assert {row["encode_reused_from"] for row in rows_of(root_of(engine, third))} == {first, second, None}
    again = done(engine, spec(tmp_path / "d", tiny_model, corpus(4), precision="int8"))
    assert {row["encode_reused_from"] for row in rows_of(root_of(engine, again))} == {None}


def test_a_group_that_groups_nothing_tells_no_slots_apart(engine: Engine, tmp_path: Path, tiny_model: Path) -> None:
    """In float16: slots of either job may lie in one file."""
    first = done(engine, spec(tmp_path / "a", tiny_model, corpus()[::2]))
    second = done(engine, spec(tmp_path / "b", tiny_model, corpus(), group=32, seconds_per_shard=60.0))
    rows = rows_of(root_of(engine, second))
    assert len({row["slots_file"] for row in rows}) < len(rows)
    assert {row["encode_reused_from"] for row in rows} == {first, None}
    assert all(len(read_slots(str(root_of(engine, second)), row)) == row["slots"] for row in rows)


def test_slots_that_were_lost_or_damaged_are_made_again(
    engine: Engine, tmp_path: Path, tiny_model: Path, encoded: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    first = root_of(engine, done(engine, spec(tmp_path / "a", tiny_model, corpus(8))))
    one, other, *_ = sorted((first / "slots").iterdir())
    one.unlink()
    data = other.read_bytes()
    other.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    encoded.clear()
    second = root_of(engine, done(engine, spec(tmp_path / "b", tiny_model, corpus(9))))
    assert [caplog.text.count(str(path)) for path in (one, other)] == [1, 1], "and said once, of whatever many rows"
    fresh = [row for row in rows_of(second) if row["encode_reused_from"] is None]
    assert len(fresh) > 2 and 0 < sum(encoded) <= sum(row["slot_spans"] for row in fresh)  # equal contexts once
    assert all(len(read_slots(str(second), row)) == row["slots"] for row in rows_of(second))
    assert any(row["slots_file"] == f"slots/{one.name}" for row in rows_of(first))
    for row in rows_of(first):
        if row["slots_file"] == f"slots/{one.name}":
            with pytest.raises(SlotsError, match="is gone"):
                read_slots(str(first), row)


def test_who_lost_its_fence_leaves_no_slots(engine: Engine, tmp_path: Path, tiny_model: Path) -> None:
    job = submit(engine, spec(tmp_path, tiny_model, corpus(4), seconds_per_shard=60.0), Silent()).job_id
    root = root_of(engine, job)
    shard = open_shards(engine, job)[0]
    late = take(engine, job, shard, "late")
    with engine.begin() as connection:
        gone = {"state": "pending", "owner": None, "lease_until": None}
        connection.execute(update(Shard).where(Shard.id == shard).values(**gone))
    assert do(engine, take(engine, job, shard)) == "done"
    assert do(engine, late) == "lost"
    assert len(list((root / "slots").iterdir())) == len(list((root / "_parts").iterdir())) == 1
    # What a killed worker left goes when the job is published.
    (root / "slots" / f"{shard}-a9-0.safetensors").write_bytes(b"half")
    work_through(engine, job)
    assert {path.stem for path in (root / "slots").iterdir()} == {path.stem for path in (root / "_parts").iterdir()}


def test_one_text_under_two_ids_lies_in_a_file_once(engine: Engine, tmp_path: Path, tiny_model: Path) -> None:
    rows = [{"id": str(at), "text": TEXTS[0]} for at in range(8)]
    root = root_of(engine, done(engine, spec(tmp_path, tiny_model, rows, seconds_per_shard=60.0)))
    made = rows_of(root)
    files = [load_file(path) for path in (root / "slots").iterdir()]
    assert len(files) < len(made) and all(len(one) == 2 for one in files)  # and the tag
    assert all(len(read_slots(str(root), row)) == row["slots"] for row in made)


def test_documents_without_contexts_stay_text(engine: Engine, tmp_path: Path, tiny_model: Path) -> None:
    rows = [{"id": "q", "question": "Why is the sky blue?"}, {"id": "", "question": " "}]
    root = root_of(engine, done(engine, spec(tmp_path, tiny_model, rows)))
    (row,) = rows_of(root)
    assert (row["slots"], row["context_slots"], row["slots_file"]) == (0, [], None)
    assert not (root / "slots").exists()
    assert pq.read_table(root / "rejections.parquet")["code"].to_pylist() == ["empty"]


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ([{"kind": "compress", "rate": 0.5}, {"kind": "encode", "encoder": "e"}], "one of them a job"),
        ([{"kind": "generate"}, {"kind": "encode", "encoder": "e"}], "put encode before generate"),
        ([{"kind": "encode", "encoder": "e"}, {"kind": "generate", "backend": "openai"}], "an endpoint takes no slots"),
        ([{"kind": "encode"}], "encoder"),
        ([{"kind": "encode", "encoder": "e", "precision": "int2"}], "precision"),
        ([{"kind": "encode", "encoder": "e", "span": 0}], "span"),
        ([{"kind": "encode", "encoder": "e", "ratio": 0.5}], "ratio"),
    ],
)
def test_what_makes_no_sense_is_refused(stages: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        JobSpec.model_validate({"input": {"path": "x"}, "stages": stages})
