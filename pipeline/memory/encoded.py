"""Documents that became slots: what is put together of their spans, and said of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pipeline.memory.outlines import Outline
from pipeline.memory.packing import Made, Packed, joined
from pipeline.stages import Outcome, Refusal, Result
from schemas.memory import EncodeSpec


class Whole(NamedTuple):
    """As ``Made``, of a document, with the digest of its slots (``Packed.sha256``)."""

    packed: Packed
    sha256: str
    lost: float
    whole: float
    when: float


def whole_of(made: Sequence[Made], revision: str) -> Whole:
    """Of all spans of a document, in their order, by the encoder ``revision``."""
    packed = joined([one.packed for one in made])
    lost, whole = sum(one.lost for one in made), sum(one.whole for one in made)
    return Whole(packed, packed.sha256(revision), lost, whole, max(one.when for one in made))


def outcome_of(
    outline: Outline, made: Whole | None, spec: EncodeSpec, revision: str, seconds: float, latency: float
) -> Outcome:
    """``made``: None where all contexts stay text."""
    if made and not np.isfinite(made.lost + made.whole):
        reason = "the encoder's slots of this document are no numbers; encode it in float32, or train the encoder anew"
        return Refusal("not_finite", reason, dead=True)
    fields = {
        "slots": outline.slots,
        "context_slots": outline.context_slots,
        "slot_spans": len(outline.spans),
        "slots_file": None,  # both are for whoever writes the file to say
        "slots_key": None,
        "slots_sha256": made.sha256 if made else None,
        "slots_bytes": made.packed.bytes if made else 0,
        "slots_precision": spec.precision,
        "slots_loss": float(np.sqrt(made.lost / made.whole)) if made and made.whole else None,
        "encoder_revision": revision,
        "tokens_encoded": outline.encoded,
        "tokens_known": outline.known,
        "tokens_original": outline.original,
        "tokens_compressed": outline.slots + outline.left,
        "encode_seconds": seconds,
    }
    counts = outline.original, outline.slots + outline.left
    return Result(fields, *counts, seconds=seconds, latency_seconds=latency, slots=made.packed if made else None)
