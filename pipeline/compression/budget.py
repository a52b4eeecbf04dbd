"""How many tokens each part of a prompt may keep (LLMLingua, arXiv 2310.05736, section 3.1). Arithmetic only.

All lengths are in the target model's tokens. A context's length includes the separator before it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of the instruction, of all contexts, and of the question."""

    instruction: int
    contexts: int
    question: int


@dataclass(frozen=True, slots=True)
class Rates:
    """The share of its tokens that a part may keep, 0 to 1; 1 is verbatim."""

    instruction: float
    contexts: float
    question: float


def tokens_asked(original: int, rate: float | None, target_tokens: int | None) -> int:
    """The budget of a whole prompt of ``original`` tokens. A rate rounds down: the budget is never exceeded."""
    if target_tokens is not None:
        return target_tokens
    if rate is None:
        raise ValueError("give a rate or a number of tokens")
    return math.floor(Fraction(str(rate)) * original)  # 0.29 * 100 is 28.999... in floats


def context_budget(budget: int, lengths: Lengths, tau: Rates) -> float:
    """Equation (2), times L_dems: what is left for the contexts. Negative when the other parts need more than all."""
    return budget - tau.instruction * lengths.instruction - tau.question * lengths.question


def spread_rest(limit: float, kept: int, lengths: Lengths, tau: Rates) -> Rates:
    """Equation (3): what the choice of contexts (``kept`` tokens, limit ``limit``) left over raises the other rates.

    The paper's difference turns negative when the last context overshoots the limit; instruction and question do not
    pay for that here (the contexts are compressed further instead), so it is taken as 0.
    """
    others = lengths.instruction + lengths.question
    delta = max(0.0, limit - kept) / others if others else 0.0
    return Rates(min(1.0, tau.instruction + delta), tau.contexts, min(1.0, tau.question + delta))


def fit_rates(budget: int, lengths: Lengths, tau: Rates) -> Rates:
    """The rates of equation (6), scaled so that together they spend the budget on the chosen contexts.

    The contexts get what instruction and question leave. Where these alone exceed the budget, the contexts get nothing
    and the parts that may be compressed (rate under 1) share what the verbatim ones leave.
    """
    left = context_budget(budget, lengths, tau)
    if left >= 0:
        return Rates(tau.instruction, min(1.0, left / lengths.contexts) if lengths.contexts else 0.0, tau.question)
    verbatim, shared = 0, 0.0
    for rate, length in ((tau.instruction, lengths.instruction), (tau.question, lengths.question)):
        verbatim += length if rate >= 1 else 0
        shared += rate * length if rate < 1 else 0.0
    scale = max(0.0, (budget - verbatim) / shared) if shared else 0.0
    scaled = [rate if rate >= 1 else rate * min(1.0, scale) for rate in (tau.instruction, tau.question)]
    return Rates(scaled[0], 0.0, scaled[1])
