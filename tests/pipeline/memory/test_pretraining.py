"""Pretraining of an encoder: what a step learns from, and that it can be gone on with anywhere."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from pipeline.memory.autoencoder import TAGS, Autoencoder
from pipeline.memory.corpus import Corpus
from pipeline.memory.lessons import lesson, rate
from pipeline.memory.training import Diverged, Trainer, train
from pipeline.memory.windows import batch_of, repeated_of
from pipeline.models import LoadedModel
from schemas.memory import EncoderSpec, Lesson, PretrainSpec

CPU = torch.device("cpu")
LESSONS = (Lesson(tokens=16, ratio=2.0, share=0.5), Lesson(tokens=24, ratio=4.0, share=0.5))


def spec_of(**settings: Any) -> PretrainSpec:
    given: dict[str, Any] = {
        "steps": 20,
        "tokens_per_step": 192,
        "warmup": 4,
        "learning_rate": 3e-3,
        "lessons": LESSONS,
    }
    return PretrainSpec(encoder=EncoderSpec(rank=4, alpha=8.0), **{**given, **settings})


def trainer(base: LoadedModel, spec: PretrainSpec) -> Trainer:
    torch.manual_seed(0)
    return Trainer(Autoencoder(copy.deepcopy(base.model), spec.encoder), spec, half=False)


def test_windows_lie_within_a_text_and_every_place_comes() -> None:
    texts = [list(range(first, first + size)) for first, size in ((0, 5), (100, 3), (200, 9))]
    found = Corpus.of(texts).windows(np.random.default_rng(0), 500, 4)
    assert {tuple(row) for row in found.tolist()} == {
        tuple(range(first, first + 4)) for first in (0, 1, 200, 201, 202, 203, 204, 205)
    }
    with pytest.raises(ValueError, match="no text has 10 tokens; the longest has 9"):
        Corpus.of(texts).windows(np.random.default_rng(0), 1, 10)


def test_so_many_windows_begin_a_text_as_are_to() -> None:
    """Each text that is long enough once, before one comes again."""
    texts = [list(range(first, first + size)) for first, size in ((0, 40), (100, 3), (200, 4), (300, 4))]
    random = np.random.default_rng(0)
    found = Corpus.of(texts).windows(random, 40, 4, starts=0.25)
    assert Counter(found[:9, 0].tolist()) == {0: 3, 200: 3, 300: 3} and found[9, 0] in (0, 200, 300)
    assert len(set(found[10:, 0].tolist())) > 10
    alone = [Corpus.of(texts).windows(random, 1, 4, starts=0.25)[0, 0] in (0, 200, 300) for _ in range(400)]
    assert 100 < sum(alone) < 160, "a quarter, and a few of those from anywhere"


def test_a_quarter_of_a_step_begins_a_text(corpus: Corpus) -> None:
    """Of those that are repeated, and of those that are gone on with."""
    batch = batch_of(corpus, spec_of(tokens_per_step=320, autoencoding=0.6), 1, CPU)
    firsts = {tuple(corpus.ids[at : at + 16].tolist()) for at in corpus.begins}
    begin = [tuple(row) in firsts for row in batch.contexts.tolist()]
    assert batch.repeated == 12 and all(begin[:3]) and all(begin[12:14]) and 5 <= sum(begin) < 8


def test_rows_are_repeated_or_gone_on_with(corpus: Corpus) -> None:
    spec = spec_of(autoencoding=0.25)
    batch = batch_of(corpus, spec, 3, CPU)
    assert batch.contexts.shape == batch.targets.shape == (12, 16) and batch.slots == 8
    repeated = (batch.contexts == batch.targets).all(1)
    assert repeated.tolist() == [True] * 3 + [False] * 9 and batch.repeated == 3
    assert (batch.tags == torch.where(repeated, TAGS.index("AE"), TAGS.index("LM"))).all()
    text = corpus.ids.tolist()
    for context, after in zip(batch.contexts[~repeated].tolist(), batch.targets[~repeated].tolist(), strict=True):
        at = next(at for at in range(len(text)) if text[at : at + 32] == context + after)
        assert at >= 0
    again = batch_of(corpus, spec, 3, CPU)
    assert torch.equal(again.contexts, batch.contexts) and torch.equal(again.targets, batch.targets)


def test_texts_too_short_to_be_gone_on_with_are_repeated() -> None:
    texts = [list(range(first, first + size)) for first, size in ((0, 16), (100, 20), (200, 40))]
    lessons = (Lesson(tokens=16, ratio=2.0, share=1.0),)
    batch = batch_of(Corpus.of(texts), spec_of(autoencoding=0.75, lessons=lessons, tokens_per_step=1600), 0, CPU)
    hundreds, repeated = batch.contexts[:, 0] // 100, (batch.contexts == batch.targets).all(1)
    assert repeated.sum() == 75 and set(hundreds[repeated].tolist()) == {0, 1, 2} and (hundreds[~repeated] == 2).all()


def test_on_a_gpu_it_is_said_once_the_next_step_is_on_its_way(base: LoadedModel, corpus: Corpus) -> None:
    """And a checkpoint of it is none."""
    spec = spec_of()
    one = trainer(base, spec)
    one._late = True
    one.step(0, batch_of(corpus, spec, 0, CPU))
    kept = one.tensors()
    with torch.no_grad():
        one.autoencoder.tags.fill_(float("nan"))
    one.step(1, batch_of(corpus, spec, 1, CPU))
    with pytest.raises(Diverged, match="step 1: the loss is nan"):
        one.step(2, batch_of(corpus, spec, 2, CPU))
    with pytest.raises(Diverged, match="step 2: the loss is nan"):
        one.tensors()
    after = one.tensors()
    assert all(torch.equal(value, after[name]) for name, value in kept.items() if name != "weight.tags")


def test_few_rows_are_repeated_as_often_as_they_are_to_be() -> None:
    """The nearest number would be none of one row, or all of two, in every step."""
    random = np.random.default_rng(0)
    for rows, share in ((1, 0.5), (2, 0.8), (4, 0.1), (3, 0.5), (5, 0.5)):
        assert np.mean([repeated_of(rows, share, random) for _ in range(4000)]) == pytest.approx(rows * share, abs=0.05)
    assert {repeated_of(5, 0.6, random) for _ in range(50)} == {3}
    assert [repeated_of(7, share, random) for share in (0.0, 1.0)] == [0, 7]
    assert {repeated_of(64, 0.79, random) for _ in range(50)} == {51}


@pytest.mark.parametrize(("autoencoding", "distilled"), [(0.0, 0.0), (0.0, 0.5), (0.5, 0.0), (0.5, 0.5), (1.0, 0.0)])
def test_shares_of_a_batch_are_all_of_it(
    base: LoadedModel, corpus: Corpus, autoencoding: float, distilled: float
) -> None:
    spec = spec_of(tokens_per_step=80, autoencoding=autoencoding, distilled=distilled)
    coder, whole = trainer(base, spec).autoencoder, batch_of(corpus, spec, 0, CPU)
    shares = [whole.share(rank, 3) for rank in range(3)]
    assert [len(one.contexts) for one in shares] == [2, 2, 1]
    assert sum(one.repeated for one in shares) == whole.repeated
    assert abs(whole.repeated - 5 * autoencoding) < 1
    torch.testing.assert_close(sum(one.loss(coder) for one in shares), whole.loss(coder))
    assert len(whole.share(5, 6).contexts) == 0


def test_how_to_go_on_is_learned_from_what_the_model_says_behind_the_text(base: LoadedModel, corpus: Corpus) -> None:
    spec = spec_of(autoencoding=0.25)
    coder = trainer(base, spec).autoencoder
    batch = batch_of(corpus, spec, 3, CPU)
    with torch.no_grad():
        known = {share: float(replace(batch, distilled=share).loss(coder)) for share in (0.0, 0.5, 1.0)}
        size, on = batch.contexts.shape[1], batch.repeated
        text = torch.cat([batch.contexts, batch.targets], 1)[on:]
        told = base.model(text).logits[:, size - 1 : -1].softmax(-1)
        states = coder.states(coder.encode(batch.contexts, batch.slots), batch.tags, batch.targets)
        says = (states @ base.model.get_output_embeddings().weight.T).log_softmax(-1)
    going_on = -(told * says[on:]).sum(-1)
    repeating = -says[:on].gather(-1, batch.targets[:on, :, None])[..., 0]
    assert known[0.5] == pytest.approx((known[0.0] + known[1.0]) / 2)
    assert known[1.0] == pytest.approx(float(torch.cat([repeating, going_on]).mean()), rel=1e-5)


def test_lessons_and_rates_follow_the_plan() -> None:
    spec = spec_of(decay=0.5)
    assert [lesson(spec, step).tokens for step in range(20)] == [16] * 10 + [24] * 10
    assert [rate(spec, step) for step in (0, 3, 9, 10, 15, 19)] == [0.25, 1.0, 1.0, 1.0, 0.5, 0.1]
    with pytest.raises(ValidationError, match="lessons: name at least one"):
        PretrainSpec(lessons=())
    with pytest.raises(ValidationError, match=r"their shares must add up to 1, not 0\.5"):
        PretrainSpec(lessons=(Lesson(tokens=8, ratio=2.0, share=0.5),))


@pytest.mark.parametrize("rank", [4, 0])
def test_it_learns_and_goes_on_from_any_step_as_if_unbroken(base: LoadedModel, corpus: Corpus, rank: int) -> None:
    spec = spec_of(steps=24, tokens_per_step=512)
    spec = spec.model_copy(update={"encoder": EncoderSpec(rank=rank, alpha=8.0)})
    whole, losses = trainer(base, spec), []
    kept: dict[str, torch.Tensor] = {}

    def told(step: int, loss: torch.Tensor) -> None:
        losses.append(float(loss))
        if step == 9:
            kept.update(whole.tensors())

    train(whole, lambda step: [batch_of(corpus, spec, step, CPU)], 0, told)
    assert np.mean(losses[-4:]) < np.mean(losses[:4]) - 0.1
    other = trainer(base, spec)
    other.restore(kept)
    train(other, lambda step: [batch_of(corpus, spec, step, CPU)], 10, lambda step, loss: None)
    for (name, one), two in zip(whole.tensors().items(), other.tensors().values(), strict=True):
        assert torch.equal(one, two), name


def test_mixed_lessons_are_drawn_by_their_shares_and_the_same_again() -> None:
    lessons = (Lesson(tokens=16, ratio=2.0, share=0.75), Lesson(tokens=24, ratio=4.0, share=0.25))
    spec = spec_of(steps=400, lessons=lessons, mixed=True)
    drawn = [lesson(spec, step) for step in range(400)]
    assert drawn == [lesson(spec, step) for step in range(400)]
    assert 60 < drawn.count(lessons[1]) < 140 and lessons[0] in drawn[-10:] and lessons[1] in drawn[:20]
    assert drawn != [lesson(spec.model_copy(update={"seed": 1}), step) for step in range(400)]


def test_a_loss_that_is_no_number_stops_before_anything_is_learned_of_it(base: LoadedModel, corpus: Corpus) -> None:
    spec = spec_of()
    one = trainer(base, spec)
    before = {name: value for name, value in one.tensors().items() if name.startswith("weight.")}
    with torch.no_grad():
        one.autoencoder.tags.fill_(float("nan"))
    with pytest.raises(Diverged, match="step 0: the loss is nan"):
        one.step(0, batch_of(corpus, spec, 0, CPU))
    after = one.tensors()
    assert all(torch.equal(value, after[name]) for name, value in before.items() if name != "weight.tags")
