"""The autoencoder that a pretraining begins with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pipeline.memory.autoencoder import Autoencoder
from pipeline.memory.corpus import Corpus
from pipeline.memory.encoder import fill
from pipeline.memory.training import batch_of
from pipeline.models import LoadedModel
from pipeline.stages import Halt
from schemas.memory import PretrainSpec

COMPILED_FROM = 300
"""Steps from which on a GPU compiling, about a minute, is soon made good."""

CALIBRATED = 64
"""Spans by which the size of slots is set."""


def is_half(spec: PretrainSpec) -> bool:
    """Whether passes are autocast to bfloat16."""
    return spec.dtype == "bfloat16"


def begun(spec: PretrainSpec, loaded: LoadedModel, corpus: Corpus, found: Path | None) -> Autoencoder:
    """Over the model, which is its own from now on, compiled on a GPU where that pays: as trained before, in the folder
    ``found``; or weights drawn by the seed alone, and slots of the size of embeddings by the first step's spans.

    Raises ``Halt`` for targets that the model lacks.
    """
    device = loaded.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(spec.seed)
        try:
            coder = Autoencoder(loaded.model, spec.encoder)
        except ValueError as error:
            raise Halt(f"pretrain: encoder.targets: {error} in {loaded.ref.name}") from error
    if found is not None:
        fill(coder, found)
    else:
        first = batch_of(corpus, spec, 0, device)
        with torch.autocast(device.type, torch.bfloat16, enabled=is_half(spec)):
            coder.calibrate(first.contexts[:CALIBRATED], first.slots)
    if device.type == "cuda" and spec.steps >= COMPILED_FROM:
        hasten(coder, len(spec.lessons))
    return coder


def hasten(coder: Autoencoder, lessons: int) -> None:
    """Compile what reads, for the shapes of so many lessons each by itself: any-shape programs are slower."""
    settings: Any = torch._dynamo.config
    # Encoding and decoding are two programs of one code; beyond the limit torch goes back to eager.
    settings.recompile_limit = max(settings.recompile_limit, 8 + 4 * lessons)
    for trunk in {coder.encoder, coder.decoder}:
        trunk.compile(dynamic=False)
