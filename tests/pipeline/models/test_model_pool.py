from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from pipeline.models import Beside, ModelDamaged, ModelError, ModelPool, resolve_device
from schemas.settings import Settings


def test_loaded_model_is_the_saved_one_ready_for_inference(folder: Path, settings: Settings) -> None:
    loaded = ModelPool("cpu", settings=settings).causal_lm(str(folder))
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert loaded.model.config._attn_implementation == "sdpa"
    assert (loaded.device, loaded.window) == (torch.device("cpu"), 128)
    tokens = torch.tensor([loaded.tokenizer.encode("a mill grinds")])
    expected = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa").eval()(tokens).logits
    assert torch.equal(loaded.model(tokens).logits, expected)


def test_models_stay_until_the_least_used_must_go(folder: Path, settings: Settings, tmp_path: Path) -> None:
    others = [_other(folder, tmp_path / f"other{seed}", seed) for seed in (1, 2)]
    pool = ModelPool("cpu", limit=2, settings=settings)
    first, second = pool.causal_lm(str(folder)), pool.causal_lm(str(others[0]))
    assert pool.causal_lm(str(folder)) is first
    pool.causal_lm(str(others[1]))  # the second was used longest ago
    assert pool.causal_lm(str(folder)) is first
    assert pool.causal_lm(str(others[0])) is not second
    pool.close()
    assert pool.causal_lm(str(folder)) is not first


def test_what_works_beside_a_model_is_not_counted_and_leaves_with_it(
    folder: Path, settings: Settings, tmp_path: Path
) -> None:
    scorer, one, two, third = (str(_other(folder, tmp_path / f"other{seed}", seed)) for seed in (1, 2, 3, 4))
    pool = ModelPool("cpu", limit=2, settings=settings)
    scores, target = pool.causal_lm(scorer), pool.causal_lm(str(folder))
    drafts = pool.causal_lm(one, beside=Beside(target, "drafts"))
    encodes = pool.keep(("encoder",), object, Beside(target, "encodes"))
    again = [pool.causal_lm(scorer), pool.causal_lm(str(folder)), pool.causal_lm(one, beside=Beside(target, "drafts"))]
    assert [id(model) for model in again] == [id(scores), id(target), id(drafts)]
    both = Beside(target, "drafts", 2)
    assert pool.causal_lm(two, beside=both) is pool.causal_lm(two, beside=both)
    assert pool.causal_lm(one, beside=both) is drafts
    pool.causal_lm(scorer)
    pool.causal_lm(third)  # the target was used longest ago
    assert pool.causal_lm(scorer) is scores
    assert pool.keep(("encoder",), object) is not encodes


def test_where_memory_runs_out_what_is_not_needed_leaves(folder: Path, settings: Settings, tmp_path: Path) -> None:
    other = str(_other(folder, tmp_path / "other", 1))
    pool = ModelPool("cpu", limit=3, settings=settings)
    target, scores = pool.causal_lm(str(folder)), pool.causal_lm(other)
    tried: list[object] = []

    def make() -> object:
        tried.append(object())
        if len(tried) == 1:
            raise torch.OutOfMemoryError
        return tried[-1]

    assert pool.keep(("drafter",), make, Beside(target, "drafts")) is tried[1]
    assert pool.causal_lm(str(folder)) is target and pool.causal_lm(other) is not scores

    def never() -> object:
        tried.append(object())
        raise torch.OutOfMemoryError

    for key in ("large",), ("larger",):  # the second finds nobody left who could leave
        tried.clear()
        with pytest.raises(torch.OutOfMemoryError):
            pool.keep(key, never)
        assert len(tried) == (2 if key == ("large",) else 1)


def test_of_a_role_only_so_many_stay_beside_a_model(folder: Path, settings: Settings, tmp_path: Path) -> None:
    one, two = (str(_other(folder, tmp_path / f"other{seed}", seed)) for seed in (1, 2))
    pool = ModelPool("cpu", limit=1, settings=settings)
    target = pool.causal_lm(str(folder))
    beside = Beside(target, "drafts")
    first = pool.causal_lm(one, beside=beside)
    pool.causal_lm(two, beside=beside)
    assert pool.causal_lm(one, beside=beside) is not first
    alone = pool.causal_lm(one)  # it counts now, and the limit is one
    assert pool.causal_lm(one) is alone
    assert pool.causal_lm(str(folder)) is not target


def test_same_weights_in_two_places_are_loaded_once(folder: Path, settings: Settings, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    pool = ModelPool("cpu", settings=settings)
    assert pool.causal_lm(str(tmp_path / "copy")) is pool.causal_lm(str(folder))


def test_dtype_is_the_one_asked_for(folder: Path, settings: Settings) -> None:
    pool = ModelPool("cpu", settings=settings)
    assert pool.causal_lm(str(folder), "bfloat16").model.dtype == torch.bfloat16
    assert pool.causal_lm(str(folder)).model.dtype == torch.float32
    with pytest.raises(ValueError, match="float32, bfloat16, float16"):
        pool.causal_lm(str(folder), "int8")


def test_missing_tensor_is_not_replaced_by_random_numbers(folder: Path, settings: Settings) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelDamaged, match=r"missing or misshapen.*up_proj"):
        ModelPool("cpu", settings=settings).causal_lm(str(folder))


def test_misshapen_tensor_is_refused(folder: Path, settings: Settings) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = torch.ones(3)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"cannot load.* other shapes than config.json says\); fetch it again"):
        ModelPool("cpu", settings=settings).causal_lm(str(folder))


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_weights_that_are_no_numbers_are_refused(folder: Path, settings: Settings, number: float) -> None:
    """They would score every text alike, and nobody would see it."""
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] = number
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelDamaged, match=r"up_proj\.weight holds NaN or infinity.*; fetch them again$"):
        ModelPool("cpu", settings=settings).causal_lm(str(folder))


def test_float16_that_is_too_small_for_a_model_is_named(folder: Path, settings: Settings) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] *= 1e6
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    pool = ModelPool("cpu", settings=settings)
    pool.causal_lm(str(folder))
    with pytest.raises(ModelDamaged, match="float16 may be too small for it: bfloat16 or float32"):
        pool.causal_lm(str(folder), "float16")


def test_a_tokenizer_of_a_larger_model_is_refused(folder: Path, settings: Settings) -> None:
    """Its last tokens have no place in this one: an index error, once such a word comes."""
    weights = load_file(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    few = config["vocab_size"] // 2
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in weights:
            weights[name] = weights[name][:few].clone()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": few}))
    with pytest.raises(ModelError, match=rf"has \d+ tokens and the model {few}; put the model's own tokenizer"):
        ModelPool("cpu", settings=settings).causal_lm(str(folder))


def test_code_that_comes_with_a_model_never_runs(folder: Path, settings: Settings, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    (folder / "evil.py").write_text(f"import pathlib\npathlib.Path({str(ran)!r}).touch()\nclass M: ...\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.M", "AutoModelForCausalLM": "evil.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError):
        ModelPool("cpu", settings=settings).causal_lm(str(folder))
    assert not ran.exists()


def test_devices() -> None:
    assert resolve_device("cpu") == "cpu"
    assert resolve_device("auto") == ("cuda:0" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ModelError, match=r"cuda:99.*shows \d+ GPUs"):  # a job stops for it, no document is blamed
        resolve_device("cuda:99")
    for wrong in ("mps", "gpu", "cuda:x", ""):
        with pytest.raises(ModelError, match="auto, cpu, cuda"):
            resolve_device(wrong)
    with pytest.raises(ValueError, match="at least one"):
        ModelPool(limit=0)


def _other(folder: Path, copy: Path, seed: int) -> Path:
    shutil.copytree(folder, copy)
    weights = load_file(copy / "model.safetensors")
    weights["model.norm.weight"] += seed
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    return copy
