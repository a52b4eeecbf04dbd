"""Selective-Context (Li et al., EMNLP 2023, arXiv 2310.06201) under a hard budget: what tells the most is kept.

The prompt is read once, equation (3): the self-information of a token is its surprisal after all tokens before it. A
unit's (section 3.2: phrases do best) is the mean over its tokens, as in the authors' code; the paper's equation (4) has
the sum, by which every long unit would win. What lies above a percentile of the document's units is kept (section 3.3):
here the highest that fit the budget, one threshold per document. The authors' code reads sentence by sentence; this
reads the whole prompt, as equation (3) has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.compression.lexical import Words, unit_weights
from pipeline.compression.methods.shared import distinct
from pipeline.compression.prompt import Part, Prompt
from pipeline.compression.reading import surprisals
from pipeline.compression.registry import Passed, Ranking
from pipeline.compression.scoring import Scorer
from pipeline.compression.tokens import Tokenising
from pipeline.models import ModelPool
from schemas.compress import Importance, SelectiveContextSpec
from schemas.document import SEPARATOR

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class SelectiveContext:
    """``start``: the scorer's start token; ``separator``: its tokens of the blank line between parts."""

    scorer: Scorer
    tokenising: Tokenising
    start: int
    separator: Ints
    importance: Importance

    @classmethod
    def build(cls, spec: SelectiveContextSpec, models: ModelPool, target: Tokenising) -> SelectiveContext:
        """The method over its scoring model."""
        del target
        loaded = models.causal_lm(spec.model, spec.dtype, spec.device)
        tokenising = Tokenising(loaded.tokenizer)
        separator = tokenising.tokenise([SEPARATOR])[0].ids
        scorer = Scorer(loaded, spec.batch_tokens)
        return cls(scorer, tokenising, tokenising.start_id(), separator, spec.importance)

    @property
    def abreast(self) -> int:
        """Enough for full passes of short prompts, few enough for tokenising to go on beside them."""
        return max(64, self.scorer.batch_tokens // 64)

    def score(self, prompts: Sequence[Prompt], passed: Passed) -> list[Ranking]:
        """Self-information of every unit. A document at several rates is read once."""
        some, which = distinct(prompts)
        nats = surprisals(self.scorer, [self._text(prompt) for prompt in some], passed)
        found = [self._margins(prompt, one) for prompt, one in zip(some, nats, strict=True)]
        return [Ranking(found[place]) for place in which]

    def _text(self, prompt: Prompt) -> Ints:
        """Start token and parts, a blank line between them, up to the last part of which anything may go."""
        last = max(place for place, part in enumerate(prompt.parts) if not part.verbatim)
        pieces = [piece for part in prompt.parts[: last + 1] for piece in (self.separator, part.ids)]
        return np.concatenate([[self.start], *pieces[1:]])

    def _margins(self, prompt: Prompt, nats: NDArray[np.float32]) -> Floats:
        parts, place = [], 0
        for part in prompt.parts:
            parts.append(unit_means(part, nats[place : place + len(part.ids)]))
            place += len(part.ids) + len(self.separator)
        margins = np.concatenate(parts)
        return margins * unit_weights(Words.of(prompt)) if self.importance == "surprisal-tfidf" else margins


def unit_means(part: Part, nats: NDArray[np.float32]) -> Floats:
    """The mean over the tokens of each unit; 0 in a verbatim part, which need not have been read."""
    if part.verbatim:
        return np.zeros(len(part.places))
    means: Floats = np.add.reduceat(nats.astype(np.float64), part.first) / part.counts
    return means
