"""Shallow copies load like any model, say what their layers say, and leave nothing behind where they cannot be made."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import save_tiny_llama

from pipeline.models import ModelError, ModelPool
from pipeline.models.shorten import kept_layers, shorten


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("deep") / "model"
    save_tiny_llama(folder, layers=5)
    return folder


@torch.inference_mode()
def test_the_copy_is_the_model_without_the_other_layers(deep: Path, tmp_path: Path) -> None:
    shorten(deep, tmp_path / "a" / "short", 3)
    pool = ModelPool("cpu")
    whole, short = (pool.causal_lm(str(one)) for one in (deep, tmp_path / "a" / "short"))
    model: Any = whole.model
    model.model.layers = torch.nn.ModuleList([model.model.layers[layer] for layer in (0, 2, 4)])
    for place, layer in enumerate(model.model.layers):
        layer.self_attn.layer_idx = place
    model.model.config.num_hidden_layers = 3
    ids = torch.arange(3, 40)[None]
    theirs, mine = (one(input_ids=ids, use_cache=False).logits for one in (model, short.model))
    assert torch.equal(theirs, mine) and len(short.model.model.layers) == 3
    assert short.tokenizer.get_vocab() == whole.tokenizer.get_vocab()


def test_layers_are_spread() -> None:
    assert kept_layers(30, 1) == [0] and kept_layers(30, 2) == [0, 29]
    assert kept_layers(30, 6) == [0, 6, 12, 17, 23, 29]
    assert all(len(set(kept_layers(30, layers))) == layers for layers in range(1, 30))


def test_what_cannot_be_shortened_says_why_and_leaves_nothing(deep: Path, tmp_path: Path) -> None:
    for layers in (0, 5, 9):
        with pytest.raises(ModelError, match="has 5 layers: a shorter copy has 1 to 4"):
            shorten(deep, tmp_path / "out", layers)
    (tmp_path / "there").mkdir()
    with pytest.raises(ModelError, match="is there already"):
        shorten(deep, tmp_path / "there", 2)
    odd = tmp_path / "odd"
    shutil.copytree(deep, odd)
    tensors = load_file(odd / "model.safetensors")
    save_file({name.replace(".layers.", ".rungs."): one for name, one in tensors.items()}, odd / "model.safetensors")
    with pytest.raises(ModelError, match="do not say which layer"):
        shorten(odd, tmp_path / "out", 2)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["odd", "there"]
