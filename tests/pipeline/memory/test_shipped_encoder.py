"""The encoder that comes along: whole, small enough, for the bundled model, and worth what it says."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from encoding_jobs import done, root_of, rows_of
from sqlalchemy import Engine

from pipeline.memory.encoder import load_encoder
from pipeline.memory.measure import Measuring
from pipeline.memory.reconstruct import prefix_match, reconstructed
from pipeline.models import ModelPool, pull, verify
from pipeline.models.encoders import SHIPPED, WEIGHTS, comes_along, find, read_manifest
from schemas.job import JobSpec
from schemas.settings import Settings

NAME = "smollm2-135m-icae"
BASE = "smollm2-135m-instruct"
EXAMPLES = Path(__file__).parents[3] / "examples"
PASSAGES = EXAMPLES / "memory.jsonl"


def test_it_is_whole_and_no_larger_than_it_may_be(tmp_path: Path) -> None:
    settings, folder = Settings(cache_dir=tmp_path), SHIPPED / NAME
    assert find(NAME, settings.cache) == folder and comes_along(folder)
    assert verify(NAME, settings).state == "ready"
    assert sum(one.stat().st_size for one in SHIPPED.rglob("*") if one.is_file()) <= 20 * 2**20
    manifest = read_manifest(folder)
    assert manifest.base == BASE and manifest.figures.tokens == 4 * manifest.figures.slots == 512
    assert (folder / WEIGHTS).stat().st_size < 20 * 2**20


@pytest.mark.model
def test_the_bundled_model_repeats_what_it_puts_into_slots() -> None:
    """64 tokens of each passage from 16 slots; behind other passages' slots nothing of them."""
    pull(BASE)
    coder = load_encoder(str(SHIPPED / NAME), pool := ModelPool("cpu"))
    tokenizer = pool.causal_lm(BASE).tokenizer
    texts = [json.loads(line)["contexts"][0] for line in PASSAGES.read_text().splitlines()]
    spans = torch.tensor([tokenizer(text)["input_ids"][:64] for text in dict.fromkeys(texts)])
    with torch.inference_mode():
        found = Measuring(coder, tokenizer, spans, ((64, 16),), 4096, False).measure(len(spans))
        slots = coder.encode(spans, 16)
        said, other = reconstructed(coder, slots, 64), reconstructed(coder, slots.roll(1, 0), 64)
    assert all(one.agreement > 0.94 and (one.bleu4 or 0) > 0.75 for one in found)
    assert (said == spans).float().mean() > 0.5 and prefix_match(said, spans).max() > 0.3
    assert (other == spans).float().mean() < 0.1


@pytest.mark.model
@pytest.mark.usefixtures("model_cache")
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_the_bundled_model_answers_from_slots(engine: Engine, tmp_path: Path) -> None:
    """Of the twelve questions of `make demo-memory`, more than can be guessed."""
    job = tomllib.loads((EXAMPLES / "memory.toml").read_text())
    columns = job["input"]["columns"]

    def answered(columns: dict[str, str], stages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        given = {"input": {"path": str(PASSAGES), "columns": columns}, "output": {"path": str(tmp_path)}}
        return rows_of(root_of(engine, done(engine, JobSpec.model_validate({**job, **given, "stages": stages}))))

    read = answered(columns, job["stages"])
    unread = answered({name: one for name, one in columns.items() if name != "contexts"}, job["stages"][1:])
    assert len(read) == 12 and all(3 * row["slots"] < row["tokens_original"] for row in read)
    right, guessed = (sum(row["contains_answer"] for row in rows) for rows in (read, unread))
    assert right >= 3 and guessed <= 1, (right, guessed)
