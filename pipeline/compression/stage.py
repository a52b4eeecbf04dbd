"""The compress stage: documents -> shorter prompts within a hard budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.models import digest_of, expects_gpu, load_tokenizer
from pipeline.stages import Outcome, Refusal, Result, Run, Stopped
from schemas.document import Document
from schemas.job import TargetSpec
from schemas.stage import CompressSpec

if TYPE_CHECKING:
    from pipeline.compression.engine import Batch, Compressed, Engine
    from pipeline.compression.prompt import Copied
    from pipeline.models import LoadedModel

VERSION = 1
"""Raised when what this stage writes for the same spec changes, see ``Stage.identity``."""

_CHARACTERS_PER_SECOND = {"cpu": 1_500, "cuda": 500_000}
"""Rough speed of a 135M scorer at a rate of one half, for cutting shards (two cores in float32; one large GPU)."""


@dataclass(frozen=True, slots=True)
class Compress:
    """Shortens prompts by ``spec.method`` to a budget that the target's tokenizer counts."""

    spec: CompressSpec
    target: TargetSpec

    def identity(self) -> Any:
        """Digests of the scoring model and of the tokenizer that counts; its model's weights need not be here."""
        return [VERSION, digest_of(self.spec.model), _tokenizer_digest(self.target.tokenizer_model)]

    def work_seconds(self, characters: int) -> float:
        """Seconds that a document of this length takes, roughly: by whether a GPU is to be expected."""
        return characters / _CHARACTERS_PER_SECOND["cuda" if expects_gpu(self.spec.device) else "cpu"]

    def run(self, documents: Sequence[Document], run: Run) -> list[Outcome]:
        """One outcome per document, in order. Raises ``Stopped`` when the run is stopping."""

        def passed(tokens: int) -> None:
            if run.stopping():
                raise Stopped("compress: the worker is stopping, or the job was cancelled")
            run.progress(0, tokens)

        passed(0)
        loaded = run.models.causal_lm(self.spec.model, self.spec.dtype, self.spec.device)
        engine = self.engine(loaded)
        outcomes: dict[int, Outcome] = {}
        for batch in engine.run([document.parts for document in documents], passed):
            outcomes.update(self._outcomes(batch))
            run.progress(len(batch.places), 0)
        return [outcomes[place] for place in range(len(documents))]

    def engine(self, loaded: LoadedModel) -> Engine:
        """The bare engine over a loaded scoring model."""
        from pipeline.compression.engine import Engine
        from pipeline.compression.prompt import Preparing
        from pipeline.compression.registry import build_method
        from pipeline.compression.scoring import Scorer
        from pipeline.compression.tokens import Tokenising
        from pipeline.compression.units import MAX_TOKENS
        from schemas.document import SEPARATOR

        spec, scorer = self.spec, Tokenising(loaded.tokenizer)
        counting = self.target.tokenizer_model
        target = Tokenising(load_tokenizer(counting))
        same = counting == spec.model or _tokenizer_digest(counting) == _tokenizer_digest(spec.model)
        preparing = Preparing(
            scorer, target, spec.rate, spec.target_tokens, spec.compress_instruction, spec.compress_question, same
        )
        separator = scorer.tokenise([SEPARATOR])[0].ids
        method = build_method(spec, Scorer(loaded, spec.batch_tokens), scorer.start_id(), separator)
        return Engine(preparing, method, rows=max(1, spec.batch_tokens // (2 * (spec.iterative_size + MAX_TOKENS))))

    def _outcomes(self, batch: Batch) -> dict[int, Outcome]:
        """Results with each document's share of the batch's seconds: by its tokens, where the model worked on it."""
        from pipeline.compression.engine import Compressed

        worked = any(isinstance(one, Compressed) for one in batch.made)
        weights = [
            0 if isinstance(one, Refusal) or (worked and not isinstance(one, Compressed)) else one.original
            for one in batch.made
        ]
        each = batch.seconds / max(1, sum(weights))
        return {
            place: one if isinstance(one, Refusal) else self._result(one, weight * each, batch.seconds)
            for place, one, weight in zip(batch.places, batch.made, weights, strict=True)
        }

    def _result(self, one: Compressed | Copied, seconds: float, latency: float) -> Result:
        from pipeline.compression.prompt import Copied

        copied = isinstance(one, Copied)
        text, tokens = (one.text, one.original) if isinstance(one, Copied) else (one.fitted.text, one.fitted.tokens)
        fields = {
            "compressed": text,
            "compress_method": self.spec.method,
            "tokens_original": one.original,
            "tokens_asked": one.budget,
            "tokens_compressed": tokens,
            "copied": copied,
            "compress_seconds": seconds,
        }
        return Result(fields, one.original, tokens, one.budget, seconds, latency_seconds=latency)


def _tokenizer_digest(model: str) -> str:
    return digest_of(model, weights=False)
