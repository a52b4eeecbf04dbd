"""How much memory a model needs, read from its files: no weights are loaded and torch is not imported."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.models.folder import read_json

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
RUNTIME = 700 * 2**20
"""Python, torch and its kernels: 0.5 to 0.9 GiB of host memory, and about as much of a GPU's for its CUDA context."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What of a decoder's config decides its memory. Tied embeddings are stored, and counted, once."""

    parameters: int
    layers: int
    key_value_width: int
    hidden: int
    intermediate: int
    vocabulary: int


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes at the peak, while one batch of ``batch_tokens`` padded tokens is in the model.

    ``weights = parameters x bytes``; ``kv = 2 x layers x kv_heads x head_dim x batch_tokens x bytes``;
    ``activations = batch_tokens x ((4 hidden + 2 intermediate) x bytes)``: the residual, its norm, the attention's
    and the MLP's widest intermediates of the one layer at work; ``logits = rows x vocabulary x 4``, once as computed
    and once as log-probabilities, for the rows that are needed at a time; ``runtime`` as measured (``RUNTIME``).
    """

    weights: int
    kv: int
    activations: int
    logits: int
    runtime: int

    @property
    def peak(self) -> int:
        """All of it."""
        return self.weights + self.kv + self.activations + self.logits + self.runtime


def footprint(shape: Shape, dtype: str, batch_tokens: int, logit_rows: int) -> Footprint:
    """The memory of a forward pass over ``batch_tokens`` that needs the logits of ``logit_rows`` of them at a time."""
    size = BYTES[dtype]
    return Footprint(
        weights=shape.parameters * size,
        kv=2 * shape.layers * shape.key_value_width * batch_tokens * size,
        activations=batch_tokens * (4 * shape.hidden + 2 * shape.intermediate) * size,
        logits=2 * logit_rows * shape.vocabulary * 4,
        runtime=RUNTIME,
    )


def read_shape(folder: Path) -> Shape | None:
    """The shape of the model in ``folder``; None where its config does not say, or its weights have no readable header.

    Raises ``ModelDamaged`` for a config that is no JSON.
    """
    config = read_json(folder / "config.json")
    config = {**config, **(config.get("text_config") or {})}
    parameters = _parameters(folder)
    heads, hidden = _first(config, "num_attention_heads", "n_head"), _first(config, "hidden_size", "n_embd")
    layers, vocabulary = _first(config, "num_hidden_layers", "n_layer"), _first(config, "vocab_size")
    if not (parameters and heads and hidden and layers and vocabulary):
        return None
    key_value_heads = _first(config, "num_key_value_heads") or heads
    head_width = _first(config, "head_dim") or hidden // heads
    intermediate = _first(config, "intermediate_size", "n_inner") or 4 * hidden
    return Shape(parameters, layers, key_value_heads * head_width, hidden, intermediate, vocabulary)


def _first(config: dict[str, Any], *keys: str) -> int | None:
    return next((config[key] for key in keys if isinstance(config.get(key), int)), None)


def _parameters(folder: Path) -> int | None:
    files = sorted(folder.glob("*.safetensors"))
    try:
        return sum(map(_elements, files)) if files else None
    except (OSError, ValueError, struct.error, KeyError, TypeError, AttributeError):
        return None  # whole files are pipeline.models' business; an estimate goes without


def _elements(path: Path) -> int:
    """Elements in a safetensors file, from its header: 8 bytes of length, then JSON."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > path.stat().st_size:
            raise ValueError(f"{path}: no safetensors header")
        header = json.loads(file.read(length))
    return sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
