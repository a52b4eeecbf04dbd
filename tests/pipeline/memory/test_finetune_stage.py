"""A fine-tuning as a job's stage: what is asked about a context is answered from its slots."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from fates import Fate, Killed
from finetuning_jobs import ROWS, SETTINGS, row, stage
from pretraining_jobs import written
from pydantic import ValidationError
from safetensors.torch import load_file

from pipeline.memory.autoencoder import TAGS, Autoencoder
from pipeline.memory.beginning import begun
from pipeline.memory.finetuning import SHOWN, Finetuning
from pipeline.memory.plan import Signs
from pipeline.memory.ragged import encode_spans
from pipeline.memory.training import Trainer
from pipeline.models import ModelError, ModelPool
from pipeline.models.encoders import CURVE, MANIFEST, WEIGHTS, read_manifest
from pipeline.stages import Halt, Refusal, Run, Stopped

Whole = tuple[Path, list[Any]]


@pytest.fixture(scope="module")
def whole(tiny_model: Path, pool: ModelPool, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """An uninterrupted training: its folder and what it wrote of each row."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, written(stage(tiny_model).run(ROWS, Run(pool, folder=str(folder))))


def test_held_out_questions_are_measured_beside_yardsticks(whole: Whole) -> None:
    folder, rows = whole
    held = [one for one in rows if one["split"] == "held_out"]
    assert 0 < len(held) < len(rows) == len(ROWS)
    assert len(held) > 4 and np.mean([one["nll_after"] - one["nll_before"] for one in held]) < -0.2
    for when in ("none", "text", "before", "after"):
        assert all((one[f"nll_{when}"] is not None) == (one in held) for one in rows)
        assert sum(one[f"token_f1_{when}"] is not None for one in rows) == SETTINGS["measured"]
    assert all((one["nll_other"] is not None) == (one in held) for one in rows)
    manifest = read_manifest(folder / "encoder")
    assert manifest.answers and manifest.answers.rows == len(held) and manifest.answers.written == SETTINGS["measured"]
    tokens = [one["tokens_answer"] for one in held]
    mean = np.average([one["nll_after"] for one in held], weights=tokens)
    assert manifest.answers.nats[3] == pytest.approx(mean) and "token F1" in manifest.answers.told()
    assert (manifest.figures.tokens, manifest.figures.slots) == (16, 8)
    assert manifest.figures.told().startswith("16 tokens in 8 slots: ")


def test_a_training_has_the_room_to_itself(tiny_model: Path, pool: ModelPool, tmp_path: Path) -> None:
    before, calls = pool.causal_lm(str(tiny_model)), iter(range(1_000))
    with pytest.raises(Stopped):
        stage(tiny_model).run(ROWS, Run(pool, folder=str(tmp_path), stopping=lambda: next(calls) > 3))
    assert pool.causal_lm(str(tiny_model)) is not before


def test_what_is_read_to_measure_is_what_was_told_before(tiny_model: Path, pool: ModelPool) -> None:
    """Else the share that is done would stand still, or run over."""
    made, loaded = stage(tiny_model), pool.own_copy(str(tiny_model))
    plan = made.plan(ROWS, loaded, lambda: None)
    measurer = plan.measurer(begun(made.spec, loaded, plan, None))
    for measure, work in zip((measurer.before, measurer.after), measurer.work, strict=True):
        passed: list[int] = []
        measure(Signs(passed=passed.append))
        assert sum(passed) == work


def test_a_context_is_learned_from_or_held_out_whatever_is_asked(whole: Whole) -> None:
    sides: dict[str, set[str]] = {}
    for document, one in zip(ROWS, whole[1], strict=True):
        sides.setdefault(document.parts.contexts[0], set()).add(one["split"])
    assert len(sides) == len(ROWS) / 2 and all(len(side) == 1 for side in sides.values())


def test_its_files_are_those_of_any_encoder(whole: Whole) -> None:
    folder = whole[0] / "encoder"
    assert {path.name for path in folder.iterdir()} == {WEIGHTS, CURVE, MANIFEST}
    curve = pq.read_table(folder / CURVE).to_pylist()
    assert [one["step"] for one in curve] == list(range(SETTINGS["steps"]))
    assert np.mean([one["loss"] for one in curve[-4:]]) < np.mean([one["loss"] for one in curve[:4]]) - 0.5


def test_the_order_of_rows_changes_nothing(whole: Whole, tiny_model: Path, pool: ModelPool, tmp_path: Path) -> None:
    outcomes = stage(tiny_model).run(ROWS[::-1], Run(pool, folder=str(tmp_path)))
    assert written(outcomes)[::-1] == whole[1]
    assert (tmp_path / "encoder" / WEIGHTS).read_bytes() == (whole[0] / "encoder" / WEIGHTS).read_bytes()


@pytest.mark.parametrize("seed", range(2))
def test_killed_anywhere_and_continued_is_the_same(
    whole: Whole, tiny_model: Path, pool: ModelPool, tmp_path: Path, seed: int
) -> None:
    random, outcomes, attempts = np.random.default_rng(seed), None, 0
    while outcomes is None:
        attempts += 1
        assert attempts < 40, "no attempt gets anywhere"
        with contextlib.suppress(Stopped, Killed):
            outcomes = stage(tiny_model).run(ROWS, Run(pool, folder=str(tmp_path), stopping=Fate(random, 12, 20)))
    assert attempts > 2
    assert written(outcomes) == whole[1]
    assert (tmp_path / "encoder" / WEIGHTS).read_bytes() == (whole[0] / "encoder" / WEIGHTS).read_bytes()


def test_it_begins_from_a_pretrained_encoder_of_the_same_settings(
    tiny_model: Path, pool: ModelPool, pretrained: str
) -> None:
    fresh, later = (
        written(stage(tiny_model, steps=1, **changes).run(ROWS, Run(pool))) for changes in ({}, {"begin": pretrained})
    )
    repeat = [
        np.mean([one["repeat_nll_before"] for one in rows if one["split"] == "held_out"]) for rows in (fresh, later)
    ]
    assert repeat[1] < repeat[0] - 0.1
    with pytest.raises(ModelError, match=r"begin: .* has .*rank = 4.*: say the same in \[stages.encoder\]"):
        stage(tiny_model, begin=pretrained, encoder={"rank": 5}).identity()


def test_it_lies_between_what_it_began_with_and_what_was_learned(
    tiny_model: Path, pool: ModelPool, pretrained: str, tmp_path: Path
) -> None:
    tensors, repeat = [load_file(Path(pretrained) / WEIGHTS)], list[float]()
    for share in (1.0, 0.4):
        folder = tmp_path / str(share)
        made = stage(tiny_model, begin=pretrained, interpolation=share, autoencoding=0.0)
        rows = written(made.run(ROWS, Run(pool, folder=str(folder))))
        repeat.append(float(np.mean([one["repeat_nll_after"] for one in rows if one["split"] == "held_out"])))
        tensors.append(load_file(folder / "encoder" / WEIGHTS))
    asked = TAGS.index("FT")
    for name, began in tensors[0].items():
        learned, between = (one[name].float() for one in tensors[1:])
        expected = began.float().lerp(learned, 0.4)
        if name == "tags":
            assert (learned - began)[asked].norm() > 0.01
            expected[asked] = learned[asked]
        if name != "typical":  # is of its own slots
            assert (between - expected).norm() <= 0.01 * (learned - began).norm() + 1e-3 * began.norm(), name
    assert repeat[1] < repeat[0] - 0.1  # it was measured as it lies there, and has forgotten less
    with pytest.raises(ValidationError, match="name the first, begin"):
        stage(tiny_model, interpolation=0.4)


def test_repeating_is_not_forgotten_where_it_is_mixed_in(tiny_model: Path, pool: ModelPool) -> None:
    forgetful, other = (
        written(stage(tiny_model, autoencoding=share, multi_span=0.0).run(ROWS, Run(pool))) for share in (0.0, 0.5)
    )
    repeat = [
        np.mean([one["repeat_nll_after"] for one in rows if one["split"] == "held_out"]) for rows in (forgetful, other)
    ]
    assert repeat[1] < repeat[0] - 0.3


def test_what_is_asked_twice_is_asked_in_the_frame_of_a_template_or_without(tiny_model: Path, pool: ModelPool) -> None:
    framed, plain = (written(stage(tiny_model, steps=1, chat=chat).run(ROWS[:8], Run(pool))) for chat in (True, False))
    assert all(two["tokens_answer"] > one["tokens_answer"] for one, two in zip(framed, plain, strict=True))


def test_a_loss_that_is_no_number_stops_the_job_and_keeps_what_was_good(
    tiny_model: Path, pool: ModelPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Trainer.step

    def diverging(self: Trainer, number: int, *parts: Any) -> torch.Tensor:
        if number == 5:
            with torch.no_grad():
                self.autoencoder.tags.fill_(float("nan"))
        return step(self, number, *parts)

    monkeypatch.setattr(Trainer, "step", diverging)
    said = r"finetune: step 5: the loss is nan.*the checkpoint after 5 steps is kept. Lower learning_rate"
    with pytest.raises(Halt, match=said):
        stage(tiny_model).run(ROWS, Run(pool, folder=str(tmp_path)))
    assert sorted(path.stem for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000004", "step-00000005"]


def test_what_slots_are_like_is_seen_one_example_at_a_time(
    tiny_model: Path, pool: ModelPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Together they took more memory than any pass of the training."""
    read: list[int] = []

    def counted(coder: Autoencoder, spans: Any, counts: Any) -> list[torch.Tensor]:
        read.append(sum(map(len, spans)))
        return encode_spans(coder, spans, counts)

    one, loaded = stage(tiny_model), pool.own_copy(str(tiny_model))
    plan, coder = Finetuning(one.spec, ROWS, loaded, lambda: None), Autoencoder(loaded.model, one.spec.encoder)
    monkeypatch.setattr("pipeline.memory.questions.encode_spans", counted)
    plan.slots(coder)
    assert read == [example.tokens for example in plan.trained[:SHOWN]]


def test_memory_that_runs_out_is_said_with_the_remedy(
    tiny_model: Path, pool: ModelPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Trainer, "step", full)
    with pytest.raises(Halt, match="memory ran out; batch_tokens is 16384: halve it"):
        stage(tiny_model).run(ROWS, Run(pool))


def test_rows_that_lack_something_are_left_out_and_counted(
    tiny_model: Path, pool: ModelPool, caplog: pytest.LogCaptureFixture
) -> None:
    bad = {
        "empty": row(100, (" ",), "", "x"),
        "no_context": row(101, (), "Who?", "x"),
        "no_question": row(102, ("A context.",), " ", "x"),
        "no_reference": row(103, ("A context.",), "Who?", None),
        "too_long": row(104, ("word " * 300,), "Who?", "x"),
    }
    with caplog.at_level(logging.INFO):
        outcomes = stage(tiny_model, steps=1).run([*bad.values(), *ROWS], Run(pool))
    assert [one.code for one in outcomes if isinstance(one, Refusal)] == list(bad)
    assert "5 of 33 rows are left out" in caplog.text and "is answered" in caplog.text
    with pytest.raises(
        Halt, match=r"nothing can be learned from any of 2 rows \(no_reference 2\): the row has no answer"
    ):
        stage(tiny_model).run([bad["no_reference"], row(105, ("Two.",), "Who?", " ")], Run(pool))
    with pytest.raises(Halt, match="at least two different contexts are needed"):
        stage(tiny_model).run(ROWS[:2], Run(pool))


def test_a_prompt_that_does_not_fit_is_left_out(tiny_model: Path, pool: ModelPool) -> None:
    long = row(100, ("A context.",), "Who? " * 1000, "x")
    outcomes = stage(tiny_model, steps=1).run([long, *ROWS[:6]], Run(pool))
    assert isinstance(outcomes[0], Refusal) and outcomes[0].code == "too_long" and "2048 at most" in outcomes[0].reason


def test_a_text_that_is_too_long_as_a_text_is_read_as_slots_alone(tiny_model: Path, pool: ModelPool) -> None:
    texts = [f"{number} " * 2500 for number in range(4)]
    long = [row(at, (text,), "Which number?", str(at)) for at, text in enumerate(texts)]
    lessons = [{"tokens": 256, "ratio": 16.0, "share": 1.0}]
    changes = {"steps": 1, "lessons": lessons, "rows_per_step": 1, "measured": 1, "held_out": 0.3}
    rows = written(stage(tiny_model, **changes).run(long, Run(pool)))
    (held,) = (one for one in rows if one["split"] == "held_out")
    assert held["nll_text"] is None and held["nll_none"] and held["nll_after"]
    assert held["tokens_context"] > 2048 > held["tokens_slots"] * 8


def test_several_contexts_of_a_row_are_encoded_each_by_itself(tiny_model: Path, pool: ModelPool) -> None:
    several = [
        row(
            at,
            (f"The first says {at}.", f"The second says {at + 1}."),
            "What does the first say?",
            str(at),
            "Be brief.",
        )
        for at in range(6)
    ]
    loaded = pool.own_copy(str(tiny_model))
    plan = Finetuning(stage(tiny_model).spec, several, loaded, lambda: None)
    for one in plan.examples:
        assert [loaded.tokenizer.decode(ids) for ids in one.contexts] == [*one.document.parts.contexts]
        assert len(one.runs) == 3, "slots of each stand between"
    rows = written(stage(tiny_model, steps=2).run(several, Run(pool)))
    assert {one["split"] for one in rows} == {"train", "held_out"}


def test_half_precision_learns_too(tiny_model: Path, pool: ModelPool, tmp_path: Path) -> None:
    rows = written(stage(tiny_model, dtype="bfloat16").run(ROWS, Run(pool, folder=str(tmp_path))))
    held = [one for one in rows if one["split"] == "held_out"]
    assert np.mean([one["nll_after"] - one["nll_before"] for one in held]) < 0
