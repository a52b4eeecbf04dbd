"""One stage of an estimate: the formulas for tokens, worker seconds, memory and money."""

from __future__ import annotations

import math
import os
import sys
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

from pipeline.accounting.footprint import Shape, footprint, read_shape
from pipeline.accounting.prices import Price, PricesMissing, cost_microusd, price_of
from pipeline.accounting.speeds import Measured
from pipeline.accounting.training_estimate import LEARNING_PASSES, training_work
from pipeline.generation.bounds import FRAME_TOKENS, price_key, worst_microusd
from pipeline.memory.encode_stage import passes_of
from pipeline.models import encoders, is_encoder_decoder, resolve
from pipeline.models.folder import window_of
from pipeline.models.ref import ModelError
from schemas.align import AlignSpec, TrainingSpec
from schemas.compress import CompressBase, CompressSpec
from schemas.evaluate import EvaluateSpec
from schemas.job import JobSpec
from schemas.memory import EncoderTraining, EncodeSpec, FinetuneSpec
from schemas.recover import RecoverSpec
from schemas.reference import ReferenceSpec
from schemas.settings import Settings
from schemas.stage import GenerateSpec

REFERENCE_PARAMETERS = 135e6
CPU_RATES = (400.0, 40.0)
GPU_RATES = (100_000.0, 1_000.0)
"""Tokens/s read and written by a 135M model in float32, per CPU core and per large GPU; scaled by parameters.

The same rough rates as those by which shards are cut (``pipeline.generation.stage``), for full batches."""
CORES = 16
"""More cores than these are taken to add nothing."""
CALL_RATE = 50.0
"""Tokens/s that one call to a hosted model writes."""
COMPRESS_PASSES = 2
"""LLMLingua reads a prompt to rank its demonstrations, then again, segment by segment, to choose tokens."""
SCORED_LOGITS = {"cpu": 2**23, "cuda": 2**27}
"""Logits that are held at once while tokens are scored (``pipeline.compression.scoring``)."""


Reading = CompressBase | GenerateSpec | TrainingSpec | EncoderTraining | EncodeSpec
"""Stages that read texts with a model here."""


ONE_LENGTH = "questions and texts of the rehearsal are taken to be as long as each other"
"""Of a fine-tuning: how many of either there are nobody has counted."""


@dataclass(frozen=True, slots=True)
class Flow:
    """The prompts that come into a stage: how many, and their tokens in all."""

    documents: int
    tokens: int


@dataclass(frozen=True, slots=True)
class StageEstimate:
    """One stage. Seconds are worker time on ``device``, memory a worker's peak there; ``None`` where unknown.

    ``expected`` money is for half of the longest answers (or the measured length), ``worst`` for the longest, nothing
    cached; both for one call per document.
    """

    index: int
    kind: str
    hosted: bool
    device: str
    tokens_in: int
    tokens_out: int
    seconds: float | None
    memory_bytes: int | None
    weights_bytes: int | None
    expected_microusd: int | None
    worst_microusd: int | None
    price: str | None
    notes: tuple[str, ...]


def estimate_stage(
    job: JobSpec, index: int, flow: Flow, measured: Measured | None, day: date, settings: Settings
) -> StageEstimate:
    """The estimate of the stage at ``index``, which gets ``flow``."""
    spec = job.stages[index]
    if isinstance(spec, CompressBase) and spec.scoring_models:
        kept, read = _kept(spec, flow), flow.tokens * COMPRESS_PASSES
        return _local(index, spec, spec.scoring_models[0], flow, kept, read, 0, measured, settings)
    if isinstance(spec, TrainingSpec):
        # A shallow copy reads less than its target, which reads all of it, too.
        model = spec.model if isinstance(spec, AlignSpec) else spec.drafter or job.target.model
        read = flow.tokens * LEARNING_PASSES * spec.epochs
        made = _local(index, spec, model, flow, flow.tokens, read, 0, measured, settings)
        return replace(made, memory_bytes=None)  # what a pass keeps for the way back is not known beforehand
    if isinstance(spec, EncoderTraining):  # its steps take as long for any corpus
        work = training_work(spec, flow.documents, flow.tokens)
        made = _local(index, spec, job.target.model, flow, flow.tokens, *work, None, settings)
        mixed = isinstance(spec, FinetuneSpec) and spec.rehearsal is not None
        return replace(made, memory_bytes=None, notes=(*made.notes, *([ONE_LENGTH] if mixed else [])))
    if isinstance(spec, EncodeSpec):
        slots, note = _encoded(spec, flow, settings)
        read = round((flow.tokens + slots) * passes_of(spec, "cuda" if on_gpu(spec.device) else "cpu"))
        made = _local(index, spec, job.target.model, flow, slots, read, 0, measured, settings)
        return replace(made, notes=(*made.notes, *note))
    if not isinstance(spec, GenerateSpec):
        read = 0 if isinstance(spec, EvaluateSpec | RecoverSpec) else flow.tokens  # these count no tokens
        kept = _kept(spec, flow) if isinstance(spec, CompressBase) else read
        return StageEstimate(index, spec.kind, False, "cpu", read, kept, 0.0, 0, 0, None, None, None, ())
    written = _written(spec, flow, measured)
    if spec.backend == "openai":
        return _hosted(job, index, spec, flow, written, measured, day, settings)
    written = min(written, _room(job.target.model, flow, settings))
    made = _local(index, spec, job.target.model, flow, written, flow.tokens, written, measured, settings)
    return _with_drafters(made, spec, settings)


def _kept(spec: CompressBase, flow: Flow) -> int:
    if isinstance(spec, ReferenceSpec):
        asked = spec.options.tokens
        return int(spec.options.rate * flow.tokens) if asked is None else min(flow.tokens, asked * flow.documents)
    assert isinstance(spec, CompressSpec)
    rates = spec.rates or ((spec.rate,) if spec.rate is not None else ())
    if rates:
        return int(sum(rates) / len(rates) * flow.tokens)
    return min(flow.tokens, (spec.target_tokens or 0) * flow.documents)


def _encoded(spec: EncodeSpec, flow: Flow, settings: Settings) -> tuple[int, tuple[str, ...]]:
    """Slots, were prompts all contexts, and a note where the encoder does not say how many it makes."""
    if spec.ratio is not None:
        return round(flow.tokens / spec.ratio), ()
    try:
        figures = encoders.read_manifest(encoders.find(spec.encoder, settings.cache)).figures
    except ModelError as error:
        return flow.tokens, (f"slots are unknown: {error}",)
    if spec.slots is not None:
        spans = math.ceil(flow.tokens / max(1, flow.documents) / (spec.span or figures.tokens)) * flow.documents
        return min(flow.tokens, spans * spec.slots), ()
    return round(flow.tokens / figures.ratio), ()


def _written(spec: GenerateSpec, flow: Flow, measured: Measured | None) -> int:
    each = measured.tokens_out / measured.documents if measured else spec.max_new_tokens / 2
    return round(each * flow.documents)


def _room(model: str, flow: Flow, settings: Settings) -> int:
    """Tokens that fit into the model's window behind prompts of the mean length."""
    try:
        ref = resolve(model, settings)
        window, apart = window_of(ref.folder), is_encoder_decoder(ref)
    except (ModelError, OSError):
        return sys.maxsize  # the notes tell
    if window is None:
        return sys.maxsize
    return max(0, window * flow.documents - (0 if apart else flow.tokens))  # a decoder's own


def _with_drafters(made: StageEstimate, spec: GenerateSpec, settings: Settings) -> StageEstimate:
    """Models that draft lie beside their target, and read as much; layers of its own are its own."""
    found = [_shape(name, settings) for name in spec.drafters if not name.startswith("layers:")]
    if notes := tuple(note for _, some in found for note in some):
        return replace(made, memory_bytes=None, weights_bytes=None, notes=made.notes + notes)
    if made.memory_bytes is None or made.weights_bytes is None:
        return made
    more = [footprint(one, spec.dtype, spec.batch_tokens, 1) for one, _ in found if one]
    weights = sum(one.weights for one in more)
    memory = made.memory_bytes + weights + sum(one.kv for one in more)
    return replace(made, memory_bytes=memory, weights_bytes=made.weights_bytes + weights)


def _local(
    index: int, spec: Reading, model: str, flow: Flow, tokens_out: int, read: int,
    write: int, measured: Measured | None, settings: Settings,
) -> StageEstimate:  # fmt: skip
    device = "cuda" if on_gpu(spec.device) else "cpu"
    shape, notes = _shape(model, settings)
    seconds = None
    if measured:
        seconds = measured.seconds / measured.tokens_in * flow.tokens
    elif shape:
        seconds = _seconds(shape, device, read, write)
    dtype = getattr(spec, "dtype", "float32")
    memory = footprint(shape, dtype, spec.batch_tokens, _rows(spec, shape, device, flow)) if shape else None
    return StageEstimate(
        index, spec.kind, False, device, flow.tokens, tokens_out, seconds,
        memory.peak if memory else None, memory.weights if memory else None, None, None, None, notes,
    )  # fmt: skip


def _rows(spec: Reading, shape: Shape, device: str, flow: Flow) -> int:
    """Positions whose logits are held at once: a slice of a scored batch, or the last one of each row generated."""
    if not isinstance(spec, GenerateSpec):
        return min(spec.batch_tokens, max(1, SCORED_LOGITS[device] // shape.vocabulary))
    return max(1, min(flow.documents, spec.batch_tokens * flow.documents // max(1, flow.tokens)))


def _seconds(shape: Shape, device: str, read: int, write: int) -> float:
    cores = min(CORES, len(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    reading, writing = GPU_RATES if device == "cuda" else (CPU_RATES[0] * cores, CPU_RATES[1] * cores)
    return (read / reading + write / writing) * shape.parameters / REFERENCE_PARAMETERS


def _hosted(
    job: JobSpec, index: int, spec: GenerateSpec, flow: Flow, written: int, measured: Measured | None, day: date,
    settings: Settings,
) -> StageEstimate:  # fmt: skip
    price, notes = _price(price_key(job.target), day, settings.price_table)
    sent = flow.tokens + FRAME_TOKENS * flow.documents
    average = _at_average_call(price, sent, flow.documents)
    seconds = written / CALL_RATE / spec.concurrency
    if measured:
        seconds = measured.seconds / measured.documents * flow.documents
    return StageEstimate(
        index, spec.kind, True, "hosted", sent, written, seconds, 0, 0,
        cost_microusd(average, sent, 0, written),
        worst_microusd(average, sent, spec.max_new_tokens * flow.documents),
        price.id if price else None, notes,
    )  # fmt: skip


def _at_average_call(price: Price | None, tokens: int, calls: int) -> Price | None:
    """The price of ``calls`` calls as one, at the tier of the average call."""
    if price is None:
        return None
    return replace(price, rates=price.rates_for(tokens // max(1, calls)), tiers=(), call=price.call * calls)


def _price(name: str, day: date, table: Path | None) -> tuple[Price | None, tuple[str, ...]]:
    try:
        price = price_of(name, day, table)
    except PricesMissing as error:
        return None, (str(error),)
    return price, () if price else (f"no price is known for {name}: the money is unknown, not 0",)


def _shape(model: str, settings: Settings) -> tuple[Shape | None, tuple[str, ...]]:
    try:
        shape = read_shape(resolve(model, settings).folder)
    except (ModelError, OSError) as error:
        return None, (f"time and memory are unknown: {error}",)
    return shape, () if shape else (f"the config of {model} does not say its size: time and memory are unknown",)


def on_gpu(device: str) -> bool:
    """Whether the work will run on a GPU, guessed without torch: an estimate must answer at once."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") != "" and Path("/proc/driver/nvidia/version").exists()
    return device.startswith("cuda") or (device == "auto" and visible)
