"""What was encoded at night is asked about all day: contexts are known again whatever is asked of them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from encoding_jobs import TEXTS, done, encoder_of, root_of, rows_of, spec
from safetensors.numpy import load_file
from sqlalchemy import Engine, select, update

from pipeline.known_contexts import known_contexts
from pipeline.memory.packing import unpack
from pipeline.memory.store import read_slots
from pipeline.reuse import CANDIDATES
from pipeline.storage.jobs import find_job
from schemas.tables import ContextRow, Usage

TOLD = {"group": 32, "keep_text": 4}


def texts(number: int) -> list[dict[str, Any]]:
    return [{"id": f"t{at}", "text": text} for at, text in enumerate(TEXTS[:number])]


def asked(*rows: Sequence[str]) -> list[dict[str, Any]]:
    """Each row its contexts; every question another one."""
    return [{"id": f"q{at}", "contexts": list(one), "question": f"Who? {at}"} for at, one in enumerate(rows)]


DAY = asked([TEXTS[0]], [TEXTS[3], TEXTS[1]], [TEXTS[5], "Hi.", TEXTS[7]])


@pytest.mark.parametrize("precision", ["float16", "int8", "int4"])
def test_only_what_is_new_is_encoded(
    precision: str, engine: Engine, tmp_path: Path, tiny_model: Path, encoded: list[int]
) -> None:
    settings = {**TOLD, "precision": precision}
    night = root_of(engine, done(engine, spec(tmp_path / "night", tiny_model, texts(6), **settings)))
    encoded.clear()
    root = root_of(engine, done(engine, spec(tmp_path / "day", tiny_model, DAY, **settings)))
    one, two, three = rows_of(root)
    assert [row["tokens_encoded"] == row["tokens_known"] for row in (one, two, three)] == [True, True, False]
    assert three["tokens_known"] > 0 and 0 < sum(encoded) < three["slot_spans"] and three["context_slots"][1] == 0
    assert [row["encode_seconds"] > 0 for row in (one, two, three)] == [False, False, True]
    assert {row["encode_reused_from"] for row in (one, two, three)} == {None}
    before = rows_of(night)
    kept = [read_slots(str(night), before[at]) for at in (3, 1)]
    assert torch.equal(read_slots(str(root), two), torch.cat(kept))
    assert two["slots_loss"] == pytest.approx(before[3]["slots_loss"], rel=0.5)
    encoded.clear()
    other = root_of(engine, done(engine, spec(tmp_path / "3", tiny_model, DAY, **settings, ratio=3.0)))
    assert {row["tokens_known"] for row in rows_of(other)} == {0}, "slots at another ratio are others"


def test_answers_behind_known_slots_are_those_behind_new_ones(engine: Engine, tmp_path: Path, tiny_model: Path) -> None:
    def answers(folder: Path) -> tuple[list[str], list[int]]:
        rows = [{**row, "id": f"{folder.name}-{row['id']}"} for row in DAY]  # else it would be the same job
        job = spec(folder, tiny_model, rows, **TOLD)
        generate = {"kind": "generate", "max_new_tokens": 8, "draft_tokens": 2}
        job = job.model_validate({**job.model_dump(mode="json"), "stages": [job.stages[0].model_dump(), generate]})
        rows = rows_of(root_of(engine, done(engine, job)))
        return [row["generated"] for row in rows], [row["tokens_known"] for row in rows]

    new, _ = answers(tmp_path / "new")
    with engine.begin() as connection:
        assert len(set(connection.scalars(select(ContextRow.context_hash)))) == 5
        connection.execute(update(Usage).values(content_hash="of no prompt"))
    again, known = answers(tmp_path / "again")
    assert again == new and all(number > 0 for number in known)


def test_slots_that_are_gone_are_made_anew(
    engine: Engine, tmp_path: Path, tiny_model: Path, encoded: list[int]
) -> None:
    old = root_of(engine, done(engine, spec(tmp_path / "old", tiny_model, texts(2), **TOLD)))
    new = root_of(engine, done(engine, spec(tmp_path / "new", tiny_model, asked(TEXTS[:1], TEXTS[1:2]), **TOLD)))
    for path in (new / "slots").iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    encoded.clear()
    day = root_of(engine, done(engine, spec(tmp_path / "day", tiny_model, asked(TEXTS[1:2], TEXTS[:2]), **TOLD)))
    assert not encoded and all(row["tokens_known"] for row in rows_of(day)), "the job before that has them"
    for root in (old, day):
        for path in (root / "slots").iterdir():
            path.unlink()
    anew = root_of(engine, done(engine, spec(tmp_path / "anew", tiny_model, asked(TEXTS[1::-1]), **TOLD)))
    assert encoded and [row["tokens_known"] for row in rows_of(anew)] == [0]


def test_many_parts_of_a_job_that_is_gone_do_not_hide_an_older_one(
    engine: Engine, tmp_path: Path, tiny_model: Path, encoded: list[int]
) -> None:
    done(engine, spec(tmp_path / "old", tiny_model, texts(2), **TOLD))
    rows = asked(*[TEXTS[:2]] * 24)
    new = root_of(engine, done(engine, spec(tmp_path / "new", tiny_model, rows, **TOLD, seconds_per_shard=0.1)))
    assert len([*(new / "slots").iterdir()]) > CANDIDATES
    shutil.rmtree(new)
    encoded.clear()
    day = root_of(engine, done(engine, spec(tmp_path / "day", tiny_model, asked(TEXTS[1::-1]), **TOLD)))
    assert not encoded and all(row["tokens_known"] for row in rows_of(day))


def test_a_known_context_keeps_no_more_than_its_own_slots(engine: Engine, tmp_path: Path, tiny_model: Path) -> None:
    job = done(engine, spec(tmp_path, tiny_model, asked(TEXTS[:8]), **TOLD, precision="int8"))
    (hashed,) = find_job(engine, job).stage_hashes
    (made,) = known_contexts(engine, hashed, TEXTS[3:4]).values()
    row = rows_of(root_of(engine, job))[0]
    begin = sum(row["context_slots"][:3])
    expected = read_slots(str(root_of(engine, job)), row)[begin : begin + row["context_slots"][3]]
    assert torch.equal(unpack(made.packed), expected) and len(expected) > 0
    assert made.packed.values.base is None and made.packed.scales.base is None


def test_questions_about_the_same_contexts_share_a_tensor(
    engine: Engine, tmp_path: Path, tiny_model: Path, encoded: list[int]
) -> None:
    """In a shard they lie there once; shards that come later need not encode them."""
    rows = asked(*[TEXTS[:2]] * 12)
    root = root_of(engine, done(engine, spec(tmp_path, tiny_model, rows, **TOLD)))
    made = rows_of(root)
    files = [load_file(path) for path in (root / "slots").iterdir()]
    assert 1 < len(files) < len(made) and all(len(one) == 2 for one in files)  # and the tag
    assert sum(encoded) == made[0]["slot_spans"]
    assert len({row["slots_sha256"] for row in made}) == 1
    assert all(len(read_slots(str(root), row)) == row["slots"] for row in made)


def test_another_encoder_knows_nothing(engine: Engine, tmp_path: Path, tiny_model: Path) -> None:
    done(engine, spec(tmp_path / "a", tiny_model, texts(2)))
    other = encoder_of(tiny_model, "narrow", rank=2)
    job = done(engine, spec(tmp_path / "b", tiny_model, asked(TEXTS[:2]), encoder=str(other)))
    assert [row["tokens_known"] for row in rows_of(root_of(engine, job))] == [0]
