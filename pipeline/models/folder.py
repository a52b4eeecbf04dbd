"""What a model folder must hold: config, tokenizer and whole safetensors weights, never pickled ones."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from pipeline.models.ref import ModelDamaged, ModelError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
CONFIGS = ("config.json", "generation_config.json", "tokenizer_config.json")
TOKENIZER = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)
LAYER_COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
"""What configs call the number of layers."""

VOCABULARIES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")


def model_files(folder: Path, *, weights: bool = True) -> list[str]:
    """Names of the files that decide what the model in ``folder`` computes, checked to be there and whole.

    ``weights=False`` asks for a tokenizer only. Raises ``ModelError`` or ``ModelDamaged``.
    """
    for name in CONFIGS:
        if (folder / name).is_file():
            read_json(folder / name)
    if weights and not (folder / "config.json").is_file():
        raise ModelError(f"{folder}: no config.json, so this is no model folder (transformers' layout is expected)")
    if not any((folder / name).is_file() for name in VOCABULARIES):
        raise ModelError(
            f"{folder}: no tokenizer (none of {', '.join(VOCABULARIES)}); save it beside the weights (one that has no "
            "such file, as ByT5's, does not say where its tokens stand, and will not do)"
        )
    names = [name for name in (*CONFIGS, *TOKENIZER) if (folder / name).is_file()]
    return names + (_weight_files(folder) if weights else [])


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``; ``ModelDamaged`` if it holds none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelDamaged(f"{path}: no valid JSON ({error}); fetch the file again") from None
    if not isinstance(value, dict):
        raise ModelDamaged(f"{path}: a JSON object is expected; fetch the file again")
    return value


def window_of(folder: Path) -> int | None:
    """The most tokens the model in ``folder`` was made for, from its config; None if it states none."""
    return _stated(folder, "max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx")


def layers_in(folder: Path) -> int | None:
    """How many layers the model in ``folder`` has, from its config; None if it states none."""
    return _stated(folder, *LAYER_COUNTS)


def _stated(folder: Path, *keys: str) -> int | None:
    """The first of these whole numbers in the model's config."""
    if not (folder / "config.json").is_file():
        return None
    config = read_json(folder / "config.json")
    config = {**config, **(config.get("text_config") or {})}
    return next((int(config[key]) for key in keys if isinstance(config.get(key), int)), None)


def parameters(folder: Path) -> int:
    """How many numbers the weights in ``folder`` hold, by the heads of their files. Raises as ``model_files`` does."""
    from safetensors import safe_open

    total = 0
    for name in _weight_files(folder):
        if name != INDEX:
            with safe_open(folder / name, framework="np") as file:
                total += sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118
    return total


def _weight_files(folder: Path) -> list[str]:
    """The files transformers would load: one file if there is one, else the shards of the index."""
    if (folder / WEIGHTS).is_file():
        names = [WEIGHTS]
    elif (folder / INDEX).is_file():
        names = [INDEX, *_shards(folder)]
    elif pickled := sorted(path.name for path in (*folder.glob("*.bin"), *folder.glob("*.pt*"))):
        raise ModelError(
            f"{folder}: only pickled weights ({pickled[0]}), which can run code and are never loaded; convert them "
            "on a machine you can spare: load the model there and save_pretrained(...) it, which writes safetensors"
        )
    else:
        raise ModelError(f"{folder}: no weights ({WEIGHTS} or {INDEX}); complete the folder, or name another model")
    for name in names:
        if name != INDEX:
            check_whole(folder / name)
    return names


def _shards(folder: Path) -> list[str]:
    declared = read_json(folder / INDEX).get("weight_map")
    names = sorted({str(name) for name in declared.values()}) if isinstance(declared, dict) else []
    if not names or any(Path(name).name != name for name in names):
        raise ModelDamaged(f"{folder / INDEX}: names no shards in this folder; fetch the file again")
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise ModelDamaged(
            f"{folder}: {len(missing)} of {len(names)} weight files missing ({missing[0]}); fetch them again"
        )
    return names


def check_whole(path: Path) -> None:
    """Raise unless the header is sound and the file as long as it says. Reads the header only."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np"):
            pass
    except SafetensorError as error:
        raise ModelDamaged(f"{path}: damaged or truncated weights ({error}); fetch the file again") from None
