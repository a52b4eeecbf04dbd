"""The work of the encode stage on a shard: spans of all its documents, longest first, as many at once as fit."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.batching import run_packed
from pipeline.compression.tokens import Tokenising
from pipeline.memory.autoencoder import TAGS
from pipeline.memory.encode_stage import Cut, Encode
from pipeline.memory.packing import Packed, joined, measured
from pipeline.memory.ragged import encode_spans, places_of
from pipeline.memory.resident import Resident, resident
from pipeline.memory.spans import cut as lengths_of
from pipeline.stages import Outcome, Refusal, Result, Run, Stopped
from schemas.document import Document, PromptParts
from schemas.memory import EncodeSpec

Ints = NDArray[np.int64]

_MOST = {"cpu": 2048, "cuda": 2**31}
"""Tokens of a pass: on a CPU more are no faster, and keep a worker that is to stop."""

_ENOUGH = {"cpu": 512, "cuda": 4096}
"""Tokens in a pass that keep the device busy: from there on less padding is worth more than a larger batch."""


class Span(NamedTuple):
    """``ids`` of a document, by its place among those of the shard, and the slots they are to have."""

    place: int
    ids: Ints
    slots: int


class Made(NamedTuple):
    """Of a span: its slots, the sums of squares of what packing lost and of the slots, and when they were there."""

    packed: Packed
    lost: float
    whole: float
    when: float


@dataclass(slots=True)
class Plan:
    """A prompt before it is encoded: which contexts stay ``text``, and what becomes of the others."""

    original: int = 0
    encoded: int = 0
    left: int = 0
    context_slots: list[int] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)

    @property
    def slots(self) -> int:
        """Of all contexts."""
        return sum(self.context_slots)


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
    plans = plans_of(alone, Tokenising(there.base.tokenizer), stage.cut(manifest), spec.keep_text)
    spans = [span for plan in plans for span in plan.spans]
    made = _encoded(spans, there, spec, run)
    ended = time.perf_counter()
    each = (ended - began) / max(1, sum(plan.encoded for plan in plans))
    of: list[list[Made]] = [[] for _ in alone]
    for span, one in zip(spans, made, strict=True):
        of[span.place].append(one)
    found: dict[str, Outcome] = {}
    for document, plan, its in zip(alone, plans, of, strict=True):
        latency = max((one.when for one in its), default=ended) - began
        found[document.content_hash] = _outcome(plan, its, spec, manifest.revision, each * plan.encoded, latency)
    run.progress(len(documents), sum(plan.original for plan in plans) - sum(len(span.ids) for span in spans))
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


def plans_of(documents: Sequence[Document], tokeniser: Tokenising, cut: Cut, keep_text: int) -> list[Plan]:
    """Of each document: contexts of at most ``keep_text`` tokens stay text, and so do blank ones."""
    contexts = [context for document in documents for context in document.parts.contexts]
    tokens = dict(zip(contexts, (one.ids for one in tokeniser.tokenise(contexts)), strict=True))
    plans, kept = [], []
    for place, document in enumerate(documents):
        plan, left = Plan(), list[str]()
        for context in document.parts.contexts:
            ids = tokens[context]
            stays = len(ids) <= keep_text or not context.strip()
            spans = [] if stays else _spans(place, ids, cut)
            plan.spans += spans
            plan.encoded += sum(len(span.ids) for span in spans)
            plan.context_slots.append(sum(span.slots for span in spans))
            left += [context] if stays else []
        kept.append(replace(document.parts, contexts=tuple(left)))
        plans.append(plan)
    known = {text: len(ids) for text, ids in tokens.items() if tokeniser.at_once(text)}
    counts = totals([*(document.parts for document in documents), *kept], known, tokeniser)
    for plan, original, rest in zip(plans, counts, counts[len(plans) :], strict=False):
        plan.original, plan.left = original, rest
    return plans


def totals(prompts: Sequence[PromptParts], known: dict[str, int], tokeniser: Tokenising) -> list[int]:
    """Tokens of whole prompts. Those of some texts are ``known``: what they are part of is not read again, where the
    tokenizer lets counts be added."""
    pieces = [[one for one in (parts.instruction, *parts.contexts, parts.question) if one] for parts in prompts]
    unknown = list({one for some in pieces for one in some if one not in known and tokeniser.at_once(one)})
    sizes = {**known, **dict(zip(unknown, tokeniser.count(unknown), strict=True))}
    found = [_added(some, sizes, tokeniser) for some in pieces]
    whole = [parts.render() for parts, one in zip(prompts, found, strict=True) if one is None]
    counted = iter(tokeniser.count(whole))
    return [next(counted) if one is None else one for one in found]


def _added(pieces: Sequence[str], sizes: dict[str, int], tokeniser: Tokenising) -> int | None:
    if not all(one in sizes for one in pieces):
        return None
    counts = [sizes[one] for one in pieces]
    return tokeniser.joined(pieces, counts) if len(pieces) > 1 else sum(counts)


def _spans(place: int, ids: Ints, cut: Cut) -> list[Span]:
    parts = np.split(ids, np.cumsum(lengths_of(len(ids), cut.span))[:-1])
    return [Span(place, part, cut.slots(len(part))) for part in parts]


def _encoded(spans: Sequence[Span], there: Resident, spec: EncodeSpec, run: Run) -> list[Made]:
    coder, kind = there.coder, there.base.device.type
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
    return run_packed(lengths, min(spec.batch_tokens, _MOST[kind]), work, enough=_ENOUGH[kind])


def _outcome(
    plan: Plan, made: Sequence[Made], spec: EncodeSpec, revision: str, seconds: float, latency: float
) -> Outcome:
    lost, whole = sum(one.lost for one in made), sum(one.whole for one in made)
    if not np.isfinite(lost + whole):
        reason = "the encoder's slots of this document are no numbers; encode it in float32, or train the encoder anew"
        return Refusal("not_finite", reason, dead=True)
    packed = joined([one.packed for one in made]) if made else None
    fields = {
        "slots": plan.slots,
        "context_slots": plan.context_slots,
        "slot_spans": len(made),
        "slots_file": None,  # both are for whoever writes the file to say
        "slots_key": None,
        "slots_sha256": packed.sha256(revision) if packed else None,
        "slots_bytes": packed.bytes if packed else 0,
        "slots_precision": spec.precision,
        "slots_loss": float(np.sqrt(lost / whole)) if whole else None,
        "encoder_revision": revision,
        "tokens_encoded": plan.encoded,
        "tokens_original": plan.original,
        "tokens_compressed": plan.slots + plan.left,
        "encode_seconds": seconds,
    }
    counts = plan.original, plan.slots + plan.left
    return Result(fields, *counts, seconds=seconds, latency_seconds=latency, slots=packed)
