"""BM25: the retrieval baseline. Contexts, sentences in them, units in these, by what the question asks for."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.compression.lexical import Counts, Words, bm25, bm25_idf, context_relevance
from pipeline.compression.methods.shared import Floats, Plain, ranked
from pipeline.compression.prompt import Prompt
from pipeline.compression.tokens import Tokenising
from pipeline.models import ModelPool
from schemas.compress import BM25Spec


@dataclass(frozen=True, slots=True)
class BM25(Plain):
    """Best contexts first, whole as long as they fit; of the next its best sentences; of the next its best units.

    Contexts and sentences are ranked by BM25 against the question (without one: against all contexts, which favours
    what is mentioned again, though not everywhere). In a sentence, words the question asks for come first, then rare
    ones.
    """

    k1: float
    b: float

    @classmethod
    def build(cls, spec: BM25Spec, models: ModelPool, target: Tokenising) -> BM25:
        """The method; it loads nothing."""
        del models
        return cls(target, spec.k1, spec.b)

    def margins(self, prompt: Prompt) -> Floats:
        """Coarse to fine."""
        words = Words.of(prompt)
        query, sentences = words.query(prompt), words.by_sentence()
        contexts = context_relevance(prompt, words, self._scores)
        rare = bm25_idf(sentences)[words.word]
        return ranked(
            contexts[words.part_of],
            -words.part_of,
            self._scores(sentences, query)[words.sentence_of],
            -words.sentence_of,
            words.mean_by_unit(rare * (query[words.word] > 0)),
            words.mean_by_unit(rare),
        )

    def _scores(self, counts: Counts, query: Floats) -> Floats:
        return bm25(counts, query, self.k1, self.b)
