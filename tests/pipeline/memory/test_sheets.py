"""Passes of a fine-tuning as numbers: they say what is said question by question, in as much room as they are given."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import finetuning_jobs
import pytest
import torch
from finetuning_jobs import ROWS, row

from pipeline.memory import replaying, sheets
from pipeline.memory.autoencoder import Autoencoder
from pipeline.memory.finetuning import Finetuning
from pipeline.memory.questions import flat, prompts_of, questions, repeated, slots_of_all, weights_of
from pipeline.memory.saying import nats
from pipeline.memory.sheets import Sheet, Sizes, packed, rounded, sheet, sizes_of
from pipeline.memory.training import Trainer, train
from pipeline.models import LoadedModel, ModelPool
from pipeline.passes import recorded
from schemas.memory import EncoderSpec, FinetuneSpec, Layout

TWO = [
    row(90 + number, (f"{number} clips in April", "half a dozen in May"), "How many are there?", "There are a few.")
    for number in range(6)
]


@pytest.fixture(scope="module")
def base(tiny_model: Path) -> LoadedModel:
    return ModelPool("cpu").own_copy(str(tiny_model))


def planned(base: LoadedModel, tiny_model: Path, **changes: Any) -> tuple[FinetuneSpec, Finetuning]:
    spec = finetuning_jobs.stage(tiny_model, **changes).spec
    assert isinstance(spec, FinetuneSpec)
    return spec, Finetuning(spec, [*ROWS, *TWO], base, lambda: None)


def coder_of(base: LoadedModel, spec: EncoderSpec) -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(copy.deepcopy(base.model), spec)


def learned(coder: Autoencoder, parts: list[Sheet]) -> tuple[float, dict[str, torch.Tensor]]:
    coder.zero_grad()
    loss = torch.stack([part.loss(coder) for part in parts]).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    return float(loss.detach()), {name: one.grad for name, one in coder.trained().items() if one.grad is not None}


def alike(one: tuple[float, dict[str, torch.Tensor]], other: tuple[float, dict[str, torch.Tensor]]) -> None:
    assert one[0] == pytest.approx(other[0], rel=1e-5)
    assert one[1].keys() == other[1].keys()
    for name, gradient in one[1].items():
        torch.testing.assert_close(gradient, other[1][name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("layout", ["interleaved", "appended", "pooled"])
def test_what_is_said_is_said_as_one_by_one(
    base: LoadedModel, tiny_model: Path, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With contexts of several spans, and several contexts; also in a sheet with room to spare."""
    encoder = EncoderSpec(layout=layout, slots=16, rank=4, alpha=8.0)
    spec, plan = planned(base, tiny_model, encoder=encoder.model_dump(), rows_per_step=24, multi_span=0.5)
    rows = questions(plan.trained, spec, 0)
    assert any(len(one.spans) > 1 for one in rows) and any(len(each) > 1 for one in rows for each in one.spans)
    assert 0 < sum(one.repeated for one in rows) < len(rows)
    coder, weights = coder_of(base, encoder), weights_of(rows, spec)
    slots = slots_of_all(coder, rows)
    answers = nats(coder, prompts_of(coder, rows, slots), [one.example.answer for one in rows])
    again = [number for number, one in enumerate(rows) if one.repeated]
    spans = flat([flat(rows[number].spans) for number in again])
    told = repeated(coder, spans, flat([flat(slots[number]) for number in again]))
    expected = float((torch.cat(answers).mean() * 0.75 + torch.cat(told).mean() * 0.25).detach())
    assert spec.autoencoding == 0.25
    sizes = sizes_of(rows)
    plain = sheet(rows, weights, sizes, encoder, base.device)
    assert sizes == sizes_as_laid(plain), "no place is to spare"
    found = learned(coder, [plain])
    assert found[0] == pytest.approx(expected, rel=1e-5)
    roomy = sheet(rows, weights, rounded(sizes, encoder, base.window), encoder, base.device)
    assert all(one.numel() > other.numel() for one, other in zip(roomy.tensors[3:], plain.tensors[3:], strict=True))
    alike(learned(coder, [roomy]), found)


def sizes_as_laid(one: Sheet) -> Sizes:
    (spans, longest), most, (rows, width) = one.laid.ids.shape, one.laid.places.shape[1], one.words.shape
    return Sizes(spans, longest, most, rows, width, len(one.slots), len(one.said))


def test_room_stays_within_the_model_and_its_encoder() -> None:
    """A model with learned positions has none beyond its window."""
    sizes, interleaved = Sizes(3, 860, 112, 5, 990, 700, 3000), EncoderSpec(slots=512)
    assert rounded(sizes, interleaved, 4096) == (8, 896, 128, 8, 1024, 1024, 3072)
    assert rounded(sizes, interleaved, 1009) == (8, 880, 128, 8, 1009, 1024, 3072)
    assert rounded(sizes, interleaved, 973) == (8, 860, 128, 8, 990, 1024, 3072), "what is there must be read"
    assert rounded(sizes, EncoderSpec(layout="appended", slots=120), 4096).most == 120


def test_a_sheet_takes_no_more_places_than_it_may(base: LoadedModel, tiny_model: Path) -> None:
    spec, plan = planned(base, tiny_model, rows_per_step=24)
    rows = questions(plan.trained, spec, 0)
    for most in (200, 500, 4000):
        passes = packed(rows, most)
        assert all(sizes_of(some).places <= most or len(some) == 1 for some in passes)
        assert sorted(map(id, flat(passes))) == sorted(map(id, rows))
    assert len(packed(rows, 10**9)) == 1 and len(packed(rows, 1)) == len(rows) and packed([], 9) == []


def test_the_gradient_of_several_passes_is_that_of_one(base: LoadedModel, tiny_model: Path) -> None:
    found = []
    for batch_tokens in (100_000, 300):
        spec, plan = planned(base, tiny_model, batch_tokens=batch_tokens)
        parts = list(plan.sheets(0))
        assert (len(parts) > 3) == (batch_tokens == 300) and (len(parts) == 1) == (batch_tokens == 100_000)
        found.append(learned(coder_of(base, spec.encoder), parts))
    alike(*found)


def test_the_shares_of_several_processes_are_the_whole(base: LoadedModel, tiny_model: Path) -> None:
    spec, plan = planned(base, tiny_model)
    coder = coder_of(base, spec.encoder)
    shares = [part for rank in range(3) for part in plan.sheets(0, rank, 3)]
    alike(learned(coder, shares), learned(coder, list(plan.sheets(0))))


def test_few_shapes_come_up_however_a_training_goes_on(
    base: LoadedModel, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each lesson has its own, and they are the same for who goes on from a checkpoint, and for each process."""
    settings: dict[str, Any] = {"batch_tokens": 100_000, "multi_span": 0.3, "steps": 40}
    exact = {part.shape for step in range(40) for part in planned(base, tiny_model, **settings)[1].sheets(step)}
    monkeypatch.setitem(replaying.RECORDERS, "cpu", lambda device: None)
    monkeypatch.setattr(sheets, "_STEPS", (8, 16, 16, 8, 64, 16, 16))
    (_, plan), (_, again) = (planned(base, tiny_model, **settings) for _ in range(2))
    shapes = [plan.sheets(step)[0].shape for step in range(40)]
    assert shapes[30] == again.sheets(30)[0].shape and len(exact) > 30 and len(set(shapes)) <= 8
    assert not {*shapes[:20]} & {*shapes[20:]}, "spans of 12, then of 16 tokens"
    alone = {len(again.sheets(step, 1, 2)[0].words) for step in range(20)}
    assert max(alone) < len(plan.sheets(0)[0].words)
    _, small = planned(base, tiny_model, batch_tokens=300)
    assert len({one.words.shape for one in small.sheets(0)}) > 3, "of which none comes up again"


def test_a_copy_is_of_its_own(base: LoadedModel, tiny_model: Path) -> None:
    (part,) = planned(base, tiny_model, batch_tokens=100_000)[1].sheets(0)
    for one, other in zip(part.tensors, part.copy().tensors, strict=True):
        assert torch.equal(one, other) and (one.data_ptr() != other.data_ptr() or not one.numel())


def test_steps_that_are_recorded_learn_the_same(
    base: LoadedModel, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replayed, a recording reads whatever was put into its tensors."""
    spec, plan = planned(base, tiny_model, batch_tokens=100_000, steps=16)

    def trained() -> dict[str, torch.Tensor]:
        trainer = Trainer(coder_of(base, spec.encoder), spec, half=False)
        train(trainer, plan.parts, 0, lambda step, loss: None)
        return trainer.tensors()

    expected, times = trained(), [0]

    def recorder(run: recorded.Run) -> recorded.Recorded:
        kept: Any = [None if one is None else one.clone() for one in run()]

        def again() -> None:
            times[0] += 1
            for mine, one in zip(kept, run(), strict=True):
                if mine is not None:
                    mine.copy_(one)

        return again, kept

    monkeypatch.setitem(replaying.RECORDERS, "cpu", lambda device: recorder)
    found = trained()
    assert times[0] > 6
    begun = Trainer(coder_of(base, spec.encoder), spec, half=False).tensors()
    for name, one in begun.items():
        assert (found[name] - expected[name]).norm() <= 0.02 * (expected[name] - one).norm(), name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.filterwarnings("default")  # compilers have warnings of their own
def test_on_a_gpu_steps_are_graphs(base: LoadedModel, tiny_model: Path, replayed: list[Any]) -> None:
    """And teach, but for rounding, what those that are launched do."""
    spec, _ = planned(base, tiny_model)
    loaded = ModelPool("cuda:0").own_copy(str(tiny_model), "bfloat16")
    plan = Finetuning(spec, [*ROWS, *TWO], loaded, lambda: None)
    train(Trainer(coder_of(loaded, spec.encoder), spec, half=True), plan.parts, 0, lambda step, loss: None)
    assert len(replayed) > spec.steps // 2
