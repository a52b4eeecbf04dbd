"""What is minimised, against transformers' own loss and the definition of KL."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from align_pairs import DOCUMENTS, document
from tiny_models import save_tiny_llama

from pipeline.alignment import losses
from pipeline.alignment.losses import Loss, Reader
from pipeline.alignment.pairs import Pair, tokenise
from pipeline.models import LoadedModel, ModelPool
from pipeline.stages import Halt


@pytest.fixture(scope="module")
def pool() -> Iterator[ModelPool]:
    pool = ModelPool("cpu")
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def scorer(pool: ModelPool, tiny_model: Path) -> LoadedModel:
    return pool.causal_lm(str(tiny_model))


@pytest.fixture(scope="module")
def teacher(pool: ModelPool, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return pool.causal_lm(str(save_tiny_llama(tmp_path_factory.mktemp("teacher"), seed=7)))


@pytest.fixture(scope="module")
def pairs(scorer: LoadedModel) -> list[Pair]:
    return list(tokenise(DOCUMENTS[:5], scorer, 64))


def reference(loaded: LoadedModel, pair: Pair) -> Any:
    """Log-probabilities before each answer token, by a plain forward pass of this pair alone."""
    model: Any = loaded.model
    with torch.no_grad():
        logits = model(input_ids=torch.from_numpy(pair.ids)[None]).logits[0]
    return logits.log_softmax(-1)[pair.answer - 1 : -1]


def test_nats_are_transformers_loss_over_the_answer_alone(scorer: LoadedModel, pairs: list[Pair]) -> None:
    nats = torch.split(Loss(Reader(scorer)).measured(pairs)[:, 0], [pair.answer_tokens for pair in pairs])
    model: Any = scorer.model
    for pair, mine in zip(pairs, nats, strict=True):
        labels = torch.from_numpy(pair.ids).clone()
        labels[: pair.answer] = -100
        with torch.no_grad():
            loss = model(input_ids=torch.from_numpy(pair.ids)[None], labels=labels[None]).loss
        assert float(mine.mean()) == pytest.approx(float(loss), rel=1e-5)


def test_the_kl_term_is_the_divergence_from_the_teacher(
    scorer: LoadedModel, teacher: LoadedModel, pairs: list[Pair]
) -> None:
    answers = apart = 0.0
    for pair in pairs:
        ours, theirs = reference(scorer, pair), reference(teacher, pair)
        targets = torch.from_numpy(pair.ids[pair.answer :])
        answers -= float(ours.gather(-1, targets[:, None]).sum())
        apart += float((theirs.exp() * (theirs - ours)).sum())
    for weight in (0.0, 0.3, 1.0):
        total = float(Loss(Reader(scorer), Reader(teacher), weight).total(pairs))
        assert total == pytest.approx((1 - weight) * answers + weight * apart, rel=1e-5)


def test_logits_are_never_held_all_at_once_and_that_changes_nothing(
    scorer: LoadedModel, pairs: list[Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Loss(Reader(scorer)).total(pairs)
    vocabulary = len(scorer.tokenizer)
    monkeypatch.setitem(losses._LOGITS, "cpu", 3 * vocabulary)
    seen: list[int] = []
    logits = Reader.logits

    def watched(self: Reader, states: torch.Tensor) -> torch.Tensor:
        seen.append(len(states))
        return logits(self, states)

    monkeypatch.setattr(Reader, "logits", watched)
    assert float(Loss(Reader(scorer)).total(pairs)) == pytest.approx(float(whole), rel=1e-5)
    assert len(seen) > 10 and max(seen) == 3


def test_a_teacher_of_another_vocabulary_is_refused(scorer: LoadedModel, teacher: LoadedModel) -> None:
    other = copy.deepcopy(teacher.tokenizer)
    other.add_tokens(["<|another|>"])
    stranger = LoadedModel(teacher.ref, teacher.model, other, teacher.device, teacher.window)
    with pytest.raises(Halt, match=r"another vocabulary.*leave teacher and kl_weight out"):
        Loss(Reader(scorer), Reader(stranger), 0.5)


def test_a_pair_longer_than_allowed_loses_the_beginning_of_its_prompt(scorer: LoadedModel) -> None:
    (whole,), (cut,) = (list(tokenise([DOCUMENTS[3]], scorer, most)) for most in (200, 40))
    assert len(cut.ids) == 40 < len(whole.ids) and cut.ids[0] == whole.ids[0]
    assert cut.ids[1:].tolist() == whole.ids[-39:].tolist() and cut.answer_tokens == whole.answer_tokens
    (long,) = tokenise([document(1, "word " * 300)], scorer, 40)
    assert (len(long.ids), long.answer) == (40, 1)
    assert scorer.tokenizer.decode(long.ids[1:4].tolist()) == scorer.tokenizer.decode(
        scorer.tokenizer("word " * 300)["input_ids"][:3]
    )
