from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hosted_rig import new_job
from sqlalchemy import Engine
from tiny_models import save_tiny_llama, save_tokenizer

from pipeline.storage.sql import open_engine

WINDOW = 160


def save_other(folder: Path, name: str) -> Path:
    """Another random architecture, same tokenizer; GPT-2 has learned positions, and no place past its window."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.25}
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    if name == "gpt_neox":
        sizes |= {"intermediate_size": 128}
    vocabulary = save_tokenizer(folder)
    config = AutoConfig.for_model(name, vocab_size=vocabulary, max_position_embeddings=WINDOW, **sizes, **ends)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.fixture
def engine(sqlite_url: str) -> Iterator[Engine]:
    """SQLite with a job to hang calls on."""
    made = open_engine(sqlite_url)
    new_job(made)
    yield made
    made.dispose()


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of small random models by architecture, each with a window of ``WINDOW`` tokens."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("llama", "gpt_neox", "gpt2")}
    save_tiny_llama(folders["llama"], window=WINDOW)
    for name in ("gpt_neox", "gpt2"):
        save_other(folders[name], name)
    return folders
