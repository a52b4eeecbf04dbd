"""LongLLMLingua (Jiang et al., ACL 2024, arXiv 2310.06839) under a hard budget: what matters to the question is kept.

Section 4.1: contexts are ranked by how likely the question is after each of them, equation (2), and taken until they
fill k times the budget; a token counts by what the question does to its surprisal, equation (3). Section 4.2: contexts
stand in the order of their rank, equation (4). Section 4.3: the better its rank, the more of a context may stay,
equation (5). Section 4.4, the recovery of what an answer quotes, is ``recover``'s, which has an exact map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.compression.budget import Rates
from pipeline.compression.methods.llmlingua import LLMLingua, choose, plan_of
from pipeline.compression.prompt import Prompt
from pipeline.compression.registry import Passed, Ranking
from pipeline.compression.streams import Plan
from pipeline.compression.tokens import Tokenising
from schemas.compress import LongLLMLinguaSpec

if TYPE_CHECKING:
    from pipeline.models import ModelPool

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class LongLLMLingua:
    """``asked`` has the contexts' ranking by the question; a prompt without one is ``unasked``: plain LLMLingua."""

    spec: LongLLMLinguaSpec
    asked: LLMLingua
    unasked: LLMLingua

    @classmethod
    def build(cls, spec: LongLLMLinguaSpec, models: ModelPool, target: Tokenising) -> LongLLMLingua:
        """The method over its scoring model."""
        asked = LLMLingua.build(spec, models, target)
        by = "perplexity" if spec.rank_contexts_by == "question" else spec.rank_contexts_by
        return cls(spec, asked, replace(asked, contexts=replace(asked.contexts, by=by, known={})))

    @property
    def tokenising(self) -> Tokenising:
        """The scorer's."""
        return self.asked.tokenising

    @property
    def abreast(self) -> int:
        """Each prompt is read twice where its units are contrasted."""
        return max(1, self.asked.abreast // (2 if self.spec.contrastive else 1))

    def score(self, prompts: Sequence[Prompt], passed: Passed) -> list[Ranking]:
        """Margins as in LLMLingua, by contrastive surprisal; and the order of the parts."""
        asking = [place for place, prompt in enumerate(prompts) if prompt.places("question")]
        rest = [place for place, prompt in enumerate(prompts) if not prompt.places("question")]
        found = dict(zip(asking, self._asked([prompts[place] for place in asking], passed), strict=True))
        found.update(zip(rest, self.unasked.score([prompts[place] for place in rest], passed), strict=True))
        return [found[place] for place in range(len(prompts))]

    def _asked(self, prompts: Sequence[Prompt], passed: Passed) -> list[Ranking]:
        relevance = self._relevance(prompts, passed)
        plans, orders = [], []
        for prompt, one in zip(prompts, relevance, strict=True):
            best = self._taken(prompt, one)
            plans.append(self._plan(prompt, best))
            orders.append(self._order(prompt, best) if self.spec.reorder else None)
        margins = self.asked.units.margins(prompts, plans, passed)
        return [Ranking(some, order) for some, order in zip(margins, orders, strict=True)]

    def _relevance(self, prompts: Sequence[Prompt], passed: Passed) -> list[Floats]:
        """By the question; one context needs no rank."""
        several = [place for place, prompt in enumerate(prompts) if len(prompt.places("context")) > 1]
        found = dict(
            zip(several, self.asked.contexts.relevance([prompts[place] for place in several], passed), strict=True)
        )
        return [found.get(place, np.zeros(len(prompt.places("context")))) for place, prompt in enumerate(prompts)]

    def _taken(self, prompt: Prompt, relevance: Floats) -> list[int]:
        """The contexts that are taken, the best first (ties: the earlier)."""
        places = prompt.places("context")
        taken = choose(prompt, relevance, self.asked.limit(prompt))
        value = dict(zip(places, relevance.tolist(), strict=True))
        return sorted(taken, key=lambda place: (-value[place], place))

    def _plan(self, prompt: Prompt, best: Sequence[int]) -> Plan:
        """LLMLingua's plan, its contexts at rates by rank and in the order in which they are to stand."""
        base = self.asked.rates(prompt, best)
        plan = plan_of(prompt, best, base)
        rates = dict(zip(plan.scored, plan.rates, strict=True)) | self._context_rates(prompt, best, base)
        order = self._order(prompt, best) if self.spec.reorder else range(len(prompt.parts))
        scored = tuple(place for place in order if place in rates)
        contrast = self._question(prompt) if self.spec.contrastive else None
        apart = self.spec.delta_tau > 0 and len(best) > 1
        return Plan(scored, tuple(rates[place] for place in scored), contrast=contrast, apart=apart)

    def _context_rates(self, prompt: Prompt, best: Sequence[int], base: Rates) -> dict[int, float]:
        lengths = np.array([prompt.parts[place].length for place in best], dtype=np.float64)
        rates = ranked_rates(lengths, base.contexts, self.spec.delta_tau)
        return dict(zip(best, rates.tolist(), strict=True))

    def _order(self, prompt: Prompt, best: Sequence[int]) -> tuple[int, ...]:
        """All parts: contexts by rank, those that are taken next to the end where the best stands; the rest where it
        was."""
        ranked = [*best, *(place for place in prompt.places("context") if place not in best)]
        contexts = iter(reversed(ranked) if self.spec.reorder == "best-last" else ranked)
        return tuple(next(contexts) if part.role == "context" else place for place, part in enumerate(prompt.parts))

    def _question(self, prompt: Prompt) -> Ints:
        """The question as it is read before the rest: start token, question, blank line."""
        streams = self.asked.units.streams
        ids = [prompt.parts[place].ids for place in prompt.places("question")]
        return np.concatenate([[streams.start], *ids, streams.separator])


def ranked_rates(lengths: Floats, rate: float, delta: float) -> Floats:
    """Equation (5): the rates of contexts by rank, the best first: max(min((1 - 2 I / K') delta + tau, 1), 0).

    tau is set so that together they keep ``rate`` of their tokens (``lengths``), as the budget wants; the paper takes
    the average rate itself, which clipping and lengths then let drift.
    """
    shifts = delta * (1 - 2 * np.arange(len(lengths)) / max(1, len(lengths)))
    low, high = -1.0 - delta, 1.0 + delta
    for _ in range(50 if delta and len(lengths) > 1 else 0):
        middle = (low + high) / 2
        spent = float((lengths * np.clip(shifts + middle, 0, 1)).sum())
        low, high = (middle, high) if spent <= rate * lengths.sum() else (low, middle)
    return np.clip(shifts + low, 0, 1) if delta and len(lengths) > 1 else np.full(len(lengths), rate)
