"""The work of the encode stage on a shard: spans of all its documents, longest first, as many at once as fit."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from pipeline.batching import run_packed
from pipeline.compression.tokens import Tokenising
from pipeline.memory.autoencoder import TAGS
from pipeline.memory.encode_stage import Encode
from pipeline.memory.outlines import Outline, Span, outlines_of
from pipeline.memory.packing import Packed, joined, measured
from pipeline.memory.ragged import encode_spans, pass_tokens, places_of
from pipeline.memory.resident import Resident, resident
from pipeline.stages import Outcome, Refusal, Result, Run, Stopped
from schemas.document import Document
from schemas.memory import EncodeSpec

_ENOUGH = {"cpu": 512, "cuda": 4096}
"""Tokens in a pass that keep the device busy: from there on less padding is worth more than a larger batch."""


class Made(NamedTuple):
    """Of a span: its slots, the sums of squares of what packing lost and of the slots, and when they were there."""

    packed: Packed
    lost: float
    whole: float
    when: float


def encode(stage: Encode, documents: Sequence[Document], run: Run) -> list[Outcome]:
    """One outcome per document, in order; equal prompts are encoded once. Raises ``Stopped``, ``ModelError``."""
    began = time.perf_counter()
    _alive(run)
    if not documents:
        return []
    folder, manifest = stage.found()
    spec = stage.spec
    there = resident(folder, manifest, stage.target.model, spec.dtype, spec.device, run.models)
    first = {document.content_hash: document for document in reversed(documents) if document.prompt.strip()}
    alone = list(first.values())
    outlines = outlines_of(alone, Tokenising(there.base.tokenizer), stage.cut(manifest), spec.keep_text)
    spans = [span for outline in outlines for span in outline.spans]
    made = _encoded(spans, there, spec, run)
    ended = time.perf_counter()
    each = (ended - began) / max(1, sum(one.encoded for one in outlines))
    of: list[list[Made]] = [[] for _ in alone]
    for span, one in zip(spans, made, strict=True):
        of[span.place].append(one)
    found: dict[str, Outcome] = {}
    for document, outline, its in zip(alone, outlines, of, strict=True):
        latency = max((one.when for one in its), default=ended) - began
        found[document.content_hash] = _outcome(outline, its, spec, manifest.revision, each * outline.encoded, latency)
    run.progress(len(documents), sum(one.original for one in outlines) - sum(len(span.ids) for span in spans))
    return _in_order(documents, found)


def _alive(run: Run) -> None:
    if run.stopping():
        raise Stopped("encode: the worker is stopping, or the job was cancelled")
    run.progress(0, 0)


def _in_order(documents: Sequence[Document], found: dict[str, Outcome]) -> list[Outcome]:
    """The first of equal prompts took the time."""
    empty = Refusal("empty", "the prompt is empty or only whitespace; there is nothing to encode")
    outcomes, seen = [], set()
    for document in documents:
        one = found.get(document.content_hash, empty)
        if document.content_hash in seen and isinstance(one, Result):
            one = replace(one, seconds=0.0)
        outcomes.append(one)
        seen.add(document.content_hash)
    return outcomes


def _encoded(spans: Sequence[Span], there: Resident, spec: EncodeSpec, run: Run) -> list[Made]:
    coder, device = there.coder, there.base.device
    tag = coder.tags[TAGS.index("FT")].detach()

    @torch.inference_mode()
    def work(rows: list[int]) -> list[Made]:
        _alive(run)
        some = [spans[row] for row in rows]
        slots = torch.cat(encode_spans(coder, [one.ids for one in some], [one.slots for one in some]))
        packed, sums = measured(slots, tag, spec.precision, spec.group)
        when = time.perf_counter()
        run.progress(0, sum(len(one.ids) for one in some))
        ends = np.cumsum([one.slots for one in some])
        begins = ends - [one.slots for one in some]
        found = zip(begins.tolist(), ends.tolist(), np.add.reduceat(sums, begins).tolist(), strict=True)
        return [Made(packed.part(begin, end), lost, whole, when) for begin, end, (lost, whole) in found]

    lengths = [places_of(len(one.ids), one.slots, coder) for one in spans]
    return run_packed(lengths, pass_tokens(spec.batch_tokens, device), work, enough=_ENOUGH[device.type])


def _outcome(
    outline: Outline, made: Sequence[Made], spec: EncodeSpec, revision: str, seconds: float, latency: float
) -> Outcome:
    lost, whole = sum(one.lost for one in made), sum(one.whole for one in made)
    if not np.isfinite(lost + whole):
        reason = "the encoder's slots of this document are no numbers; encode it in float32, or train the encoder anew"
        return Refusal("not_finite", reason, dead=True)
    packed = joined([one.packed for one in made]) if made else None
    fields = {
        "slots": outline.slots,
        "context_slots": outline.context_slots,
        "slot_spans": len(made),
        "slots_file": None,  # both are for whoever writes the file to say
        "slots_key": None,
        "slots_sha256": packed.sha256(revision) if packed else None,
        "slots_bytes": packed.bytes if packed else 0,
        "slots_precision": spec.precision,
        "slots_loss": float(np.sqrt(lost / whole)) if whole else None,
        "encoder_revision": revision,
        "tokens_encoded": outline.encoded,
        "tokens_original": outline.original,
        "tokens_compressed": outline.slots + outline.left,
        "encode_seconds": seconds,
    }
    counts = outline.original, outline.slots + outline.left
    return Result(fields, *counts, seconds=seconds, latency_seconds=latency, slots=packed)
