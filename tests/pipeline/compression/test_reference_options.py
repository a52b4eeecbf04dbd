"""Options of the library, checked before anything runs."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.compression.reference.outcomes import asked_of
from schemas.reference import ReferenceOptions

numbers = st.one_of(
    st.integers(1, 500).map(str), st.decimals(1, 50, places=2).map(str), st.sampled_from(["2.", ".5", "100"])
)
steps = st.lists(st.tuples(st.sampled_from("+-*/"), numbers).map("".join), max_size=4).map("".join)


@given(steps, st.one_of(st.integers(0, 3000), st.floats(0, 3000)))
def test_a_context_budget_comes_to_what_python_makes_of_it(budget: str, target: float) -> None:
    expected = eval(f"target{budget}", {"target": target})
    assert ReferenceOptions(context_budget=budget).context_limit(target) == expected


@pytest.mark.parametrize("budget", ["+target", "+1;print()", "**2", "+(1)", "100", "+1e9", "/0", "+__import__('os')"])
def test_a_context_budget_is_arithmetic_and_nothing_else(budget: str) -> None:
    with pytest.raises(ValidationError, match="context_budget"):
        ReferenceOptions(context_budget=budget)


@pytest.mark.parametrize(
    "options",
    [
        {"rate": 1.1},
        {"rate": -0.1},
        {"target_token": "200"},
        {"iterative_size": 0},
        {"rank_method": "bm25"},
        {"condition_in_question": "behind"},
        {"reorder_context": "best"},
        {"force_context_ids": [-1]},
        {"use_keyvalue_level_filter": True},
        {"json_config": {"a": {"rate": 0.5, "compress": True, "value_type": "set", "pair_remove": True}}},
        {"use_llmlingua2": True},
    ],
)
def test_what_the_library_has_not_or_fails_on_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ReferenceOptions(**options)


@pytest.mark.parametrize(("target", "tokens"), [(-1, None), (-1.0, None), (-2, 0), (0, 0), (7.5, 7)])
def test_only_a_target_of_minus_one_is_none(target: float, tokens: int | None) -> None:
    options = ReferenceOptions(target_token=target)
    assert options.tokens == tokens and asked_of(options, 100) == (50 if tokens is None else tokens)


@pytest.mark.parametrize(
    ("rank", "condition", "contrast", "expected"),
    [
        ("llmlingua", "after_condition", False, ("none", True)),
        ("llmlingua", "none", True, ("none", True)),
        ("llmlingua", "before", False, ("none", False)),
        ("longllmlingua", "none", False, ("after", False)),
        ("longllmlingua", "none", True, ("none", True)),
        ("longllmlingua", "before_condition", False, ("before", True)),
    ],
)
def test_what_scores_are_conditioned_on(rank: Any, condition: Any, contrast: bool, expected: tuple[str, bool]) -> None:
    options = ReferenceOptions(rank_method=rank, condition_in_question=condition, condition_compare=contrast)
    assert (options.condition, options.conditioned) == expected
