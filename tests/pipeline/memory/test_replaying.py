"""Steps that are recorded learn what those that are not do; what cannot be recorded is learned as ever."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers.masking_utils

from pipeline.memory import replaying
from pipeline.memory.autoencoder import Autoencoder
from pipeline.memory.corpus import Corpus
from pipeline.memory.training import Trainer, train
from pipeline.memory.windows import batch_of
from pipeline.models import LoadedModel
from pipeline.passes import recorded
from schemas.memory import EncoderSpec, Lesson, PretrainSpec

CPU = torch.device("cpu")
STEPS = 14
LESSONS = (Lesson(tokens=16, ratio=2.0, share=0.5), Lesson(tokens=24, ratio=4.0, share=0.5))
SPEC = PretrainSpec(
    encoder=EncoderSpec(rank=4, alpha=8.0), steps=STEPS, tokens_per_step=192, warmup=4, learning_rate=3e-3,
    lessons=LESSONS, mixed=True, distilled=0.5,
)  # fmt: skip


class Recordings:
    """As CUDA graphs are: what a recording wrote lies where it lay, and it is done again as it was done."""

    def __init__(self) -> None:
        self.made = self.replayed = 0
        self.off, self.deaf = 0.0, False

    def __call__(self, run: recorded.Run) -> recorded.Recorded:
        self.made += 1
        kept: Any = [None if one is None else one.clone() for one in run()]

        def again() -> None:
            self.replayed += 1
            if self.deaf:  # all numbers are those of when it was recorded
                return
            for mine, one in zip(kept, run(), strict=True):
                if mine is not None:
                    mine.copy_(one + self.off)

        return again, kept


@pytest.fixture
def recordings(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recordings]:
    made = Recordings()
    monkeypatch.setitem(replaying.RECORDERS, "cpu", lambda device: made)
    yield made


def trained(
    base: LoadedModel,
    corpus: Corpus,
    device: torch.device = CPU,
    *,
    half: bool = False,
    compiled: bool = False,
    parts: int = 1,
) -> dict[str, Any]:
    torch.manual_seed(0)
    coder = Autoencoder(copy.deepcopy(base.model).to(device, torch.bfloat16 if half else torch.float32), SPEC.encoder)
    if compiled:
        coder.hasten()
    trainer, losses = Trainer(coder, SPEC, half), []

    def told(step: int, loss: torch.Tensor) -> None:
        losses.append(float(loss))

    train(trainer, lambda step: [batch_of(corpus, SPEC, step + more, device) for more in range(parts)], 0, told)
    return {**trainer.tensors(), "losses": torch.tensor(losses)}


def test_what_is_learned_is_the_same(base: LoadedModel, corpus: Corpus, recordings: Recordings) -> None:
    found = trained(base, corpus)
    assert recordings.made == 2  # a shape a lesson
    assert recordings.replayed == STEPS - 2 * replaying._WORTH
    replaying.RECORDERS.pop("cpu")
    expected = trained(base, corpus)
    assert all(torch.equal(one, expected[name]) for name, one in found.items())


def test_parts_of_a_step_are_recorded_each_by_itself(base: LoadedModel, corpus: Corpus, recordings: Recordings) -> None:
    """Of three parts two are of one shape: its recording writes gradients where it wrote those of the part before."""
    found = trained(base, corpus, parts=3)
    assert (recordings.made, recordings.replayed) == (2, 3 * STEPS - 2 * replaying._WORTH)
    replaying.RECORDERS.pop("cpu")
    expected = trained(base, corpus, parts=3)
    assert all(torch.equal(one, expected[name]) for name, one in found.items())


def test_shapes_without_end_are_not_kept(
    base: LoadedModel, corpus: Corpus, recordings: Recordings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replaying, "_WATCHED", 0)
    trained(base, corpus)
    assert not recordings.made


@pytest.mark.parametrize("how", ["lies", "fails", "heeds nothing"])
def test_a_recording_that_is_none_is_not_used(
    base: LoadedModel, corpus: Corpus, recordings: Recordings, how: str, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    recordings.off = 1.0 if how == "lies" else 0.0
    recordings.deaf = how == "heeds nothing"
    if how == "fails":

        def broken(run: recorded.Run) -> recorded.Recorded:
            raise RuntimeError("operation not permitted when stream is capturing")

        monkeypatch.setitem(replaying.RECORDERS, "cpu", lambda device: broken)
    with caplog.at_level(logging.WARNING):
        found = trained(base, corpus)
    assert len(caplog.messages) == 1 and "kernel by kernel" in caplog.text
    replaying.RECORDERS.pop("cpu")
    expected = trained(base, corpus)
    assert all(torch.equal(one, expected[name]) for name, one in found.items())


def test_recordings_let_go_of_their_memory_where_it_runs_out(
    base: LoadedModel, corpus: Corpus, recordings: Recordings, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """Those of other shapes, too: what is learned next needs some."""
    known: list[int] = []

    def second(run: recorded.Run) -> recorded.Recorded:
        if recordings.made:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return recordings(run)

    given_back = replaying.Replays.give_back

    def counted(self: replaying.Replays) -> None:
        known.append(len(self._known))
        given_back(self)

    monkeypatch.setitem(replaying.RECORDERS, "cpu", lambda device: second)
    monkeypatch.setattr(replaying.Replays, "give_back", counted)
    found = trained(base, corpus)
    assert known == [1, 0] and "memory ran out" in caplog.text
    replaying.RECORDERS.pop("cpu")
    expected = trained(base, corpus)
    assert all(torch.equal(one, expected[name]) for name, one in found.items())


def test_nothing_that_is_learned_from_asks_the_device_for_a_mask(
    base: LoadedModel, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(transformers.masking_utils, "find_packed_sequence_indices", asked.append)
    trained(base, corpus)
    assert not asked


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.filterwarnings("default")  # compilers have warnings of their own
@pytest.mark.parametrize("compiled", [False, True])
def test_on_a_gpu_steps_are_graphs(
    base: LoadedModel, corpus: Corpus, monkeypatch: pytest.MonkeyPatch, compiled: bool
) -> None:
    """And what they learn is, but for rounding, what those that are launched do; their memory is given back."""
    device, known = torch.device("cuda:0"), []
    call = replaying._Replay.__call__

    def counted(self: Any, part: Any) -> torch.Tensor:
        known.append(part.shape)
        return call(self, part)

    monkeypatch.setattr(replaying._Replay, "__call__", counted)
    found = trained(base, corpus, device, half=True, compiled=compiled)
    assert len(known) == STEPS - 2 * replaying._WORTH
    monkeypatch.setattr(replaying, "RECORDERS", {})
    expected = trained(base, corpus, device, half=True)
    torch.testing.assert_close(found["losses"], expected["losses"], rtol=0.02, atol=0.02)
