"""Prompts of any text for property tests, and budgets for them, of which most cut something."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.compression.tokens import Tokenising
from pipeline.stages import Outcome, Result
from schemas.document import PromptParts

SNIPPETS = [
    "word", "12*3=36", "你好。", "👨\u200d👩\u200d👧\u200d👦", "\n\n", "  ", "Mr. x.y(z)!", "é", "<|x|>", "Yes. No?",
    "\u202eab\u200f", "\x00\x1b",
]  # fmt: skip
_asked = st.text(max_size=6) | st.sampled_from(["", "Do it.", "Why?", "你好。", "  "])
_said = st.text(min_size=12, max_size=60) | st.lists(st.sampled_from(SNIPPETS), min_size=8, max_size=30).map(" ".join)
_contexts = st.builds(
    list.__add__, st.lists(_said, min_size=1, max_size=3), st.lists(st.sampled_from(["", "\n", "x"]), max_size=1)
).flatmap(st.permutations)
prompts = st.builds(PromptParts, _asked, _contexts.map(tuple), _asked)
shares = st.integers(10, 98).map(lambda percent: percent / 100)
"""Of what may go the share that the budget leaves: see ``rate_of``."""


def quick(examples: int) -> settings:
    """So many examples, however long each takes."""
    return settings(
        max_examples=examples, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    )


def rate_of(counting: Tokenising, parts: PromptParts, share: float) -> float:
    """The rate between what instruction and question take (``share`` 0) and the whole prompt (1)."""
    whole, asked = counting.count([parts.render(), PromptParts(parts.instruction, (), parts.question).render()])
    return min(1.0, max(0.01, (asked + share * (whole - asked)) / max(1, whole)))


def mostly_cut(property_: Callable[..., Outcome], examples: int, *draws: st.SearchStrategy[Any]) -> None:
    """Hold ``property_``, which checks one case and returns what came out, to many; most must have cut something."""
    cut: list[bool] = []

    @quick(examples)
    @given(st.tuples(*draws))
    def holds(drawn: tuple[Any, ...]) -> None:
        outcome = property_(*drawn)
        cut.append(isinstance(outcome, Result) and outcome.tokens_out < outcome.tokens_in)

    holds()
    assert 2 * sum(cut) >= len(cut), f"{sum(cut)} of {len(cut)} prompts were cut"
