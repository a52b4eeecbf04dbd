"""Small random models of other architectures than ``tiny_models`` has."""

from __future__ import annotations

from pathlib import Path

from tiny_models import save_tokenizer

WINDOW = 160
"""Tokens that each of them reads at most."""


def save_other(folder: Path, name: str, seed: int = 1) -> Path:
    """Same tokenizer, same size; GPT-2 has learned positions, and no place past its window."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.25}
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    if name != "gpt2":
        sizes |= {"intermediate_size": 128}
    if name in ("qwen2", "gemma", "granite"):
        sizes |= {"num_key_value_heads": 2}
    vocabulary = save_tokenizer(folder)
    config = AutoConfig.for_model(name, vocab_size=vocabulary, max_position_embeddings=WINDOW, **sizes, **ends)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder
