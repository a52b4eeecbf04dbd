"""What an estimate says of measuring answers, beside what is read and written for it."""

from __future__ import annotations

from pathlib import Path

import pytest
from finetuning_jobs import rows, stage

from pipeline.accounting.training_estimate import LEARNING_PASSES, answering_work, training_work
from pipeline.memory.beginning import begun
from pipeline.memory.finetuning import Finetuning
from pipeline.models import ModelPool


@pytest.mark.parametrize("measured", [3, 100])
@pytest.mark.parametrize("contexts", [14, 60])
def test_measuring_takes_about_what_is_estimated(
    tiny_model: Path, pool: ModelPool, contexts: int, measured: int
) -> None:
    documents, made, loaded = rows(contexts), stage(tiny_model, measured=measured), pool.own_copy(str(tiny_model))
    plan = Finetuning(made.spec, documents, loaded, lambda: None)
    work = sum(plan.measurer(begun(made.spec, loaded, plan, None)).work)
    held = [len(loaded.tokenizer(one.document.parts.render())["input_ids"]) for one in plan.held]
    spec = made.spec.model_copy(update={"held_out": 1.0 - 1e-9})
    found = answering_work(spec, len(held), sum(held) // len(held))
    assert 0.5 < sum(found) / work < 1  # the meter counts each reading of a question as wide as its widest


def test_texts_that_are_rehearsed_are_counted(tiny_model: Path) -> None:
    plain, both = (stage(tiny_model, **changes).spec for changes in ({}, {"rehearsal": {"tokens_per_step": 500}}))
    found = (training_work(spec, 100, 5000) for spec in (plain, both))
    one, two = (work.read for work in found)
    assert two - one == 2 * plain.steps * 500 * LEARNING_PASSES
