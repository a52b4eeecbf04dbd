"""Which contexts are worth most: the coarse ranking, by perplexity, by the question, by BM25 or by chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from pipeline.compression.lexical import Words, bm25, context_relevance
from pipeline.compression.methods.chance import stream_of
from pipeline.compression.prompt import Part, Prompt
from pipeline.compression.reading import read, surprisals
from pipeline.compression.registry import Passed
from pipeline.compression.scoring import Scorer, Window
from pipeline.compression.tokens import Tokenising
from schemas.compress import RankContexts
from schemas.document import SEPARATOR

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

GUIDE = " We can get the answer to this question in the given documents."
"""LongLLMLingua's restrictive statement, appended to the question (appendix B.2)."""

K1, B = 1.2, 0.75
"""BM25's usual parameters."""


@dataclass(frozen=True, slots=True)
class ContextRanking:
    """Ranks contexts ``by`` one of the ways. ``start``: the start token; ``separator``, ``guide``: tokens.

    ``known`` remembers what the model said of a context (after a question): few-shot corpora repeat demonstrations.
    """

    scorer: Scorer
    by: RankContexts
    start: int
    separator: Ints
    guide: Ints
    known: dict[tuple[str, str], float] = field(default_factory=dict)

    @classmethod
    def of(cls, scorer: Scorer, tokenising: Tokenising, by: RankContexts) -> ContextRanking:
        """The ranking over this scorer and its tokenizer."""
        separator, guide = (one.ids for one in tokenising.tokenise([SEPARATOR, GUIDE]))
        return cls(scorer, by, tokenising.start_id(), separator, guide)

    def relevance(self, prompts: Sequence[Prompt], passed: Passed) -> list[Floats]:
        """One number for every context of every prompt, in their order; the highest is taken first."""
        if self.by == "bm25":
            return [_bm25(prompt) for prompt in prompts]
        if self.by == "random":
            return [_chance(prompt) for prompt in prompts]
        return self._by_model(prompts, passed)

    def _by_model(self, prompts: Sequence[Prompt], passed: Passed) -> list[Floats]:
        """Equal contexts (with equal questions) are read once."""
        pairs = [[(self._question(prompt), part) for part in _contexts(prompt)] for prompt in prompts]
        keys = [[(question.text if question else "", part.text) for question, part in one] for one in pairs]
        found = zip(chain.from_iterable(keys), chain.from_iterable(pairs), strict=True)
        new = {key: pair for key, pair in found if key not in self.known}
        if self.by == "question":
            values = self._question_after([one for one in new.values() if one[0]], passed)
        else:
            start = np.array([self.start])
            texts = [np.concatenate([start, part.ids]) for _, part in new.values()]
            values = [float(nats.sum(dtype=np.float64)) / len(nats) for nats in surprisals(self.scorer, texts, passed)]
        self.known.update(zip(new, values, strict=True))
        return [np.array([self.known[key] for key in one]) for one in keys]

    def _question(self, prompt: Prompt) -> Part | None:
        """What the ranking depends on beside the context. By question: only prompts that have one may come."""
        return prompt.parts[prompt.places("question")[0]] if self.by == "question" else None

    def _question_after(self, pairs: Sequence[tuple[Part | None, Part]], passed: Passed) -> list[float]:
        """-r_k, equation (2) of LongLLMLingua: the mean nats of question and statement after the context, negated.

        Where a context is longer than the window, the question is read after windows of it that overlap by half, and
        the one that explains it best counts.
        """
        windows = [self._windows(question.ids, part.ids) for question, part in pairs if question is not None]
        nats = read(self.scorer, [window for some in windows for window in some], passed)
        means = np.array([-float(one.mean()) for one in nats])
        starts = np.cumsum([0, *(len(some) for some in windows)])[:-1]
        best: list[float] = np.maximum.reduceat(means, starts).tolist() if len(means) else []
        return best

    def _windows(self, question: Ints, context: Ints) -> list[Window]:
        asked = np.concatenate([question, self.guide])[-(self.scorer.prefix // 2) :]
        room = self.scorer.prefix - 1 - len(self.separator) - len(asked)
        begins = range(0, max(1, len(context) - room // 2), max(1, room // 2)) if len(context) > room else [0]
        texts = [np.concatenate([[self.start], context[begin : begin + room], self.separator]) for begin in begins]
        return [Window(np.concatenate([text, asked]), len(text)) for text in texts]


def _contexts(prompt: Prompt) -> list[Part]:
    return [prompt.parts[place] for place in prompt.places("context")]


def _bm25(prompt: Prompt) -> Floats:
    scores = context_relevance(prompt, Words.of(prompt), lambda counts, query: bm25(counts, query, K1, B))
    return scores[prompt.places("context")]


def _chance(prompt: Prompt) -> Floats:
    """Follows from the contexts alone: the same demonstrations at every rate and in every batch."""
    texts = [part.text for part in _contexts(prompt)]
    return np.asarray(stream_of(0, *texts).random_raw(len(texts)), dtype=np.uint64) / 2.0**64
