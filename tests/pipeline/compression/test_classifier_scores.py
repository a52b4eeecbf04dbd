"""p(keep) of tokens: the encoder's own numbers, whatever the length of the text and whatever it comes with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from classifier_models import KINDS, TRAINING, WINDOW, save_classifier
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.compression import classifier
from pipeline.compression.classifier import Classifier, windows_of
from pipeline.compression.tokens import Tokenising
from pipeline.models import LoadedModel, ModelPool

Ids = NDArray[np.int64]
SIZE = WINDOW - 2


@pytest.fixture(scope="module", params=KINDS)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, pool: ModelPool) -> LoadedModel:
    return pool.token_classifier(save_classifier(tmp_path_factory.mktemp("classifier"), request.param))


def _ids(loaded: LoadedModel, *texts: str) -> list[Ids]:
    return [tokens.ids for tokens in Tokenising(loaded.tokenizer).tokenise(texts)]


def _softmax(loaded: LoadedModel, ids: Ids) -> NDArray[np.float32]:
    """The second label's probability, as transformers has it."""
    begin, end = loaded.tokenizer.cls_token_id, loaded.tokenizer.sep_token_id
    logits = loaded.model(input_ids=torch.tensor([[begin, *ids.tolist(), end]])).logits
    probabilities: NDArray[np.float32] = logits.softmax(-1)[0, 1:-1, 1].numpy()
    return probabilities


def test_the_window_is_what_the_positions_allow(loaded: LoadedModel) -> None:
    assert loaded.window == WINDOW
    assert Classifier(loaded, 512).size == SIZE
    with pytest.raises((IndexError, RuntimeError)):  # one more token and the positions end
        loaded.model(input_ids=torch.full((1, WINDOW + 1), 5))


def test_scores_are_the_models_own(loaded: LoadedModel) -> None:
    (ids,) = _ids(loaded, "Sam bought 12 boxes with 30 pens each.")
    (scores,) = Classifier(loaded, 512).keep([ids])
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, _softmax(loaded, ids), atol=1e-6)
    assert scores.std() > 0.01


def test_scores_do_not_depend_on_the_batch(loaded: LoadedModel) -> None:
    texts = _ids(loaded, TRAINING[:300], "a", TRAINING[30:90], "", TRAINING[200:260], TRAINING * 2, "pens each")
    scorer = Classifier(loaded, 2048)
    together = scorer.keep(texts)
    for ids, scores in zip(texts, together, strict=True):
        assert len(scores) == len(ids)
        np.testing.assert_allclose(scores, scorer.keep([ids])[0], atol=1e-6)


def test_a_long_text_is_scored_where_its_tokens_see_most(loaded: LoadedModel) -> None:
    (ids,) = _ids(loaded, TRAINING)
    (scores,) = Classifier(loaded, 512).keep([ids])
    expected = np.full(len(ids), np.nan, np.float32)
    windows = windows_of(np.array([len(ids)]), SIZE)
    assert len(windows.begin) > 4
    for begin, end, first, last in zip(windows.begin, windows.end, windows.first, windows.last, strict=True):
        expected[first:last] = _softmax(loaded, ids[begin:end])[first - begin : last - begin]
    np.testing.assert_allclose(scores, expected, atol=1e-6)


def test_memory_that_runs_out_halves_the_batch(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = _ids(loaded, *["Sam bought 12 boxes with 30 pens each."] * 8)
    scorer = Classifier(loaded, 2048)
    whole, most, passes = scorer.keep(texts), 3, []

    def narrow(**inputs: Any) -> Any:
        if len(inputs["input_ids"]) > most:
            raise torch.OutOfMemoryError("too much")
        passes.append(len(inputs["input_ids"]))
        return loaded.model(**inputs)

    monkeypatch.setattr(scorer, "model", narrow)
    for one, other in zip(scorer.keep(texts), whole, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    assert passes == [2, 2, 2, 2]


def test_every_pass_tells_the_tokens_it_scored(loaded: LoadedModel) -> None:
    texts = _ids(loaded, TRAINING, "Sam bought pens", TRAINING[:100])
    told: list[int] = []
    Classifier(loaded, 128).keep(texts, told.append)
    assert len(told) > 2
    assert sum(told) == sum(map(len, texts))


def test_half_precision_does_not_make_near_scores_equal(tmp_path: Path, pool: ModelPool) -> None:
    name = save_classifier(tmp_path)
    half, full = pool.token_classifier(name, "bfloat16"), pool.token_classifier(name)
    (ids,) = _ids(half, TRAINING)
    (rough,), (exact,) = Classifier(half, 512).keep([ids]), Classifier(full, 512).keep([ids])
    distinct = len(np.unique(exact.round(6)))
    assert half.model.dtype == torch.bfloat16
    assert len(np.unique(rough)) > 0.9 * distinct
    assert np.corrcoef(rough, exact)[0, 1] > 0.9


@given(st.lists(st.integers(0, 700), min_size=1, max_size=12), st.integers(1, 64))
def test_windows_hold_every_token_once_with_text_on_both_sides(lengths: list[int], size: int) -> None:
    windows = windows_of(np.array(lengths), size)
    seen = [np.zeros(length, dtype=int) for length in lengths]
    rows = zip(windows.text, windows.begin, windows.end, windows.first, windows.last, strict=True)
    for text, begin, end, first, last in rows:
        assert 0 <= begin <= first <= last <= end <= lengths[text]
        assert end - begin <= size
        assert begin == 0 or first - begin >= size // 10
        assert end == lengths[text] or end - last >= size // 10
        seen[text][first:last] += 1
    assert all((one == 1).all() for one in seen)


def test_a_pass_of_equal_lengths_needs_no_mask(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    masks = []
    scorer = Classifier(loaded, 2048)

    def watched(**inputs: Any) -> Any:
        masks.append(inputs["attention_mask"])
        return loaded.model(**inputs)

    monkeypatch.setattr(scorer, "model", watched)
    monkeypatch.setattr(classifier, "_ENOUGH", {"cpu": 2048})
    (ids,) = _ids(loaded, "Sam bought 12 boxes with 30 pens each.")
    scorer.keep([ids, ids])
    scorer.keep([ids, ids[:3]])
    assert masks[0] is None
    assert masks[1].flatten(1).sum(1).tolist() == [len(ids) + 2, 5]
