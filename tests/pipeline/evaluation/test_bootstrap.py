"""Intervals: reproducible, of the right width, paired, and corpus BLEU as sacrebleu has it."""

from __future__ import annotations

import importlib

import numpy as np
import pytest

from pipeline.evaluation import bootstrap
from pipeline.evaluation.bootstrap import corpus_bleu, difference, interval, resamples
from pipeline.evaluation.overlap import Bleu

SAID = ["the cat sat on the mat", "a dog", "he did not go to school today", "", "yes"]
RIGHT = ["the cat is on the mat", "a dog barked loudly at night", "he did not go home today", "nothing", "no"]


def counts(said: list[str], right: list[str]) -> bootstrap.Floats:
    return np.array([Bleu()(one, [other])[1] for one, other in zip(said, right, strict=True)], dtype=float)


def test_the_interval_of_a_share_is_the_textbook_one() -> None:
    rows = np.array([[1.0]] * 560 + [[0.0]] * 240)
    found = interval(rows)
    half = 1.96 * (0.7 * 0.3 / 800) ** 0.5
    assert found.value == 0.7
    assert (found.low, found.high) == pytest.approx((0.7 - half, 0.7 + half), abs=0.003)
    assert interval(rows[::-1]) == found  # neither chance nor order decides


def test_the_interval_of_many_different_scores_is_the_textbook_one() -> None:
    rows = np.random.default_rng(3).normal(0.4, 0.1, (1_500, 1))
    found = interval(rows)
    half = 1.96 * float(rows.std()) / 1_500**0.5
    assert (found.low, found.high) == pytest.approx((rows.mean() - half, rows.mean() + half), abs=half / 10)


@pytest.mark.parametrize("most", [1, 7, 10**9])
def test_the_size_of_a_chunk_decides_nothing(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(4).random((50, 1))
    monkeypatch.setattr(bootstrap, "RESAMPLES", 500)
    whole = interval(rows)
    monkeypatch.setattr(bootstrap, "CHUNK", most)
    found = interval(rows)
    assert (found.value, found.low, found.high) == pytest.approx((whole.value, whole.low, whole.high))


def test_more_documents_are_resampled_less_often() -> None:
    assert [resamples(n) for n in (1, 5_000, 20_000, 10**6)] == [10_000, 10_000, 2_500, 1_000]


def test_a_paired_difference_is_narrower_than_two_intervals() -> None:
    draw = np.random.default_rng(5)
    theirs = (draw.random(800) < 0.7).astype(float)
    ours = np.where(draw.random(800) < 0.03, 1 - theirs, theirs)  # 3% of the answers change
    found = interval(np.stack([ours, theirs], axis=1), difference(bootstrap.mean))
    assert found.value == pytest.approx(ours.mean() - theirs.mean())
    alone = interval(ours[:, None])
    assert found.high - found.low < (alone.high - alone.low) / 2
    same = interval(np.stack([ours, ours], axis=1), difference(bootstrap.mean))
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_one_document_is_its_own_interval() -> None:
    found = interval(np.array([[0.25]]))
    assert (found.value, found.low, found.high) == (0.25, 0.25, 0.25)
    with pytest.raises(ValueError, match="no documents"):
        interval(np.empty((0, 1)))


@pytest.mark.parametrize("documents", [SAID, SAID[:1], SAID[1:2] * 5, SAID[3:4] * 2, SAID[4:], SAID[1:]])
def test_corpus_bleu_is_that_of_sacrebleu(documents: list[str]) -> None:
    right = [RIGHT[SAID.index(one)] for one in documents]
    expected = importlib.import_module("sacrebleu").corpus_bleu(documents, [right]).score
    assert interval(counts(documents, right), corpus_bleu).value == pytest.approx(expected / 100)


def test_resampled_corpus_bleu_is_that_of_the_resampled_corpus() -> None:
    rows = counts(SAID, RIGHT)
    picks = np.random.default_rng(6).integers(len(SAID), size=(20, len(SAID)))
    sums = rows[picks].sum(axis=1)
    for score, pick in zip(corpus_bleu(sums), picks, strict=True):
        alone = interval(rows[pick], corpus_bleu).value
        assert score == pytest.approx(alone)


def test_differences_of_corpus_bleu_are_of_both_corpora_resampled_together() -> None:
    better, worse = counts(SAID[:3] * 40, RIGHT[:3] * 40), counts([s[:9] for s in SAID[:3]] * 40, RIGHT[:3] * 40)
    found = interval(np.hstack([better, worse]), difference(corpus_bleu))
    expected = interval(better, corpus_bleu).value - interval(worse, corpus_bleu).value
    assert found.value == pytest.approx(expected)
    assert 0 < found.low < found.value < found.high
