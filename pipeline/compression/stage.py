"""The compress stage: documents -> shorter prompts within a hard budget."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.models import (
    ModelError,
    check_causal,
    check_classifier,
    digest_of,
    expects_gpu,
    load_tokenizer,
    resolve,
    resolve_device,
)
from pipeline.models.folder import parameters
from pipeline.stages import Outcome, Refusal, Result, Run, Stopped
from schemas.compress import CompressSpec, LLMLingua2Spec
from schemas.document import Document
from schemas.job import TargetSpec
from schemas.reference import ReferenceSpec

if TYPE_CHECKING:
    from pipeline.compression.engine import Batch, Compressed, Engine
    from pipeline.compression.prompt import Copied
    from pipeline.models import ModelPool

log = logging.getLogger(__name__)

VERSION = 7
"""Raised when what this stage writes for the same spec changes, see ``Stage.identity``."""

_CHARACTERS_PER_SECOND = {"cpu": 1_500, "cuda": 1_000_000, "none": 300_000}
"""Rough speeds for cutting shards: of a 135M scorer on two cores in float32 and on one large GPU; without a model."""

_PARAMETERS = 135e6
"""Of the scorer that the speeds are of; others take longer, or less, in proportion, but never less than an eighth."""


@dataclass(frozen=True, slots=True)
class Compress:
    """Shortens prompts by ``spec.method`` to a budget that the target's tokenizer counts."""

    spec: CompressSpec | ReferenceSpec
    target: TargetSpec

    def identity(self) -> Any:
        """Digests of the scoring models and of the tokenizer that counts; its model's weights need not be here."""
        if isinstance(self.spec, ReferenceSpec) and self.spec.options.use_sentence_level_filter:
            from pipeline.compression.reference import punkt

            punkt.load()  # what it lacks shall be said when a job is submitted, not once it runs
        kind = check_classifier if isinstance(self.spec, LLMLingua2Spec) else check_causal
        scoring = [digest_of(model, check=kind) for model in self.spec.scoring_models]
        return [VERSION, *scoring, _tokenizer_digest(self.target.tokenizer_model)]

    def work_seconds(self, characters: int) -> float:
        """Seconds that a document of this length takes, roughly: by the scorer's size and whether to expect a GPU."""
        if not self.spec.scoring_models:
            return characters / _CHARACTERS_PER_SECOND["none"]
        device = "cuda" if expects_gpu(self.spec.device) else "cpu"
        return characters / _CHARACTERS_PER_SECOND[device] * _size(self.spec.scoring_models)

    def run(self, documents: Sequence[Document], run: Run) -> list[Outcome]:
        """One outcome per document, in order. Raises ``Stopped`` when the run is stopping."""

        def passed(tokens: int) -> None:
            if run.stopping():
                raise Stopped("compress: the worker is stopping, or the job was cancelled")
            run.progress(0, tokens)

        passed(0)
        if isinstance(self.spec, ReferenceSpec):
            from pipeline.compression.reference.outcomes import outcomes_of

            return outcomes_of(self.spec, self.target, documents, run, passed)
        return self._run(self.spec, documents, run, passed)

    def _run(
        self, spec: CompressSpec, documents: Sequence[Document], run: Run, passed: Callable[[int], None]
    ) -> list[Outcome]:
        from pipeline.compression.prompt import Source

        outcomes: dict[int, Outcome] = {}
        sources = [Source(document.parts, document.rate) for document in documents]
        rates = [spec.rate if source.rate is None else source.rate for source in sources]
        engine = self.engine(run.models)
        for batch in engine.run(sources, passed):
            outcomes.update(self._outcomes(batch, rates))
            run.progress(len(batch.places), 0)
        if unmet := engine.preparing.marking.key_rates.unmet:
            log.warning("key_rates: %s decides nothing in this shard, documents: %d", ", ".join(unmet), len(documents))
        return [outcomes[place] for place in range(len(documents))]

    def engine(self, models: ModelPool) -> Engine:
        """The bare engine of paper fidelity, its models loaded."""
        from pipeline.compression.engine import Engine
        from pipeline.compression.lanes import Turns
        from pipeline.compression.marking import build_marking
        from pipeline.compression.preparing import Preparing
        from pipeline.compression.registry import build_method
        from pipeline.compression.tokens import Tokenising

        spec = self.spec
        assert isinstance(spec, CompressSpec)
        target = Tokenising(load_tokenizer(self.target.tokenizer_model))
        method = build_method(spec, models, target)
        counting = _tokenizer_digest(self.target.tokenizer_model)
        same = method.tokenising == target or counting in map(_tokenizer_digest, spec.scoring_models)
        preparing = Preparing(spec, method.tokenising, target, build_marking(spec), same)
        return Engine(preparing, method, Turns.on(resolve_device(spec.device)))

    def _outcomes(self, batch: Batch, rates: Sequence[float | None]) -> dict[int, Outcome]:
        """Results with each document's share of the batch's seconds: by its tokens, where the model worked on it."""
        from pipeline.compression.engine import Compressed

        worked = any(isinstance(one, Compressed) for one in batch.made)
        weights = [
            0 if isinstance(one, Refusal) or (worked and not isinstance(one, Compressed)) else one.original
            for one in batch.made
        ]
        each = batch.seconds / max(1, sum(weights))
        return {
            place: one if isinstance(one, Refusal) else self._result(one, rates[place], weight * each, batch.seconds)
            for place, one, weight in zip(batch.places, batch.made, weights, strict=True)
        }

    def _result(self, one: Compressed | Copied, rate: float | None, seconds: float, latency: float) -> Result:
        from pipeline.compression.layout import in_source
        from pipeline.compression.prompt import Copied

        copied = isinstance(one, Copied)
        listed: tuple[int, int] | None = None
        if isinstance(one, Copied):
            text, tokens, spans = one.text, one.original, np.array([[0, len(one.text)]])
        else:
            text, tokens, spans, listed = one.fitted.text, one.fitted.tokens, one.fitted.spans, one.fitted.listed
        fields = {
            "compressed": text,
            "compress_method": self.spec.method,
            "kept": in_source(spans, one.markup).ravel().tolist(),
            "listed": listed and list(listed),
            "rate_asked": rate,
            "tokens_original": one.original,
            "tokens_asked": one.budget,
            "tokens_compressed": tokens,
            "copied": copied,
            "compress_seconds": seconds,
        }
        return Result(fields, one.original, tokens, one.budget, seconds, latency_seconds=latency)


def _size(models: tuple[str, ...]) -> float:
    """The parameters of these models over ``_PARAMETERS``; 1 while they are not on this machine."""
    try:
        return _known_size(models)
    except ModelError:
        return 1.0


@functools.cache
def _known_size(models: tuple[str, ...]) -> float:
    return max(0.125, sum(parameters(resolve(model).folder) for model in models) / _PARAMETERS)


def _tokenizer_digest(model: str) -> str:
    return digest_of(model, weights=False)
