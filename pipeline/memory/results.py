"""What a pretraining says of its texts, and of the encoder that came of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from pipeline.memory.measure import Measure, mean
from pipeline.memory.plan import known
from pipeline.memory.texts import Text
from pipeline.models.encoders import Figures
from pipeline.stages import Outcome, Result
from schemas.memory import PretrainSpec, slots_of

Both = tuple[Measure, Measure]
"""Before the training and after it."""

_NOTHING = Measure(math.nan, math.nan)


def figures_of(spec: PretrainSpec, before: Sequence[Measure], after: Sequence[Measure]) -> Figures:
    """The means over held-out texts."""
    was, now = ([known(value) for value in mean(one)] for one in (before, after))
    nats, agreement, bleu4, prefix = zip(was, now, strict=True)
    last, written = spec.lessons[-1], min(len(after), spec.measured)
    return Figures(len(after), written, last.tokens, last.slots, last.ratio, nats, agreement, bleu4, prefix)


def results(
    spec: PretrainSpec, texts: Sequence[Text], measured: Mapping[int, Both], seconds: float
) -> dict[int, Outcome]:
    """Of each text by its ``seq``: ``seconds`` are shared out by tokens; ``measured`` holds the held-out ones."""
    each = seconds / sum(len(text.ids) for text in texts)
    places = ((text.document.seq, len(text.ids)) for text in texts)
    return {seq: _result(spec, tokens, measured.get(seq), each, seconds) for seq, tokens in places}


def _result(spec: PretrainSpec, tokens: int, measured: Both | None, each: float, latency: float) -> Result:
    fields = {
        "split": "held_out" if measured else "train",
        "tokens_text": tokens,
        **_columns(measured or (_NOTHING, _NOTHING)),
        "pretrain_seconds": each * tokens,
    }
    slots = slots_of(tokens, spec.lessons[-1].ratio)
    return Result(fields, tokens, slots, seconds=each * tokens, latency_seconds=latency)


def _columns(measured: Both) -> dict[str, float | None]:
    names = "nll", "agreement", "bleu4", "prefix"
    return {
        f"{name}_{when}": known(value)
        for when, one in zip(("before", "after"), measured, strict=True)
        for name, value in zip(names, one, strict=True)
    }
