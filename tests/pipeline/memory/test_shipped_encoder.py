"""The encoder that comes along: whole, small enough, for the bundled model, and worth what it says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pipeline.memory.encoder import load_encoder
from pipeline.memory.reconstruct import prefix_match, reconstructed
from pipeline.models import ModelPool, pull, verify
from pipeline.models.encoders import SHIPPED, WEIGHTS, comes_along, find, read_manifest
from schemas.settings import Settings

NAME = "smollm2-135m-icae-pretrained"
BASE = "smollm2-135m-instruct"
PASSAGES = Path(__file__).parents[3] / "examples" / "memory.jsonl"


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
    """64 tokens of each passage from 16 slots, behind other passages' slots nothing of them."""
    pull(BASE)
    coder = load_encoder(str(SHIPPED / NAME), pool := ModelPool("cpu"))
    tokenizer = pool.causal_lm(BASE).tokenizer
    texts = [json.loads(line)["contexts"] for line in PASSAGES.read_text().splitlines()]
    distinct = dict.fromkeys(text if isinstance(text, str) else text[0] for text in texts)
    spans = torch.tensor([tokenizer(text)["input_ids"][:64] for text in distinct])
    with torch.inference_mode():
        slots = coder.encode(spans, 16)
        found = reconstructed(coder, slots, 64)
        other = reconstructed(coder, slots.roll(1, 0), 64)
    assert (found == spans).float().mean() > 0.6 and prefix_match(found, spans).max() == 1.0
    assert (other == spans).float().mean() < 0.1
