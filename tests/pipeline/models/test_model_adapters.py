"""``BASE+ADAPTER``: what it loads, what its digest covers, and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tiny_models import save_tiny_llama

from pipeline.alignment.adapter import write_adapter
from pipeline.alignment.measure import Measure
from pipeline.models import ModelDamaged, ModelError, ModelNotFound, ModelPool, catalogue, digest_of, resolve, verify
from pipeline.models.adapters import FILES, MANIFEST, WEIGHTS, install, read_manifest, store_folder
from schemas.settings import Settings

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


def make(model: Path, folder: Path, seed: int = 0) -> Path:
    """A random adapter for ``model``, as `align` writes it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapted: Any = get_peft_model(
            ModelPool("cpu").own_copy(str(model)).model,
            LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False),
        )
    write_adapter(adapted, str(model), digest_of(str(model)), Measure(3.0, 0.2), Measure(2.0, 0.4), str(folder))
    return folder


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(cache_dir=tmp_path / "cache")


@pytest.fixture(scope="module")
def adapter(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tiny_model, tmp_path_factory.mktemp("adapter") / "one")


def test_merged_weights_compute_what_peft_computes(tiny_model: Path, adapter: Path) -> None:
    pool = ModelPool("cpu")
    merged, base = pool.causal_lm(f"{tiny_model}+{adapter}"), pool.causal_lm(str(tiny_model))
    beside: Any = PeftModel.from_pretrained(pool.own_copy(str(tiny_model)).model, adapter)
    ids = torch.arange(5, 45)[None]
    with torch.inference_mode():
        ours, theirs, plain = (model(input_ids=ids).logits for model in (merged.model, beside, base.model))
    assert torch.allclose(ours, theirs, atol=1e-4) and not torch.allclose(ours, plain, atol=0.1)
    assert type(merged.model) is type(base.model) and "lora" not in " ".join(dict(merged.model.named_modules()))
    assert merged.tokenizer is not None and merged.window == base.window


def test_the_digest_covers_base_and_adapter_and_a_tokenizer_is_the_base_s(
    tiny_model: Path, adapter: Path, tmp_path: Path
) -> None:
    base, name = str(tiny_model), f"{tiny_model}+{adapter}"
    other = make(tiny_model, tmp_path / "other", seed=1)
    assert len({digest_of(base), digest_of(name), digest_of(f"{tiny_model}+{other}")}) == 3
    assert digest_of(name, weights=False) == digest_of(base, weights=False)
    assert resolve(name).folder == resolve(base).folder


def test_an_adapter_of_the_store_goes_by_its_name(tiny_model: Path, adapter: Path, settings: Settings) -> None:
    manifest = replace(read_manifest(adapter), recipe="r")
    install(adapter, "gsm8k", settings.cache, manifest)
    name = f"{tiny_model}+gsm8k"
    assert digest_of(name, settings) == digest_of(f"{tiny_model}+{adapter}")
    (row,) = [row for row in catalogue(settings) if "+" in row.name]
    assert (row.name, row.state) == (name, "ready") and "3.000 nats a token before, 2.000 after" in row.detail
    assert verify(name, settings).state == "ready"
    folder = store_folder("gsm8k", settings.cache)
    assert not [path for path in folder.parent.iterdir() if path.name.startswith(".")]
    shutil.copytree(folder, folder.with_name(".partial-gsm8k-01234567"))  # as a kill leaves it
    assert len([row for row in catalogue(settings) if "+" in row.name]) == 1


def test_a_name_is_not_given_away_unasked(tiny_model: Path, adapter: Path, settings: Settings, tmp_path: Path) -> None:
    other = make(tiny_model, tmp_path / "other", seed=1)
    first, second = (replace(read_manifest(one), recipe=one.name) for one in (adapter, other))
    install(adapter, "x", settings.cache, first)
    install(adapter, "x", settings.cache, first)
    with pytest.raises(ModelError, match="another adapter is called x already"):
        install(other, "x", settings.cache, second)
    folder = install(other, "x", settings.cache, second, replace=True)
    assert (folder / WEIGHTS).read_bytes() == (other / WEIGHTS).read_bytes() and read_manifest(folder) == second


def test_one_that_is_damaged_is_made_again(adapter: Path, settings: Settings) -> None:
    manifest = replace(read_manifest(adapter), recipe="r")
    folder = install(adapter, "x", settings.cache, manifest)
    (folder / MANIFEST).write_text("{}")
    with pytest.raises(ModelDamaged, match=r"make it again \(`contextmill align --replace`\)"):
        install(adapter, "x", settings.cache, manifest)
    install(adapter, "x", settings.cache, manifest, replace=True)
    assert read_manifest(folder) == manifest


def test_the_wrong_base_is_named(tiny_model: Path, adapter: Path, tmp_path: Path) -> None:
    other = save_tiny_llama(tmp_path, seed=5)
    with pytest.raises(ModelError, match=f"was made for {tiny_model}.*name that model before the \\+"):
        resolve(f"{other}+{adapter}")


def test_what_is_missing_or_damaged_is_said(
    tiny_model: Path, adapter: Path, settings: Settings, tmp_path: Path
) -> None:
    with pytest.raises(ModelNotFound, match=r"no adapter 'nobody'.*none yet.*`contextmill align`"):
        resolve(f"{tiny_model}+nobody", settings)
    with pytest.raises(ModelError, match="one adapter at a time"):
        resolve(f"{tiny_model}+{adapter}+{adapter}", settings)
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in FILES:
        (copy / file).write_bytes((adapter / file).read_bytes())
    (copy / WEIGHTS).write_bytes(b"x" + (copy / WEIGHTS).read_bytes()[1:])
    with pytest.raises(ModelDamaged, match="its sha256 differs"):
        resolve(f"{tiny_model}+{copy}", settings)
    (copy / WEIGHTS).unlink()
    with pytest.raises(ModelDamaged, match="is missing"):
        resolve(f"{tiny_model}+{copy}", settings)
    (copy / MANIFEST).write_text(json.dumps({"base": "x"}))
    with pytest.raises(ModelDamaged, match="not an adapter's manifest"):
        resolve(f"{tiny_model}+{copy}", settings)
    assert verify(f"{tiny_model}+{copy}", settings).state == "damaged"


def test_a_path_with_a_plus_in_it_is_a_path(tmp_path: Path) -> None:
    folder = tmp_path / "a+b"
    folder.mkdir()
    save_tiny_llama(folder)
    assert resolve(str(folder)).adapter is None
