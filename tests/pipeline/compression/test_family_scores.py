"""Selective-Context, sentences and LongLLMLingua against their definitions worked out by plain forward passes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from family_prompts import best_first, prompt_of, prompts_of, ranking_of, spec_of, tokenising, units_of
from numpy.typing import NDArray

from pipeline.compression.contexts import GUIDE
from pipeline.compression.contrast import Contrasted
from pipeline.compression.lexical import Words, unit_weights
from pipeline.compression.methods.longllmlingua import LongLLMLingua, ranked_rates
from pipeline.compression.prompt import Part, Prompt, Source
from pipeline.compression.registry import Method, build_method
from pipeline.compression.scoring import Scorer
from pipeline.models import ModelPool
from schemas.document import SEPARATOR, PromptParts

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

CONTEXTS = (
    "Sam bought 12 boxes with 30 pens each. He sold five of them.",
    "The quick brown fox jumps over the lazy dog while many small rivers run to the sea.",
    "Question: what is the product of width and height? The area, of course.",
)
PARTS = PromptParts("Solve it step by step.", CONTEXTS, "How many pens did Sam sell?")
START, BLANK = 0, tokenising().tokenise([SEPARATOR])[0].ids


@pytest.fixture(scope="module")
def nats(pool: ModelPool, tiny: str) -> Any:
    """``nats(ids)``: of every token but the first, by one plain pass in float64."""
    model: Any = pool.causal_lm(tiny).model

    def plain(*pieces: Ints | Sequence[int]) -> Floats:
        ids = torch.tensor(np.concatenate(pieces).astype(np.int64).tolist())
        with torch.inference_mode():
            logits = model(input_ids=ids[None], use_cache=False).logits[0].double()
        found: Floats = -logits.log_softmax(-1)[:-1].gather(-1, ids[1:, None])[:, 0].numpy()
        return found

    return plain


def method_of(pool: ModelPool, tiny: str, name: str, **settings: Any) -> Method:
    return build_method(spec_of(name, model=tiny, **settings), pool, tokenising())


def unit_means(part: Part, values: Floats) -> Floats:
    return np.array([some.mean() for some in np.split(values, part.first[1:])])


def context_margins(prompt: Prompt, margins: Floats) -> list[Floats]:
    bounds = np.cumsum([len(part.places) for part in prompt.parts])[:-1]
    return [np.split(margins, bounds)[place] for place in prompt.places("context")]


@pytest.mark.parametrize("importance", ["surprisal", "surprisal-tfidf"])
def test_selective_context_is_self_information_in_the_whole_prompt(
    pool: ModelPool, tiny: str, nats: Any, importance: str
) -> None:
    prompt = prompt_of(PARTS)
    method = method_of(pool, tiny, "selective-context", unit="word", importance=importance)
    found = context_margins(prompt, ranking_of(method, prompt)[0].margins)
    weights = context_margins(prompt, unit_weights(Words.of(prompt)))
    before = [np.array([START]), prompt.parts[0].ids]
    for place, part in enumerate(prompt.parts[1:4]):
        values = nats(*before, BLANK, part.ids)[-len(part.ids) :]
        scale = weights[place] if importance == "surprisal-tfidf" else 1
        np.testing.assert_allclose(found[place], unit_means(part, values) * scale, atol=1e-4)
        before += [BLANK, part.ids]


def test_selective_context_reads_a_document_at_several_rates_once(pool: ModelPool, tiny: str) -> None:
    prompts = prompts_of(*(Source(PARTS, rate) for rate in (0.9, 0.7, 0.6)), spec=spec_of(rates=[0.9, 0.7, 0.6]))
    told: list[int] = []
    rankings = method_of(pool, tiny, "selective-context").score(prompts, told.append)
    assert sum(told) == sum(len(part.ids) for part in prompts[0].parts[:4]) + 3 * len(BLANK)
    assert all(one.margins is rankings[0].margins for one in rankings)


def test_sentences_are_scored_within_their_context(pool: ModelPool, tiny: str, nats: Any) -> None:
    prompt = prompt_of(PARTS, unit="sentence")
    found = context_margins(prompt, ranking_of(method_of(pool, tiny, "sentences"), prompt)[0].margins)
    assert [len(units_of(part)) for part in prompt.parts[1:4]] == [2, 1, 2]
    for part, margins in zip(prompt.parts[1:4], found, strict=True):
        np.testing.assert_allclose(margins, unit_means(part, nats([START], part.ids)), atol=1e-4)


def question_after(nats: Any, prompt: Prompt) -> list[float]:
    """Equation (2) of LongLLMLingua, less its sign."""
    asked = np.concatenate([prompt.parts[4].ids, tokenising().tokenise([GUIDE])[0].ids])
    return [float(nats([START], part.ids, BLANK, asked)[-len(asked) :].mean()) for part in prompt.parts[1:4]]


def test_longllmlingua_orders_contexts_by_how_likely_they_make_the_question(
    pool: ModelPool, tiny: str, nats: Any
) -> None:
    prompt = prompt_of(PARTS, rate=0.9)
    method = method_of(pool, tiny, "longllmlingua")
    assert isinstance(method, LongLLMLingua)
    expected = question_after(nats, prompt)
    (relevance,) = method.asked.contexts.relevance([prompt], lambda tokens: None)
    np.testing.assert_allclose(relevance, -np.array(expected), atol=1e-4)
    assert ranking_of(method, prompt)[0].order == (0, *(1 + np.argsort(expected)).tolist(), 4)
    last = method_of(pool, tiny, "longllmlingua", reorder="best-last")
    assert ranking_of(last, prompt)[0].order == (0, *(1 + np.argsort(expected)[::-1]).tolist(), 4)
    assert ranking_of(method_of(pool, tiny, "longllmlingua", reorder=False), prompt)[0].order is None


def test_a_context_beyond_the_window_is_asked_window_by_window(pool: ModelPool, tiny: str, nats: Any) -> None:
    long = " ".join([*CONTEXTS, *CONTEXTS[::-1]] * 6)
    prompt = prompt_of(PromptParts(contexts=(long, CONTEXTS[0]), question=PARTS.question), rate=0.9)
    method = method_of(pool, tiny, "longllmlingua")
    assert isinstance(method, LongLLMLingua)
    (relevance,) = method.asked.contexts.relevance([prompt], lambda tokens: None)
    asked = np.concatenate([prompt.parts[2].ids, tokenising().tokenise([GUIDE])[0].ids])
    room, ids = 256 - 1 - len(BLANK) - len(asked), prompt.parts[0].ids
    assert len(ids) > 4 * room
    means = [
        float(nats([START], ids[begin : begin + room], BLANK, asked)[-len(asked) :].mean())
        for begin in range(0, len(ids) - room // 2, room // 2)
    ]
    assert relevance[0] == pytest.approx(-min(means), abs=1e-4)


def test_units_count_by_what_the_question_does_to_them(pool: ModelPool, tiny: str, nats: Any) -> None:
    """Equation (3): one context, one segment, so that the margin is the score less a constant."""
    prompt = prompt_of(PromptParts("Solve it.", CONTEXTS[1:2], PARTS.question), rate=0.8)
    part = prompt.parts[1]
    for settings in ({}, {"iterative": False}):
        margins = ranking_of(method_of(pool, tiny, "longllmlingua", **settings), prompt)[0].margins
        before = [prompt.parts[0].ids, BLANK, part.ids]
        without = nats([START], *before)[-len(part.ids) :]
        after = nats([START], prompt.parts[2].ids, BLANK, *before)[-len(part.ids) :]
        scores = unit_means(part, without - after)
        (found,) = context_margins(prompt, margins)
        np.testing.assert_allclose(found - found[0], scores - scores[0], atol=2e-4)


def test_without_a_question_it_is_llmlingua(pool: ModelPool, tiny: str) -> None:
    asked, unasked = prompts_of(PARTS, PromptParts("Solve it.", CONTEXTS))
    together = ranking_of(method_of(pool, tiny, "longllmlingua"), unasked, asked, unasked)
    (plain,) = ranking_of(method_of(pool, tiny, "llmlingua", iterative_size=200, granular_k=1.0), unasked)
    for one in (together[0], together[2]):
        np.testing.assert_allclose(one.margins, plain.margins, atol=1e-5)
        assert one.order is None
    assert together[1].order is not None


@pytest.mark.parametrize("delta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.97, 1.0])
def test_better_contexts_keep_more_within_the_same_budget(delta: float, rate: float) -> None:
    lengths = np.array([90.0, 10, 200, 40, 0])
    rates = ranked_rates(lengths, rate, delta)
    assert ((rates >= 0) & (rates <= 1)).all()
    assert (np.diff(rates) <= 1e-12).all()
    assert (rates * lengths).sum() == pytest.approx(rate * lengths.sum(), abs=1e-6)
    if delta == 0.3 and rate == 0.5:  # nothing is clipped: equation (5) as it stands, but for a constant
        np.testing.assert_allclose(np.diff(rates), -2 * 0.3 / 5)


def test_the_question_stays_before_whatever_is_compressed(pool: ModelPool, tiny: str, nats: Any) -> None:
    """Beyond the window both readings go on from the same tokens, and the second still begins with the question."""
    scorer = Scorer(pool.causal_lm(tiny), 4096)
    draw = np.random.default_rng(0)
    starts = [draw.integers(1, 400, size) for size in (3, 9)]
    questions = [draw.integers(1, 400, size) for size in (20, 90)]  # of the second, the last 64 tokens count
    both = Contrasted(scorer, starts, questions)
    rows = np.arange(2)
    for _ in range(9):
        segment = draw.integers(1, 400, 60)
        counts = np.array([40, 20])
        both.make_room(rows, counts)
        both.catch_up(rows, 64)
        lengths = both.length.copy()
        found = np.split(both.score(rows, segment, counts), [40])
        for row, new in enumerate(np.split(segment, [40])):
            pinned = questions[row][-64:]
            held = [both._ids[place, : lengths[place]] for place in (row, row + 2)]
            np.testing.assert_array_equal(held[1][: len(pinned)], pinned)
            after = held[1][len(pinned) :]  # the start token stands before the question
            np.testing.assert_array_equal(after, held[0][-len(after) :])
            assert len(held[0]) - len(after) in (0, 1)
            expected = nats(held[0], new)[-len(new) :] - nats(held[1], new)[-len(new) :]
            np.testing.assert_allclose(found[row], expected, atol=1e-4)
        both.extend(np.repeat(rows, counts), segment)
    assert lengths.max() <= 256


@pytest.mark.parametrize("asked", [1, 20, 64, 200])
def test_after_a_long_question_half_a_window_of_compressed_text_stays(pool: ModelPool, tiny: str, asked: int) -> None:
    scorer = Scorer(pool.causal_lm(tiny), 4096)
    ids = np.random.default_rng(0).integers(1, 400, 1000)
    both = Contrasted(scorer, [ids[:1]], [ids[:asked]])
    row, pinned = np.zeros(1, np.int64), min(asked, 64)
    for begin in range(1, 900, 50):
        before = int(both.length[0])
        both.make_room(row, np.array([64]))  # the longest segment: a quarter
        assert both.length[0] >= min(before, 128)
        assert both.length[1] + 64 <= 256
        np.testing.assert_array_equal(both._ids[1, :pinned], ids[:asked][-pinned:])
        both.extend(np.zeros(50, np.int64), ids[begin : begin + 50])
    both.make_room(row, np.array([200]))  # one unit may be longer than any segment
    assert both.length[0] == 128 - pinned


def test_read_once_the_whole_text_is_before_each_unit(pool: ModelPool, tiny: str, nats: Any) -> None:
    prompt = prompt_of(PromptParts("Solve it.", (" ".join(CONTEXTS),)), rate=0.4)
    margins = ranking_of(method_of(pool, tiny, "llmlingua", iterative=False, iterative_size=10), prompt)[0].margins
    part = prompt.parts[1]
    scores = unit_means(part, nats([START], prompt.parts[0].ids, BLANK, part.ids)[-len(part.ids) :])
    (found,) = context_margins(prompt, margins)
    np.testing.assert_allclose(found - found[0], scores - scores[0], atol=2e-4)
    kept = part.costs[found > 0].sum()
    assert 0.8 * prompt.budget < kept + prompt.fixed <= prompt.budget


def test_tfidf_weighs_surprisal_in_a_segment(pool: ModelPool, tiny: str, nats: Any) -> None:
    prompt = prompt_of(PromptParts(contexts=CONTEXTS[1:2]), rate=0.5)
    margins = ranking_of(method_of(pool, tiny, "llmlingua", importance="surprisal-tfidf"), prompt)[0].margins
    (part,) = prompt.parts
    scores = unit_means(part, nats([START], part.ids)) * unit_weights(Words.of(prompt))
    np.testing.assert_allclose(margins - margins[0], scores - scores[0], atol=2e-4)


def test_skimming_reads_less_and_removes_what_says_little(pool: ModelPool, tiny: str) -> None:
    prompt = prompt_of(PromptParts(contexts=(" ".join(CONTEXTS) * 2,)), rate=0.3)
    told: list[list[int]] = []
    for skim in (0.0, 0.4):
        told.append([])
        (ranking,) = method_of(pool, tiny, "llmlingua", skim=skim).score([prompt], told[-1].append)
    assert 0.55 * sum(told[0]) < sum(told[1]) < 0.75 * sum(told[0])
    last = {text.strip() for text in best_first(prompt, ranking)[-8:]}
    assert last & {".", ":", "?", "The", "the", "of", "is"}
    assert np.isfinite(ranking.margins).all()  # what was skimmed may still fill what is left of the budget


def test_skimming_leaves_enough_for_the_budget(pool: ModelPool, tiny: str) -> None:
    prompt = prompt_of(PromptParts(contexts=CONTEXTS[1:2]), rate=0.9)
    (ranking,) = ranking_of(method_of(pool, tiny, "llmlingua", skim=0.8), prompt)
    gone = ranking.margins == ranking.margins.min()
    assert prompt.costs()[gone].sum() <= prompt.original - prompt.budget + prompt.separator


@pytest.mark.parametrize("by", ["bm25", "random"])
def test_contexts_ranked_without_the_model_are_not_read(pool: ModelPool, tiny: str, by: str) -> None:
    prompt = prompt_of(PromptParts(contexts=CONTEXTS * 3, question=PARTS.question), target_tokens=40)
    told: list[int] = []
    (ranking,) = method_of(pool, tiny, "llmlingua", rank_contexts_by=by).score([prompt], told.append)
    taken = [bool(np.isfinite(one).any()) for one in context_margins(prompt, ranking.margins)]
    assert 0 < sum(taken) < 9
    assert sum(told) < prompt.original - 40
    if by == "bm25":
        assert taken[0] and not taken[1]


def test_without_a_budget_controller_all_contexts_are_taken(pool: ModelPool, tiny: str) -> None:
    prompt = prompt_of(PromptParts(contexts=CONTEXTS * 3), target_tokens=40)
    method = method_of(pool, tiny, "llmlingua", budget_controller=False)
    assert np.isfinite(ranking_of(method, prompt)[0].margins).all()
    assert not np.isfinite(ranking_of(method_of(pool, tiny, "llmlingua"), prompt)[0].margins).all()


def test_without_a_dynamic_ratio_all_that_may_shrink_shrinks_alike(pool: ModelPool, tiny: str) -> None:
    parts = PromptParts(CONTEXTS[0], CONTEXTS[1:], CONTEXTS[0])
    taus = {"tau_instruction": 0.8, "tau_question": 0.9, "rate": 0.5}
    prompt = prompt_of(parts, **taus)
    shares = []
    for dynamic in (True, False):
        ablated = {"dynamic_ratio": dynamic, "iterative": False, "budget_controller": False}
        method = method_of(pool, tiny, "llmlingua", **ablated, **taus)
        kept = ranking_of(method, prompt)[0].margins > 0
        bounds = np.cumsum([len(part.places) for part in prompt.parts])[:-1]
        costs = zip(np.split(kept, bounds), prompt.parts, strict=True)
        shares.append([float((part.costs * some).sum() / part.length) for some, part in costs])
    assert shares[0][0] > 0.65 and shares[0][3] > 0.75
    assert max(shares[1][0], shares[1][3]) < 0.55


def test_segments_of_which_all_stays_are_not_scored(
    pool: ModelPool, tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is decided there; what comes after is scored after them all the same."""
    text = " ".join([*CONTEXTS, "1 2 3 4 5 6 7 8 9 " * 12, *CONTEXTS])
    prompt = prompt_of(PromptParts(contexts=(text,)), target_tokens=250, keep={"digits": True})
    method = method_of(pool, tiny, "llmlingua", iterative_size=20)
    told: list[int] = []
    (skipping,) = method.score([prompt], told.append)
    numbers = sum(prompt.costs()[prompt.forced()])
    assert len(prompt.parts[0].ids) - numbers < sum(told) < len(prompt.parts[0].ids) - numbers + 60
    every = np.ones_like
    monkeypatch.setattr(
        "pipeline.compression.iterative._undecided", lambda locked, local: every(np.unique(local), bool)
    )
    (plain,) = method.score([prompt], told.append)
    np.testing.assert_allclose(skipping.margins, plain.margins, atol=1e-4)
