"""Models of which only the shapes matter: speed does not depend on weights."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from pipeline.memory.autoencoder import Autoencoder
from pipeline.memory.encoder import write_encoder
from pipeline.models import ModelPool, digest_of
from pipeline.models.encoders import EncoderManifest, Figures
from schemas.memory import EncoderSpec, Layout

WEIGHTS = {".safetensors", ".bin", ".gguf"}


def is_weightless(model: Path) -> bool:
    """Whether it is a model's folder without weights of any kind: those that cannot be read are not to be replaced."""
    return (model / "config.json").is_file() and not any(path.suffix in WEIGHTS for path in model.iterdir())


def with_weights(model: Path, target: Path) -> Path:
    """The folder itself, or a copy in ``target`` with random weights where it has none."""
    from transformers import AutoConfig, AutoModelForCausalLM

    if not is_weightless(model):
        return model
    print(f"{model} has no weights: they are random", flush=True)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model)).save_pretrained(target)
    for path in model.iterdir():
        if path.is_file():
            shutil.copy(path, target)
    return target


def random_encoder(folder: str, model: str, pool: ModelPool, *, rank: int, layout: Layout, span: int) -> None:
    """Write a memory encoder for ``model`` into ``folder``, as if it had been trained on spans of so many tokens."""
    spec = EncoderSpec(rank=rank, alpha=2.0 * rank, layout=layout)
    coder = Autoencoder(pool.own_copy(model).model, spec)
    for name, one in coder.trained().items():
        if name.endswith("lora_B"):
            torch.nn.init.normal_(one, 0.0, 0.01)
    unknown = (None, None)
    figures = Figures(0, 0, span, span // 4, 4.0, unknown, unknown, unknown, unknown)
    manifest = EncoderManifest(model, digest_of(model), spec.model_dump(mode="json"), 0, figures, "")
    write_encoder(coder, [], manifest, folder)
