"""A trained encoder as files, and back: slots are never read by another model than they were trained for."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file, save

from pipeline.memory.autoencoder import TAGS, Autoencoder
from pipeline.memory.target import check_head, start_of
from pipeline.models import ModelDamaged, ModelPool, encoders, resolve
from pipeline.models.encoders import CURVE, MANIFEST, WEIGHTS, EncoderManifest
from pipeline.storage.filesystem import resolve_path
from pipeline.storage.parts import write_whole
from schemas.memory import EncoderSpec
from schemas.settings import Settings

Row = tuple[int, float, float, float]
"""Of a step: its number, the loss before it (nats a token), its learning rate, seconds of work up to then."""

CURVE_SCHEMA = pa.schema(
    [
        pa.field("step", pa.int64(), nullable=False),
        pa.field("loss", pa.float64(), nullable=False),
        pa.field("rate", pa.float64(), nullable=False),
        pa.field("seconds", pa.float64(), nullable=False),
    ]
)


@torch.no_grad()
def interpolate(coder: Autoencoder, first: Mapping[str, torch.Tensor], share: float) -> None:
    """Move what is trained to so large a ``share`` of the way to it from what was there ``first``, by name: much of
    what either can do may be had there (WiSE-FT; Wortsman et al., arXiv 2109.01903, section 3). [FT] stays as it is:
    nobody may have taught it before."""
    asked = coder.tags[TAGS.index("FT")].clone()
    for name, one in coder.trained().items():
        one.copy_(torch.lerp(first[name].to(one), one, share))
    coder.tags[TAGS.index("FT")] = asked


@torch.no_grad()
def rounded(coder: Autoencoder) -> None:
    """What is trained becomes what float16 keeps of it: what is measured then is what will be read."""
    for one in coder.trained().values():
        one.copy_(one.half())


def write_encoder(coder: Autoencoder, curve: Sequence[Row], manifest: EncoderManifest, folder: str) -> None:
    """Write its tensors in float16, the curve, and at last the manifest with the tensors' sha256 into ``folder``
    (local or s3). Raises ``OSError``."""
    tensors = {name: one.detach().half().cpu().contiguous() for name, one in coder.kept().items()}
    weights, drawn = save(tensors, {"format": "pt"}), io.BytesIO()
    rows = [dict(zip(CURVE_SCHEMA.names, row, strict=True)) for row in curve]
    pq.write_table(pa.Table.from_pylist(rows, CURVE_SCHEMA), drawn, compression="zstd")
    whole = replace(manifest, sha256=hashlib.sha256(weights).hexdigest())
    said = replace(whole, written=whole.revision).to_json()
    fs, root = resolve_path(folder)
    for name, data in {WEIGHTS: weights, CURVE: drawn.getvalue(), MANIFEST: said.encode()}.items():
        write_whole(fs, f"{root}/{name}", data)


def read_curve(folder: Path) -> list[tuple[int, float]]:
    """Step and loss of an encoder's training. Raises ``ModelDamaged``."""
    try:
        curve = pq.read_table(folder / CURVE, columns=["step", "loss"])
    except (OSError, pa.ArrowException) as error:
        why = "is missing" if isinstance(error, FileNotFoundError) else "cannot be read"
        raise ModelDamaged(f"{folder / CURVE} {why}; {encoders.again(folder)}") from error
    return [(one["step"], one["loss"]) for one in curve.to_pylist()]


@torch.no_grad()
def fill(coder: Autoencoder, folder: Path) -> None:
    """What is trained becomes what lies in ``folder``. Raises ``ModelDamaged`` for tensors of another encoder."""
    tensors, kept = load_file(folder / WEIGHTS), coder.kept()
    if {key: one.shape for key, one in tensors.items()} != {key: one.shape for key, one in kept.items()}:
        raise ModelDamaged(
            f"{folder}: its tensors are not those of such an encoder over its base; {encoders.again(folder)}"
        )
    for key, one in kept.items():
        one.copy_(tensors[key])


def load_encoder(
    name: str, pool: ModelPool, base: str | None = None, dtype: str = "float32", device: str = "auto",
    settings: Settings | None = None,
) -> Autoencoder:  # fmt: skip
    """The encoder called ``name`` in the store, or in the folder ``name``, over a copy of its own of ``base`` (default:
    the model it was trained with), frozen, ready to encode.

    Raises ``ModelNotFound``, ``ModelDamaged`` for tensors that are not what was written, and ``ModelError`` for a base
    with another digest.
    """
    given = settings or Settings()
    folder = encoders.find(name, given.cache)
    model = base or encoders.read_manifest(folder).base
    manifest = encoders.check(folder, model, resolve(model, given).digest, given.cache)
    loaded = pool.own_copy(model, dtype, device)
    return filled(loaded.model, manifest, folder, start_of(loaded.tokenizer))


def filled(model: Any, manifest: EncoderManifest, folder: Path, start: Sequence[int] = ()) -> Autoencoder:
    """The encoder in ``folder`` over ``model``, which is its own from now on, frozen; before texts stands ``start``.
    Raises ``ModelDamaged``, and ``ModelError`` as ``check_head``."""
    check_head(model, manifest.base)
    try:
        coder = Autoencoder(model, EncoderSpec.model_validate(manifest.spec), start)
    except ValueError as error:
        raise ModelDamaged(f"{folder / encoders.MANIFEST}: {error} in its base; {encoders.again(folder)}") from error
    fill(coder, folder)
    if coder.switch is None:  # a trunk of its own reads embeddings as the base has them
        coder.encoder.to(coder.embed.weight.dtype)
    return coder.eval().requires_grad_(False)
