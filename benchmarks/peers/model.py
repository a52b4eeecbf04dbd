"""Model folders of ours as transformers 4.35.2 reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
"""The pre-tokenizer of the reference outputs, which were made with a tokenizer that does not set digits apart."""


def convert(source: Path, target: Path, *, byte_level: bool = False) -> Path:
    """``source`` (config.json, tokenizer.json, model.safetensors) in ``target``; the weights are a link.

    ``byte_level`` replaces the tokenizer's pre-tokenizer by a bare byte-level one.
    """
    target.mkdir(parents=True, exist_ok=True)
    config = read_json(source / "config.json")
    tokenizer = read_json(source / "tokenizer.json")
    if byte_level:
        tokenizer["pre_tokenizer"] = BYTE_LEVEL
    _write(target / "config.json", old_config(config))
    _write(target / "tokenizer.json", old_tokenizer(tokenizer))
    _write(target / "tokenizer_config.json", _tokenizer_config(read_json(source / "tokenizer_config.json")))
    weights = target / "model.safetensors"
    weights.unlink(missing_ok=True)
    weights.symlink_to((source / "model.safetensors").resolve())
    return target


def old_config(config: dict[str, Any]) -> dict[str, Any]:
    """``rope_theta`` at the top, no ``rope_parameters``; ``torch_dtype`` for ``dtype``."""
    kept = {key: value for key, value in config.items() if key not in ("rope_parameters", "dtype")}
    rope = config.get("rope_parameters") or {}
    if "rope_theta" in rope:
        kept["rope_theta"] = rope["rope_theta"]
    kept["torch_dtype"] = config.get("dtype", config.get("torch_dtype", "float32"))
    return kept


def old_tokenizer(tokenizer: dict[str, Any]) -> dict[str, Any]:
    """Merges as "a b", as tokenizers 0.15 wants them."""
    model = dict(tokenizer["model"])
    if model.get("merges"):
        model["merges"] = [one if isinstance(one, str) else " ".join(one) for one in model["merges"]]
    return {**tokenizer, "model": model}


def read_json(path: Path) -> dict[str, Any]:
    """The object in ``path``."""
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value


def _tokenizer_config(config: dict[str, Any]) -> dict[str, Any]:
    """``clean_up_tokenization_spaces`` is left out: the release has its users clean up."""
    kept = {key: value for key, value in config.items() if key not in ("backend", "clean_up_tokenization_spaces")}
    return {**kept, "tokenizer_class": "PreTrainedTokenizerFast"}


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
