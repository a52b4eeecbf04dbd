"""LLMLingua (Jiang et al., EMNLP 2023, arXiv 2310.05736) as the paper has it, under a hard budget.

Budget controller: contexts (the paper's demonstrations) are ranked by perplexity and taken, highest first, until they
fill k times the budget. Iterative compression: what was taken is read in segments, each scored after the compressed
text before it; in each segment the most surprising units are kept, at the rate its part of the prompt may keep.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.compression.budget import Lengths, Rates, context_budget, fit_rates, spread_rest
from pipeline.compression.contexts import ContextRanking
from pipeline.compression.prompt import Prompt
from pipeline.compression.registry import Passed, Ranking
from pipeline.compression.scoring import Scorer
from pipeline.compression.selection import choose_contexts
from pipeline.compression.streams import Plan
from pipeline.compression.token_level import TokenLevel
from pipeline.compression.tokens import Tokenising
from schemas.compress import IterativeSpec

if TYPE_CHECKING:
    from pipeline.models import ModelPool

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class LLMLingua:
    """``contexts`` ranks contexts (coarse), ``units`` what is in those taken (fine)."""

    spec: IterativeSpec
    tokenising: Tokenising
    contexts: ContextRanking
    units: TokenLevel

    @classmethod
    def build(cls, spec: IterativeSpec, models: ModelPool, target: Tokenising) -> LLMLingua:
        """The method over its scoring model."""
        del target
        loaded = models.causal_lm(spec.model, spec.dtype, spec.device)
        scorer, tokenising = Scorer(loaded, spec.batch_tokens), Tokenising(loaded.tokenizer)
        contexts = ContextRanking.of(scorer, tokenising, spec.rank_contexts_by)
        return cls(spec, tokenising, contexts, TokenLevel.of(scorer, tokenising, spec))

    @property
    def tau(self) -> Rates:
        """The rates of instruction and question, as asked for."""
        return Rates(self.spec.tau_instruction, 1.0, self.spec.tau_question)

    @property
    def abreast(self) -> int:
        """As many prompts as fill a pass."""
        return self.units.abreast

    def score(self, prompts: Sequence[Prompt], passed: Passed) -> list[Ranking]:
        """How far each unit lies above its segment's threshold; ``-inf`` in contexts that were not taken."""
        taken = self._take_contexts(prompts, passed)
        plans = [
            plan_of(prompt, places, self.rates(prompt, places)) for prompt, places in zip(prompts, taken, strict=True)
        ]
        return [Ranking(margins) for margins in self.units.margins(prompts, plans, passed)]

    def limit(self, prompt: Prompt) -> float:
        """Tokens of contexts that the coarse choice may take."""
        if not self.spec.budget_controller:
            return np.inf
        return self.spec.granular_k * context_budget(prompt.budget, lengths_of(prompt), self.tau)

    def _take_contexts(self, prompts: Sequence[Prompt], passed: Passed) -> list[list[int]]:
        """The coarse choice. Nothing is ranked where all contexts would be taken anyway."""
        limits = [self.limit(prompt) for prompt in prompts]
        choosing = [
            place
            for place, (prompt, limit) in enumerate(zip(prompts, limits, strict=True))
            if len(prompt.places("context")) > 1 and 0 < limit < lengths_of(prompt).contexts
        ]
        relevance = dict(
            zip(choosing, self.contexts.relevance([prompts[place] for place in choosing], passed), strict=True)
        )
        return [
            choose(prompt, relevance.get(place, np.zeros(len(prompt.places("context")))), limit)
            for place, (prompt, limit) in enumerate(zip(prompts, limits, strict=True))
        ]

    def rates(self, prompt: Prompt, taken: Sequence[int]) -> Rates:
        """What each part may keep, with these contexts taken."""
        lengths, kept = lengths_of(prompt), length_of(prompt, taken)
        joints = prompt.separator * len(taken)
        read = Lengths(lengths.instruction, kept - joints, lengths.question)
        if not self.spec.dynamic_ratio:
            return equal_rates(prompt.budget - joints, read, self.tau)
        limit = context_budget(prompt.budget, lengths, self.tau) * self.spec.granular_k
        raised = spread_rest(limit, kept, lengths, self.tau)
        return fit_rates(prompt.budget - joints, read, raised)


def plan_of(prompt: Prompt, taken: Sequence[int], rates: Rates) -> Plan:
    """The parts that are read, in the prompt's order: those that may be compressed, of the contexts those taken."""
    by_role = {"instruction": rates.instruction, "context": rates.contexts, "question": rates.question}
    scored = [
        place
        for place, part in enumerate(prompt.parts)
        if not part.verbatim and (part.role != "context" or place in taken)
    ]
    return Plan(tuple(scored), tuple(by_role[prompt.parts[place].role] for place in scored))


def choose(prompt: Prompt, relevance: Floats, limit: float) -> list[int]:
    """The parts that are the contexts to be taken, the best by ``relevance`` until they exceed ``limit`` tokens."""
    places = prompt.places("context")
    lengths = np.array([prompt.parts[place].length + prompt.separator for place in places], dtype=np.int64)
    return [places[one] for one in choose_contexts(relevance, lengths, limit).tolist()]


def equal_rates(budget: int, lengths: Lengths, tau: Rates) -> Rates:
    """One rate for all that may be compressed, without equations (2) and (3): the paper's "w/o dynamic ratio"."""
    parts = ((lengths.instruction, tau.instruction), (lengths.contexts, 0.0), (lengths.question, tau.question))
    verbatim = sum(length for length, rate in parts if rate >= 1)
    free = sum(length for length, rate in parts if rate < 1)
    rate = min(1.0, max(0, budget - verbatim) / free) if free else 0.0
    return Rates(*(1.0 if own >= 1 else rate for _, own in parts))


def length_of(prompt: Prompt, places: Sequence[int]) -> int:
    """Tokens of these contexts, each with the blank line before it."""
    return sum(prompt.parts[place].length + prompt.separator for place in places)


def lengths_of(prompt: Prompt) -> Lengths:
    """Tokens of the prompt's parts by role."""
    totals = {"instruction": 0, "question": 0}
    for part in prompt.parts:
        if part.role != "context":
            totals[part.role] += part.length
    return Lengths(totals["instruction"], length_of(prompt, prompt.places("context")), totals["question"])
