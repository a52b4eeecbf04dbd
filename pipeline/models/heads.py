"""An encoder from a wheel and a small head of ours -> a folder that loads as any token classifier.

A head is a safetensors file in half precision. For a tensor ``P`` of ``BertForTokenClassification`` it holds either
``P`` itself (biases, norms, the two-label classifier), which replaces the encoder's, or ``P.up`` [out, r] and
``P.down`` [r, in], whose product is added to it (LoRA, arXiv 2106.09685, merged).

The result is the same on every machine: products of half-precision numbers are exact in float64, and so are sums of a
few of them.
"""

from __future__ import annotations

import hashlib
import json
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.models.bundled import Head
from pipeline.models.folder import WEIGHTS, read_json
from pipeline.models.ref import ModelDamaged, ModelError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Tensors = dict[str, NDArray[np.float32]]

LABELS = {"0": "remove", "1": "keep"}
"""Label 1 is keep, as in every published LLMLingua-2 model."""

TOKENIZER = {
    "tokenizer_class": "PreTrainedTokenizerFast",  # reads tokenizer.json as it is, whatever the release
    "model_max_length": 512,
    "unk_token": "[UNK]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}


def read_head(head: Head) -> bytes:
    """The head's file, checked. ``ModelDamaged`` if this installation lacks it or has another."""
    path = files("pipeline.compression") / "heads" / head.file
    data = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(data).hexdigest() != head.sha256:
        raise ModelDamaged(f"{head.file}: this installation lacks the head, or holds another; install contextmill anew")
    return data


def build_classifier(source: Path, head: bytes, target: Path) -> None:
    """Write the classifier to ``target``. ``source``: the encoder's config, weights and ``tokenizer.json``."""
    from safetensors.numpy import load, load_file, save

    encoder = {f"bert.{name}": tensor for name, tensor in load_file(source / WEIGHTS).items()}
    # Written by hand: safetensors writes files for their owner alone, and a cache may be shared.
    (target / WEIGHTS).write_bytes(save(apply_head(encoder, load(head)), {"format": "pt"}))
    _write(target / "config.json", _config(read_json(source / "config.json")))
    tokenizer = read_json(source / "tokenizer.json") | {"truncation": None, "padding": None}
    _write(target / "tokenizer.json", tokenizer)
    _write(target / "tokenizer_config.json", TOKENIZER)


def apply_head(encoder: Tensors, head: Tensors) -> Tensors:
    """The tensors of the token classifier, in float32. ``ModelError`` for a head of another encoder."""
    import numpy as np

    unused = ("bert.pooler.", "bert.embeddings.position_ids")
    made = {name: tensor.astype(np.float32) for name, tensor in encoder.items() if not name.startswith(unused)}
    for name, tensor in head.items():
        base, _, kind = name.rpartition(".")
        if kind == "down":
            continue
        if kind == "up" and base in made:
            delta = tensor.astype(np.float64) @ head[f"{base}.down"].astype(np.float64)
            made[base] = (made[base].astype(np.float64) + delta).astype(np.float32)
        elif name in made or name.startswith("classifier."):
            made[name] = tensor.astype(np.float32)
        else:
            raise ModelError(f"the head is for another encoder: {name} is not among this one's tensors")
    return made


def _config(encoder: dict[str, Any]) -> dict[str, Any]:
    own = {"architectures": ["BertForTokenClassification"], "id2label": LABELS, "torch_dtype": "float32"}
    own["label2id"] = {label: int(place) for place, label in LABELS.items()}
    return {key: value for key, value in encoder.items() if key not in ("_name_or_path", "transformers_version")} | own


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, sort_keys=True, indent=1), encoding="utf-8")
