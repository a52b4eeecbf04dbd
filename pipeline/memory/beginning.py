"""The autoencoder that a training begins with."""

from __future__ import annotations

from pathlib import Path

import torch

from pipeline.memory.autoencoder import Autoencoder
from pipeline.memory.encoder import fill
from pipeline.memory.plan import Plan
from pipeline.memory.target import start_of
from pipeline.models import LoadedModel
from pipeline.stages import Halt
from schemas.memory import EncoderTraining

COMPILED_FROM = {"pretrain": 150, "finetune": 3000}
"""Steps from which on a GPU compiling is made good: a minute for a pretraining, two for passes of all lengths."""


def is_half(spec: EncoderTraining) -> bool:
    """Whether passes are autocast to bfloat16."""
    return spec.dtype == "bfloat16"


@torch.no_grad()
def some_slots(spec: EncoderTraining, plan: Plan, coder: Autoencoder) -> torch.Tensor:
    """``[n, d]``, of what is learned first, by passes as the training's."""
    with torch.autocast(coder.tags.device.type, torch.bfloat16, enabled=is_half(spec)):
        return plan.slots(coder)


def begun(spec: EncoderTraining, loaded: LoadedModel, plan: Plan, found: Path | None) -> Autoencoder:
    """Over the model, which is its own from now on, compiled on a GPU where that pays: as trained before, in the folder
    ``found``; or weights drawn by the seed alone, and slots of the size of embeddings by what is learned first.

    Raises ``Halt`` for targets that the model lacks.
    """
    device = loaded.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(spec.seed)
        try:
            coder = Autoencoder(loaded.model, spec.encoder, start_of(loaded.tokenizer))
        except ValueError as error:
            raise Halt(f"{spec.kind}: encoder.targets: {error} in {loaded.ref.name}") from error
    if found is not None:
        fill(coder, found)
    else:
        coder.resize(some_slots(spec, plan, coder))
    if device.type == "cuda" and spec.steps >= COMPILED_FROM[spec.kind]:
        plan.hasten(coder)
    return coder
