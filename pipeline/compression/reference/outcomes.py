"""The compress stage with ``fidelity = "reference"``: the library's prompts, counted by the target's tokenizer."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.compression.lanes import Done, Turns, by_length, in_lanes
from pipeline.compression.reference.reference import Reference, ReferenceResult
from pipeline.compression.registry import Passed
from pipeline.compression.scoring import Scorer
from pipeline.compression.tokens import Tokenising
from pipeline.models import load_tokenizer
from pipeline.stages import Outcome, Refusal, Result, Run
from schemas.document import Document
from schemas.job import TargetSpec
from schemas.reference import ReferenceOptions, ReferenceSpec

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Made:
    """What came of a batch, and the target's tokens of each prompt before and after."""

    found: list[ReferenceResult | Refusal]
    before: list[int]
    after: list[int]


def outcomes_of(
    spec: ReferenceSpec, target: TargetSpec, documents: Sequence[Document], run: Run, passed: Passed
) -> list[Outcome]:
    """One outcome a document, in order."""
    loaded = run.models.causal_lm(spec.model, spec.dtype, spec.device)
    reference = Reference(Scorer(loaded, spec.batch_tokens), loaded.tokenizer, spec.options)
    counting = Tokenising(load_tokenizer(target.tokenizer_model))
    rows = max(1, spec.batch_tokens // (2 * spec.options.iterative_size))
    turns = Turns.on(loaded.device.type)

    def make(places: tuple[int, ...], gate: Passed) -> Made:
        parts = [documents[place].parts for place in places]
        with turns.next:
            gate(0)  # who waited for others may have been told to stop meanwhile
            prepared = reference.prepare(parts)
        before = counting.count([one.render() for one in parts])
        with turns.scoring:
            gate(0)
            found = reference.run(prepared, gate)
        return Made(found, before, counting.count(["" if isinstance(one, Refusal) else one.text for one in found]))

    outcomes: dict[int, Outcome] = {}
    batches = by_length([one.parts.characters for one in documents], rows, awaited=turns.apart)
    for done in in_lanes(batches, make, passed):
        outcomes.update(_rows(spec, done, documents))
        run.progress(len(done.places), 0)
    return [outcomes[place] for place in range(len(documents))]


def _rows(spec: ReferenceSpec, done: Done[Made], documents: Sequence[Document]) -> dict[int, Outcome]:
    """Outcomes with each document's share of the batch's seconds, by its tokens."""
    some = done.made
    each = done.seconds / max(1, sum(some.before))
    made: dict[int, Outcome] = {}
    for place, one, original, tokens in zip(done.places, some.found, some.before, some.after, strict=True):
        if isinstance(one, Refusal):
            made[place] = one
            continue
        if one.crashed:
            log.warning("%s: the library would crash here (%s); shortened otherwise", documents[place].id, one.crashed)
        asked = asked_of(spec.options, original)
        fields = {
            "compressed": one.text,
            "compress_method": spec.method,
            "kept": None,  # the library decodes its text from tokens
            "listed": None,
            "rate_asked": spec.options.rate if spec.options.tokens is None else None,
            "tokens_original": original,
            "tokens_asked": asked,
            "tokens_compressed": tokens,
            "copied": one.text == documents[place].parts.render(),
            "compress_seconds": original * each,
        }
        made[place] = Result(fields, original, tokens, asked, original * each, latency_seconds=done.seconds)
    return made


def asked_of(options: ReferenceOptions, original: int) -> int:
    """What the options ask for: tokens of the whole prompt by rate, of the contexts alone by ``target_token``."""
    return int(original * options.rate) if options.tokens is None else options.tokens
