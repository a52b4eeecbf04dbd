"""Shares of a budget: one threshold serves all regions in proportion, paragraphs and sentences included."""

from __future__ import annotations

import numpy as np
import pytest
from compress_models import WORDS
from compress_shrink import check, compressed, result, shrink
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.compression.quota import Quota, shared_out
from schemas.document import PromptParts


def kept(quota: Quota, margins: np.ndarray, costs: np.ndarray, forced: np.ndarray, budget: float) -> np.ndarray:
    """What the best by load take of ``budget``, a prefix of the ranking as the fit takes it."""
    loads = quota.loads(margins, costs, forced)
    order = np.argsort(-loads, kind="stable")
    order = order[np.isfinite(loads[order])]
    taken = forced.copy()
    taken[order[np.cumsum(costs[order]) <= budget - costs[forced].sum()]] = True
    return taken


def test_the_best_of_each_region_fill_its_allowance() -> None:
    quota = Quota(np.array([0, 0, 0, 0, 1, 1, 1, 1]), np.array([1.0, 3.0]))
    margins, costs = np.array([4.0, 3, 2, 1, 40, 30, 20, 10]), np.ones(8, np.int64)
    free = np.zeros(8, bool)
    assert kept(quota, margins, costs, free, 4).tolist() == [True, False, False, False, True, True, True, False]
    assert kept(quota, margins, costs, free, 2).tolist() == [False] * 4 + [True, True, False, False]
    assert kept(quota, margins, costs, free, 6).sum() == 6


def test_what_must_stay_spends_first_and_what_never_stays_stays_out() -> None:
    quota = Quota(np.array([0, 0, 0, -1]), np.array([2.0]))
    loads = quota.loads(
        np.array([-np.inf, 1.0, 2.0, 5.0]), np.array([1, 1, 1, 9]), np.array([False, True, False, True])
    )
    assert loads.tolist() == [-np.inf, -np.inf, -1.0, -np.inf]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 5), st.booleans()), min_size=1, max_size=60),
    st.lists(st.floats(0.5, 60), min_size=4, max_size=4),
    st.floats(0.05, 2),
)
def test_no_region_exceeds_its_scaled_share(
    units: list[tuple[int, int, bool]], allowances: list[float], scale: float
) -> None:
    """Whatever the threshold is, a region has spent its share of it at most, beside what must stay."""
    regions, costs, forced = (np.array(column) for column in zip(*units, strict=True))
    margins = np.random.default_rng(len(units)).normal(size=len(units))
    loads = Quota(regions, np.array(allowances)).loads(margins, costs, forced)
    taken = forced | (loads >= -scale)
    for region, allowance in enumerate(allowances):
        mine = regions == region
        assert costs[mine & taken].sum() <= max(scale * allowance + 1e-9, costs[mine & forced].sum())
        above = margins[mine & ~forced & taken]
        below = margins[mine & ~forced & ~taken]
        assert not len(above) or not len(below) or above.min() >= below.max()


def test_paragraphs_and_sentences_have_budgets_of_their_own() -> None:
    """The best units all stand in one sentence: without levels they take all, with levels every sentence has some."""
    count = 40
    margins, costs, free = np.arange(count, dtype=float), np.ones(count, np.int64), np.zeros(count, bool)
    regions, allowances = np.zeros(count, np.int64), np.array([20.0])
    paragraphs, sentences = np.repeat([0, 1], 20), np.repeat([0, 1, 2, 3], 10)
    flat = kept(Quota(regions, allowances), margins, costs, free, 20)
    deep = kept(Quota(regions, allowances, (paragraphs, sentences)), margins, costs, free, 20)
    assert flat.reshape(4, 10).sum(1).tolist() == [0, 0, 10, 10]
    by_sentence = deep.reshape(4, 10).sum(1)
    assert by_sentence.min() >= 1
    assert by_sentence.tolist() == sorted(by_sentence)
    assert deep.sum() == 20


def test_nothing_is_handed_to_a_paragraph_beyond_its_length() -> None:
    margins = np.array([1.0, 2, 3, 4, 5, 6, 7, 8])
    quota = Quota(np.zeros(8, np.int64), np.array([7.0]), (np.array([0, 0, 0, 0, 1, 1, 1, 1]),))
    taken = kept(quota, margins, np.ones(8, np.int64), np.zeros(8, bool), 7)
    assert taken.tolist() == [False] + [True] * 7


def test_allowances_are_never_nothing() -> None:
    assert shared_out(10, [1, 3]) == [2.5, 7.5]
    assert min(shared_out(-5, [1, 3])) > 0
    assert shared_out(5, []) == []


@pytest.mark.parametrize("method", ["random", "tfidf"])
def test_a_hierarchy_spreads_a_document(tiny: str, method: str) -> None:
    paragraphs = [f"{WORDS[200 * n : 200 * n + 150].strip()}." for n in range(4)]
    parts = PromptParts(contexts=("\n\n".join(paragraphs),), question="How many pens?")
    outcome = shrink(tiny, parts, method=method, rate=0.4, hierarchy=True)
    check(parts, outcome)
    assert compressed(outcome) != compressed(shrink(tiny, parts, method=method, rate=0.4))
    assert result(outcome).tokens_out >= 0.97 * (result(outcome).tokens_asked or 0)


def test_instruction_and_question_have_their_rates_whatever_the_method(tiny: str) -> None:
    parts = PromptParts(WORDS[:300], (WORDS,), WORDS[300:700])
    outcome = shrink(tiny, parts, rate=0.6, tau_instruction=0.5, tau_question=0.9)
    check(parts, outcome)
    spans = result(outcome).fields["kept"]
    chars = np.zeros(len(parts.render()), bool)
    for begin, end in zip(spans[::2], spans[1::2], strict=True):
        chars[begin:end] = True
    assert chars[:300].mean() == pytest.approx(0.5, abs=0.1)
    assert chars[-400:].mean() == pytest.approx(0.9, abs=0.1)
