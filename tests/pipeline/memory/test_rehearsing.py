"""Texts among the rows of a fine-tuning: learned from as in pretraining, so that repeating them is not forgotten."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fates import Fate, Killed
from finetuning_jobs import REHEARSAL, ROWS, SETTINGS, row, stage, texts
from pretraining_jobs import TEXTS as PRETRAINED
from pretraining_jobs import text, written
from pydantic import ValidationError

from pipeline.memory.beginning import begun
from pipeline.memory.finetuning import Finetuning
from pipeline.memory.sheets import Sheet
from pipeline.memory.training import Trainer, train
from pipeline.memory.windows import Batch
from pipeline.models import LoadedModel, ModelError, ModelPool
from pipeline.models.encoders import WEIGHTS
from pipeline.stages import Halt, Refusal, Run, Stopped
from schemas.document import Document

TEXTS = texts(8)
MIXED = [*ROWS, *TEXTS]


def planned(model: Path, documents: list[Document], **changes: Any) -> tuple[Finetuning, LoadedModel]:
    made, loaded = stage(model, **changes), ModelPool("cpu").own_copy(str(model))
    plan = made.plan(documents, loaded, lambda: None)
    assert isinstance(plan, Finetuning)
    return plan, loaded


def test_what_is_rehearsed_is_not_forgotten(tiny_model: Path, pool: ModelPool, pretrained: str) -> None:
    """To repeat contexts that neither training has seen, of the same words."""
    changes = {"begin": pretrained, "autoencoding": 0.0, "multi_span": 0.0, "learning_rate": 2e-2}
    rehearsal = {"weight": 0.75, "tokens_per_step": 256, "autoencoding": 1.0}

    def repeating(documents: list[Document], when: str, **more: Any) -> float:
        rows = written(stage(tiny_model, **changes, **more).run(documents, Run(pool)))
        return float(np.mean([one[f"repeat_nll_{when}"] for one in rows if one["repeat_nll_after"] is not None]))

    before, forgotten = repeating(ROWS, "before"), repeating(ROWS, "after")
    rehearsed = repeating(MIXED, "after", rehearsal=rehearsal)
    assert forgotten > before + 0.5 and rehearsed < forgotten - 0.5


@torch.no_grad()
def test_a_step_has_answers_and_texts_by_their_weights(tiny_model: Path) -> None:
    plan, loaded = planned(tiny_model, MIXED, rehearsal=REHEARSAL)
    plain, _ = planned(tiny_model, ROWS)
    coder = begun(stage(tiny_model).spec, loaded, plan, None)
    for step in (0, 23):
        *sheets, batch = plan.parts(step)
        assert isinstance(batch, Batch) and batch.weight == 0.25 and not batch.distilled
        assert batch.contexts.numel() == 96 and batch.repeated == round(0.75 * len(batch.contexts))
        found = sum(float(one.loss(coder)) for one in sheets)
        assert found == pytest.approx(0.75 * sum(float(one.loss(coder)) for one in plain.parts(step)), rel=1e-4)


def test_lessons_of_its_own(tiny_model: Path) -> None:
    lessons = [{"tokens": 8, "ratio": 2.0, "share": 0.5}, {"tokens": 24, "ratio": 4.0, "share": 0.5}]
    plan, _ = planned(tiny_model, MIXED, rehearsal={**REHEARSAL, "lessons": lessons})
    shapes = {(one.contexts.shape[1], one.slots) for step in range(24) for one in plan.parts(step)[-1:]}  # type: ignore[union-attr]
    assert shapes == {(8, 4), (24, 6)}


def test_several_processes_share_it(tiny_model: Path) -> None:
    plan, loaded = planned(tiny_model, MIXED, rehearsal=REHEARSAL)
    coder = begun(stage(tiny_model).spec, loaded, plan, None)
    whole = plan.parts(3)[-1].loss(coder)
    parts = [plan.parts(3, rank, 3)[-1] for rank in range(3)]
    assert all(isinstance(one, Batch) for one in parts)
    torch.testing.assert_close(sum(one.loss(coder) for one in parts), whole)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.filterwarnings("default")  # compilers have warnings of their own
def test_on_a_gpu_either_is_a_graph(tiny_model: Path, replayed: list[Any]) -> None:
    """And teaches, but for rounding, what those that are launched do."""
    changes = {"rehearsal": {**REHEARSAL, "distilled": 0.5}, "dtype": "bfloat16", "batch_tokens": 65536}
    made, loaded = stage(tiny_model, **changes), ModelPool("cuda:0").own_copy(str(tiny_model), "bfloat16")
    plan = made.plan(MIXED, loaded, lambda: None)
    trainer = Trainer(begun(made.spec, loaded, plan, None), made.spec, half=True)
    train(trainer, plan.parts, 0, lambda step, loss: None)
    kinds = [type(one) for one in replayed]
    assert min(kinds.count(Sheet), kinds.count(Batch)) > made.spec.steps // 2


def test_killed_and_continued_is_the_same(tiny_model: Path, pool: ModelPool, tmp_path: Path) -> None:
    made = stage(tiny_model, rehearsal=REHEARSAL)
    whole = written(made.run(MIXED, Run(pool, folder=str(tmp_path / "whole"))))
    random, outcomes, attempts = np.random.default_rng(0), None, 0
    while outcomes is None:
        attempts += 1
        assert attempts < 40, "no attempt gets anywhere"
        with contextlib.suppress(Stopped, Killed):
            outcomes = made.run(MIXED, Run(pool, folder=str(tmp_path / "cut"), stopping=Fate(random, 12, 20)))
    assert attempts > 1 and written(outcomes) == whole
    one, two = (tmp_path / name / "encoder" / WEIGHTS for name in ("whole", "cut"))
    assert one.read_bytes() == two.read_bytes()


def test_each_text_says_whether_it_was_learned_from(tiny_model: Path, pool: ModelPool) -> None:
    """By its hash, as in a pretraining; one that is too short is left out."""
    short = text(300, "Too short.")
    outcomes = stage(tiny_model, steps=1, rehearsal=REHEARSAL).run([*MIXED, *PRETRAINED, short], Run(pool))
    assert [one.code for one in outcomes if isinstance(one, Refusal)] == ["too_short"]
    rows = written(outcomes)[len(ROWS) :]
    share = SETTINGS["held_out"]
    held = [int(one.content_hash[:8], 16) < share * 2**32 for one in (*TEXTS, *PRETRAINED)]
    assert [one["split"] == "held_out" for one in rows] == held and 0 < sum(held) < len(held)
    for one in rows:
        assert one["tokens_context"] > one["tokens_slots"] > 0 and one["tokens_answer"] == 0
        assert one["nll_after"] is None and one["repeat_nll_after"] is None


def test_texts_that_are_missing_or_not_asked_for(tiny_model: Path, pool: ModelPool) -> None:
    with pytest.raises(Halt, match=r"lessons take 32 tokens of a text in a row, and the longest of 0 texts has 0"):
        stage(tiny_model, rehearsal=REHEARSAL).run(ROWS, Run(pool))
    with pytest.raises(Halt, match="nothing is asked: all rows are texts alone"):
        stage(tiny_model, rehearsal=REHEARSAL).run(TEXTS, Run(pool))
    outcomes = stage(tiny_model, steps=1).run([*ROWS, TEXTS[0]], Run(pool))
    refused = outcomes[-1]
    assert isinstance(refused, Refusal) and refused.code == "no_question" and "rehearsal" in refused.reason
    answered = row(400, (TEXTS[0].prompt,), "", "x")  # is no text: something is to be answered
    outcomes = stage(tiny_model, steps=1, rehearsal=REHEARSAL).run([*MIXED, answered], Run(pool))
    assert isinstance(outcomes[-1], Refusal) and outcomes[-1].code == "no_question"


def test_settings_that_cannot_be(tiny_model: Path) -> None:
    with pytest.raises(ValidationError, match="autoencoding = 1 leaves none"):
        stage(tiny_model, rehearsal={"autoencoding": 1.0, "distilled": 0.5})
    with pytest.raises(ValidationError, match=r"rehearsal\.lessons: their shares must add up to 1, not 0\.5"):
        stage(tiny_model, rehearsal={"lessons": [{"tokens": 8, "ratio": 2.0, "share": 0.5}]})
    long = [{"tokens": 1800, "ratio": 4.0, "share": 1.0}]
    with pytest.raises(ModelError, match=r"finetune: rehearsal: .* 1800 tokens .* reads 2048 at most"):
        stage(tiny_model, rehearsal={"lessons": long}).check()
