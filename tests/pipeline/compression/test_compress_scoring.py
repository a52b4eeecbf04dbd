"""Batched, cached, chunked scores equal those of plain forward passes, for several architectures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from compress_models import KINDS, SCALED, save_model
from numpy.typing import NDArray

from pipeline.compression import scoring
from pipeline.compression.iterative import Stream, rank, segment_of
from pipeline.compression.reading import surprisals
from pipeline.compression.scoring import Scorer, windows_of
from pipeline.models import ModelError, ModelPool
from pipeline.passes.padded import PaddedPasses

Ints = NDArray[np.int64]


@pytest.fixture(scope="module", params=KINDS)
def scorer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, pool: ModelPool) -> Scorer:
    return Scorer(pool.causal_lm(save_model(tmp_path_factory.mktemp("kind"), request.param)), batch_tokens=400)


def plain(scorer: Scorer, pool: ModelPool, ids: Sequence[int] | Ints) -> NDArray[np.float64]:
    """Nats of every token but the first: one text, one pass of the whole model, one full log-softmax."""
    model: Any = next(held.model for held in pool._loaded.values() if held.model.get_decoder() is scorer.trunk)
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0].double()
    found = -logits.log_softmax(-1)[:-1].gather(-1, torch.tensor(list(ids))[1:, None])[:, 0]
    values: NDArray[np.float64] = found.numpy()
    return values


def random_ids(length: int, seed: int) -> Ints:
    return np.random.default_rng(seed).integers(1, 400, length)


def test_surprisals_of_ragged_texts(scorer: Scorer, pool: ModelPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(scoring._LOGITS, "cpu", 2000)  # a few rows at a time
    texts = [random_ids(length, length) for length in (2, 90, 17, 1, 255, 3, 64)]
    for ids, nats in zip(texts, surprisals(scorer, texts), strict=True):
        np.testing.assert_allclose(nats, plain(scorer, pool, ids), atol=5e-5)


def test_beyond_the_window_every_token_sees_half_a_window(scorer: Scorer, pool: ModelPool) -> None:
    ids, size = random_ids(700, 1), scorer.prefix
    half = size // 2
    nats = list(plain(scorer, pool, ids[:size]))
    for begin in range(half, 700 - half, half):
        nats += list(plain(scorer, pool, ids[begin : begin + size])[half - 1 :])
    assert len(nats) == 699
    np.testing.assert_allclose(surprisals(scorer, [ids])[0], nats, atol=5e-5)


@pytest.mark.parametrize("length", [1, 2, 9, 10, 11, 15, 16, 21, 30, 31])
def test_windows_score_each_token_once(length: int) -> None:
    ids = np.arange(length)
    scored = [token for window in windows_of(ids, 10) for token in window.ids[window.scored :]]
    assert scored == list(range(1, length))


def stream(length: int, seed: int, start: int, rate: float = 0.5, size: int = 30) -> Stream:
    """Random tokens in units of one to three, which cost about as many target tokens."""
    random = np.random.default_rng(seed)
    counts = random.integers(1, 4, length)
    locked = random.random(length) < 0.05
    costs = np.where(locked, 0, np.maximum(0, counts + random.integers(-1, 2, length)))
    groups = (np.arange(length) > length // 3).astype(np.int64)
    return Stream(
        random_ids(start, seed + 1), random_ids(int(counts.sum()), seed + 2), counts, costs,
        np.where(groups == 0, min(1.0, rate * 1.5), rate), segment_of(counts, groups, size), locked,
    )  # fmt: skip


def by_hand(scorer: Scorer, pool: ModelPool, one: Stream) -> tuple[list[float], list[bool]]:
    """Algorithm 2 for one document, word for word: every segment is one uncached pass over prefix and segment."""
    prefix, spare, place = one.start.tolist(), 0.0, 0
    scores: list[float] = []
    kept: list[bool] = []
    for number in range(int(one.segments[-1]) + 1):
        units = np.flatnonzero(one.segments == number).tolist()
        tokens = one.ids[place : place + int(one.counts[units].sum())].tolist()
        if len(prefix) + len(tokens) > scorer.prefix:
            prefix = prefix[-(scorer.prefix // 2) :]
        nats = plain(scorer, pool, prefix + tokens)[len(prefix) - 1 :]
        ends = np.cumsum(one.counts[units])
        means = [float(nats[end - count : end].mean()) for end, count in zip(ends, one.counts[units], strict=True)]
        spare += float((one.rates[units] * one.costs[units])[~one.locked[units]].sum())
        keep, spent = {unit for unit in units if one.locked[unit]}, 0
        for _, unit in sorted((-mean, unit) for mean, unit in zip(means, units, strict=True) if unit not in keep):
            spent += int(one.costs[unit])
            if spent > spare:
                spent -= int(one.costs[unit])
                break
            keep.add(unit)
        spare -= spent
        for unit, end in zip(units, ends, strict=True):
            kept.append(unit in keep)
            prefix += tokens[end - int(one.counts[unit]) : end] if unit in keep else []
        scores += means
        place += len(tokens)
    return scores, kept


LENGTHS = [(150, 3), (40, 60), (8, 1), (300, 1), (90, 200), (1, 1)]


@pytest.mark.parametrize(("multiple", "prefix"), [(1, 256), (8, 256), (1, 150)])
def test_iterations_of_a_batch_equal_algorithm_2_by_hand(
    scorer: Scorer, pool: ModelPool, monkeypatch: pytest.MonkeyPatch, multiple: int, prefix: int
) -> None:
    """Among them prefixes and streams that outgrow window or prefix; columns padded as on a GPU or not."""
    monkeypatch.setattr(scorer, "prefix", prefix)
    monkeypatch.setattr(PaddedPasses, "round", lambda self, columns: -(-columns // multiple) * multiple)
    streams = [stream(length, seed, start, rate=0.3 + 0.1 * seed) for seed, (length, start) in enumerate(LENGTHS)]
    for one, margin in zip(streams, rank(scorer, streams, 30, lambda tokens: None), strict=True):
        scores, kept = by_hand(scorer, pool, one)
        assert (margin > 0).tolist() == kept
        assert np.isposinf(margin[one.locked]).all()
        for number in range(int(one.segments[-1]) + 1):  # within a segment the margins are the scores, moved
            free = (one.segments == number) & ~one.locked
            moved = margin[free] - np.array(scores)[free]
            if free.any():
                np.testing.assert_allclose(moved, moved.mean(), atol=5e-5)


def test_a_batch_that_does_not_fit_is_halved_and_says_so(
    scorer: Scorer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    streams = [stream(60, seed, 2) for seed in range(5)]
    expected = rank(scorer, streams, 30, lambda tokens: None)
    real = scorer.trunk.forward

    def narrow(**arguments: Any) -> Any:
        if len(arguments["input_ids"]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(**arguments)

    monkeypatch.setattr(scorer.trunk, "forward", narrow)
    monkeypatch.setattr(scorer, "batch_tokens", 10_000)
    for one, other in zip(rank(scorer, streams, 30, lambda tokens: None), expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    assert "out of memory: a batch of 5 rows" in caplog.text


def test_a_model_without_keys_and_values_is_no_documents_fault(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    hybrid = SimpleNamespace(model_type="hybrid", layer_types=["linear_attention", "full_attention"])
    monkeypatch.setattr(scorer, "config", hybrid)
    with pytest.raises(ModelError, match="linear_attention"):  # which halts a job; another error would blame documents
        rank(scorer, [stream(20, 1, 2)], 30, lambda tokens: None)


def test_segments_count_anew_with_each_group_and_never_split_a_unit() -> None:
    counts, groups = np.array([4, 4, 4, 9, 1, 4, 4]), np.array([0, 0, 0, 0, 0, 1, 1])
    assert segment_of(counts, groups, 8).tolist() == [0, 0, 1, 1, 2, 3, 3]


@pytest.mark.parametrize("kind", SCALED)
def test_a_model_that_scales_its_logits_is_refused(kind: str, tmp_path: Path, pool: ModelPool) -> None:
    with pytest.raises(ModelError, match=f"{kind}: something scales its logits"):
        Scorer(pool.causal_lm(save_model(tmp_path, kind)), 400)
