"""TF-IDF: words that are rare in their document are what it is about. No model; the cheapest word-level yardstick."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.compression.lexical import Words, context_relevance, likeness, unit_weights
from pipeline.compression.methods.shared import Floats, Plain, ranked
from pipeline.compression.prompt import Prompt
from pipeline.compression.tokens import Tokenising
from pipeline.models import ModelPool
from schemas.compress import TFIDFSpec


@dataclass(frozen=True, slots=True)
class TFIDF(Plain):
    """Units by the mean TF-IDF of their words, over the whole prompt; its sentences are the collection.

    Where there are a question and several contexts, contexts are ranked by the cosine of their TF-IDF with the
    question's, and kept whole in that order; the units of the one that does not fit, by theirs.
    """

    @classmethod
    def build(cls, spec: TFIDFSpec, models: ModelPool, target: Tokenising) -> TFIDF:
        """The method; it loads nothing."""
        del spec, models
        return cls(target)

    def margins(self, prompt: Prompt) -> Floats:
        """TF-IDF of every unit, after that of its context where there is a question."""
        words = Words.of(prompt)
        weights = unit_weights(words)
        if not prompt.places("question") or len(prompt.places("context")) < 2:
            return weights
        relevance = context_relevance(prompt, words, likeness)
        return ranked(relevance[words.part_of], -words.part_of, weights)
