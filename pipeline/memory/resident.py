"""An encoder that stays with a worker, over the very weights that answer: one copy of the model is both."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.memory.autoencoder import Autoencoder
from pipeline.memory.encoder import filled
from pipeline.memory.lowrank import LowRank
from pipeline.memory.target import start_of
from pipeline.memory.widening import widen, worth_widening
from pipeline.models import Beside, LoadedModel, ModelPool
from pipeline.models.encoders import EncoderManifest
from pipeline.passes.apart import apart


@dataclass(frozen=True, slots=True)
class Resident:
    """``coder`` is frozen, over weights of ``base``; it reads spans in the fastest way there is."""

    coder: Autoencoder
    base: LoadedModel


def resident(folder: Path, manifest: EncoderManifest, base: str, dtype: str, device: str, pool: ModelPool) -> Resident:
    """The encoder in ``folder``, which was checked, over ``base``, loaded unless it is there. Raises ``ModelError``."""
    loaded = pool.causal_lm(base, dtype, device)
    key = ("encoder", manifest.revision, dtype, str(loaded.device))
    return pool.keep(
        key,
        lambda: _made(loaded, filled(apart(loaded.model), manifest, folder, start_of(loaded.tokenizer))),
        Beside(loaded, "encodes"),  # the two are one in memory, and leave it together
    )


def _made(loaded: LoadedModel, coder: Autoencoder) -> Resident:
    """In the dtype in which it reads: what is trained in float32 would be cast in every layer of every pass."""
    for one in coder.modules():
        if isinstance(one, LowRank):
            one.lora_A.data, one.lora_B.data = (each.data.to(loaded.model.dtype) for each in (one.lora_A, one.lora_B))
    if worth_widening(coder):
        widen(coder)
    return Resident(coder, loaded)
