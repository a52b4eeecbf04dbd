"""Sentence selection: the sentences a language model finds the least predictable, whole.

The mean surprisal of a sentence's tokens, each context read by itself (the sentence filter of the LLMLingua authors'
code). Random sentences are ``method = "random"`` with ``unit = "sentence"``; by TF-IDF, "tfidf" with the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.compression.methods.selective_context import unit_means
from pipeline.compression.prompt import Part, Prompt
from pipeline.compression.reading import Nats, surprisals
from pipeline.compression.registry import Passed, Ranking
from pipeline.compression.scoring import Scorer
from pipeline.compression.tokens import Tokenising
from pipeline.models import ModelPool
from schemas.compress import SentencesSpec


@dataclass(frozen=True, slots=True)
class Sentences:
    """``start``: the scorer's start token."""

    scorer: Scorer
    tokenising: Tokenising
    start: int

    @classmethod
    def build(cls, spec: SentencesSpec, models: ModelPool, target: Tokenising) -> Sentences:
        """The method over its scoring model."""
        del target
        loaded = models.causal_lm(spec.model, spec.dtype, spec.device)
        tokenising = Tokenising(loaded.tokenizer)
        return cls(Scorer(loaded, spec.batch_tokens), tokenising, tokenising.start_id())

    @property
    def abreast(self) -> int:
        """Enough for full passes of short contexts, few enough for tokenising to go on beside them."""
        return max(64, self.scorer.batch_tokens // 64)

    def score(self, prompts: Sequence[Prompt], passed: Passed) -> list[Ranking]:
        """Mean surprisal of every unit. Equal texts among these prompts are read once."""
        texts = {part.text: part.ids for prompt in prompts for part in prompt.parts if not part.verbatim}
        read = surprisals(self.scorer, [np.append(self.start, ids) for ids in texts.values()], passed)
        found = dict(zip(texts, read, strict=True))
        return [Ranking(np.concatenate([_margins(part, found) for part in prompt.parts])) for prompt in prompts]


def _margins(part: Part, found: dict[str, Nats]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return unit_means(part, found.get(part.text, np.zeros(0, np.float32)))
