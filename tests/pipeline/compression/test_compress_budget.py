"""The paper's arithmetic, with numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.compression.budget import Lengths, Rates, context_budget, fit_rates, spread_rest, tokens_asked
from pipeline.compression.selection import choose_contexts, margins, running_sums

LENGTHS = Lengths(instruction=20, contexts=600, question=80)
VERBATIM, PAPER = Rates(1.0, 1.0, 1.0), Rates(0.85, 1.0, 0.9)


@pytest.mark.parametrize(
    ("original", "rate", "tokens"), [(100, 0.29, 29), (100, 0.3, 30), (7, 0.5, 3), (3, 0.1, 0), (851, 1.0, 851)]
)
def test_a_rate_rounds_down_and_knows_no_binary_fractions(original: int, rate: float, tokens: int) -> None:
    assert tokens_asked(original, rate, None) == tokens


def test_a_number_of_tokens_is_the_budget() -> None:
    assert tokens_asked(10, None, 500) == 500
    with pytest.raises(ValueError, match="rate"):
        tokens_asked(10, None, None)


def test_equation_2() -> None:
    assert context_budget(240, LENGTHS, VERBATIM) == 140
    assert context_budget(240, LENGTHS, PAPER) == pytest.approx(240 - 17 - 72)
    assert context_budget(90, LENGTHS, VERBATIM) == -10


def test_equation_3_raises_what_may_be_compressed() -> None:
    raised = spread_rest(limit=305, kept=300, lengths=LENGTHS, tau=PAPER)
    assert (raised.instruction, raised.question) == pytest.approx((0.90, 0.95))
    assert spread_rest(1000, 300, LENGTHS, PAPER) == VERBATIM


def test_an_overshoot_of_the_last_context_is_no_cost_of_the_question() -> None:
    assert spread_rest(300, 420, LENGTHS, PAPER) == PAPER


def test_equation_6_spends_the_budget_on_what_was_chosen() -> None:
    assert fit_rates(240, Lengths(20, 280, 80), VERBATIM) == Rates(1.0, 0.5, 1.0)
    assert fit_rates(240, Lengths(20, 100, 80), VERBATIM).contexts == 1.0


def test_parts_that_alone_exceed_the_budget_share_it() -> None:
    scaled = fit_rates(50, Lengths(20, 300, 80), Rates(1.0, 1.0, 0.9))  # 30 tokens for a question of 80
    assert scaled.contexts == 0
    assert scaled.instruction == 1
    assert scaled.question * 80 == pytest.approx(30)


@given(
    st.integers(0, 2000), st.integers(0, 300), st.integers(0, 900), st.integers(0, 300),
    st.floats(0.1, 1), st.floats(0.1, 1), st.floats(-500, 2000),
)  # fmt: skip
def test_rates_never_spend_more_than_the_budget(
    budget: int, instruction: int, contexts: int, question: int, first: float, last: float, limit: float
) -> None:
    lengths, tau = Lengths(instruction, contexts, question), Rates(first, 1.0, last)
    rates = fit_rates(budget, lengths, spread_rest(limit, contexts, lengths, tau))
    assert all(0 <= rate <= 1 for rate in (rates.instruction, rates.contexts, rates.question))
    spent = rates.instruction * instruction + rates.contexts * contexts + rates.question * question
    verbatim = sum(n for n, rate in ((instruction, rates.instruction), (question, rates.question)) if rate == 1)
    assert spent <= max(budget, verbatim) + 1e-6


def test_contexts_are_taken_by_surprise_until_they_exceed_the_limit() -> None:
    surprise, lengths = np.array([1.0, 3.0, 2.0, 3.0]), np.array([10, 20, 30, 40])
    assert choose_contexts(surprise, lengths, 1).tolist() == [1]  # the one that crosses the limit is kept
    assert choose_contexts(surprise, lengths, 20).tolist() == [1, 3]  # 20 does not exceed 20; equal: the earlier first
    assert choose_contexts(surprise, lengths, 61).tolist() == [1, 2, 3]
    assert choose_contexts(surprise, lengths, 1000).tolist() == [0, 1, 2, 3]  # in the original order
    assert choose_contexts(surprise, lengths, 0).tolist() == []


def test_equation_7_keeps_the_most_surprising_units_of_each_segment() -> None:
    scores = np.array([1.0, 5.0, 3.0, 9.0, 2.0, 2.0])
    costs, rows = np.array([1, 1, 2, 1, 1, 1]), np.array([0, 0, 0, 1, 1, 1])
    above, left = margins(scores, costs, rows, np.array([3.5, 2.0]))
    assert (above > 0).tolist() == [False, True, True, True, True, False]  # ties: the earlier one
    assert above[1] - above[2] == pytest.approx(2.0)
    assert left.tolist() == [0.5, 0.0]


@pytest.mark.parametrize("allowed", [0.0, 100.0])
def test_all_or_nothing_of_a_segment(allowed: float) -> None:
    above, left = margins(np.array([1.0, 5.0]), np.array([1, 1]), np.array([0, 0]), np.array([allowed]))
    assert (above > 0).tolist() == [allowed > 0] * 2
    assert np.isfinite(above).all()
    assert above[1] > above[0]
    assert left.tolist() == [max(0.0, allowed - 2)]


def test_a_segment_without_units_keeps_its_share() -> None:
    none = np.zeros(0, np.int64)
    above, left = margins(np.zeros(0), none, none, np.array([2.0, 3.0]))
    assert len(above) == 0
    assert left.tolist() == [2.0, 3.0]


def test_sums_start_anew_with_each_row() -> None:
    assert running_sums(np.array([1, 2, 3, 4]), np.array([0, 0, 2, 2])).tolist() == [1, 3, 3, 7]
