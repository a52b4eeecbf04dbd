"""A token classifier that llmlingua and contextmill both load: an encoder's weights with an untrained head."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers.model import old_config, read_json

NAMED = "bert-base-multilingual-cased"
"""The library tells how words begin by this in a model's name, and refuses other names: "##" inside words, as in the
WordPiece vocabularies of BERT, MiniLM and MPNet."""


def with_untrained_head(encoder: Path, parent: Path, seed: int = 0) -> Path:
    """A folder in ``parent`` with the encoder in ``encoder`` and a random head of two labels.

    ``encoder`` holds config.json, tokenizer.json, special_tokens_map.json (or the tokens in tokenizer_config.json) and
    model.safetensors. Without the last the encoder's weights are random, too: the speed depends on shapes alone.
    """
    from transformers import AutoConfig, AutoModelForTokenClassification

    target = parent / f"{NAMED}-{encoder.name}"
    torch.manual_seed(seed)
    if (encoder / "model.safetensors").is_file():
        model = AutoModelForTokenClassification.from_pretrained(
            encoder, num_labels=2, dtype=torch.float32, local_files_only=True, use_safetensors=True
        )
    else:
        model = AutoModelForTokenClassification.from_config(AutoConfig.from_pretrained(encoder, num_labels=2))
    with torch.no_grad():  # a head of the usual 0.02 gives every token the same half: no threshold would part them
        model.classifier.weight.normal_(0, 1)
    model.save_pretrained(target)
    _write(target / "config.json", old_config(read_json(target / "config.json")))
    _write(target / "tokenizer.json", read_json(encoder / "tokenizer.json") | {"truncation": None, "padding": None})
    special = {name: token for name, token in _special(encoder).items() if name != "additional_special_tokens"}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 512}
    _write(target / "tokenizer_config.json", settings | special)
    return target


def _special(encoder: Path) -> dict[str, str]:
    path = encoder / "special_tokens_map.json"
    if path.is_file():
        found = read_json(path)
    else:
        found = {
            name: one for name, one in read_json(encoder / "tokenizer_config.json").items() if name[-6:] == "_token"
        }
    return {name: token["content"] if isinstance(token, dict) else token for name, token in found.items()}


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
