"""The loop: a run cut off at any moment ends with the very adapter of one that was not, and learns what it should."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from align_pairs import DOCUMENTS, document, spec, stage
from fates import Fate, Killed
from safetensors.torch import load_file
from tiny_models import save_tiny_llama, save_tokenizer

from pipeline.alignment.losses import Loss, Reader
from pipeline.alignment.pairs import Pair, divide, tokenise
from pipeline.alignment.training import Plan, Trainer
from pipeline.models import LoadedModel, ModelPool
from pipeline.models.adapters import WEIGHTS, read_manifest
from pipeline.stages import Halt, Outcome, Refusal, Result, Run, Stopped


@pytest.fixture(scope="module")
def pool() -> Iterator[ModelPool]:
    pool = ModelPool("cpu")
    yield pool
    pool.close()


def run_of(pool: ModelPool, folder: Path, **more: Any) -> Run:
    return Run(pool, folder=str(folder), **more)


def written(outcomes: list[Outcome]) -> list[Any]:
    """What must not differ: all but seconds."""
    rows = [outcome.fields for outcome in outcomes if isinstance(outcome, Result)]
    return [{name: value for name, value in row.items() if not name.endswith("seconds")} for row in rows]


@pytest.fixture(scope="module")
def whole(pool: ModelPool, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    """An uninterrupted training: its folder and what it wrote of each document."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, written(stage(tiny_model).run(DOCUMENTS, run_of(pool, folder)))


def test_what_is_left_in_the_end_is_small_and_leads_to_the_same_result(
    whole: tuple[Path, list[Any]], pool: ModelPool, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker may die after the training, before its shard is committed."""
    (last,) = (whole[0] / "checkpoints").iterdir()
    assert {name.partition(".")[0] for name in load_file(last)} == {"weight", "before"}
    monkeypatch.setattr(Trainer, "step", lambda *_: pytest.fail("there is nothing left to learn"))
    assert written(stage(tiny_model).run(DOCUMENTS, run_of(pool, whole[0]))) == whole[1]


def test_layers_that_lie_the_other_way_round_are_trained_and_merged(pool: ModelPool, tmp_path: Path) -> None:
    """GPT-2's; a square one does not show it by its shape."""
    folder = save_tiny_gpt2(tmp_path / "gpt2")
    outcomes = stage(folder).run(DOCUMENTS, run_of(pool, tmp_path))
    held = {number for number, row in enumerate(written(outcomes)) if row["split"] == "held_out"}
    adapted = pool.causal_lm(f"{folder}+{tmp_path / 'adapter'}")
    pairs = list(tokenise([one for one in DOCUMENTS if one.seq in held], adapted, 64))
    nats = torch.split(Loss(Reader(adapted)).measured(pairs)[:, 0], [pair.answer_tokens for pair in pairs])
    after = {pair.document.seq: float(one.mean()) for pair, one in zip(pairs, nats, strict=True)}
    rows = [row for row in written(outcomes) if row["split"] == "held_out"]
    assert list(after.values()) == pytest.approx([rows[place]["nll_after"] for place in order(pairs, held)], rel=1e-4)
    assert all(row["nll_after"] < row["nll_before"] for row in rows)
    right = _likeliest(adapted, pairs)
    assert right == pytest.approx([rows[place]["agreement_after"] for place in order(pairs, held)], abs=1e-6)


@torch.inference_mode()
def _likeliest(loaded: LoadedModel, pairs: list[Pair]) -> list[float]:
    """The share of each answer's tokens that are the model's most likely ones, token by token."""
    model: Any = loaded.model
    found = []
    for pair in pairs:
        best = model(input_ids=torch.from_numpy(pair.ids)[None]).logits[0].argmax(-1)
        found.append(float((best[pair.answer - 1 : -1].numpy() == pair.ids[pair.answer :]).mean()))
    return found


def order(pairs: list[Pair], held: set[int]) -> list[int]:
    """Where each pair's row stands among those held out."""
    return [sorted(held).index(pair.document.seq) for pair in pairs]


def save_tiny_gpt2(folder: Path) -> Path:
    from transformers import GPT2Config, GPT2LMHeadModel

    folder.mkdir()
    config = GPT2Config(vocab_size=save_tokenizer(folder), n_embd=64, n_layer=2, n_head=4, n_positions=128)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def test_a_training_has_the_room_to_itself(pool: ModelPool, tiny_model: Path, tmp_path: Path) -> None:
    before, calls = pool.causal_lm(str(tiny_model)), iter(range(1_000))
    with pytest.raises(Stopped):
        stage(tiny_model).run(DOCUMENTS, run_of(pool, tmp_path, stopping=lambda: next(calls) > 3))
    assert pool.causal_lm(str(tiny_model)) is not before


def test_it_learns(whole: tuple[Path, list[Any]]) -> None:
    folder, rows = whole
    held = [row for row in rows if row["split"] == "held_out"]
    assert 0 < len(held) < len(rows) == len(DOCUMENTS)
    assert all(row["nll_before"] is None and row["nll_after"] is None for row in rows if row["split"] == "train")
    manifest = read_manifest(folder / "adapter")
    tokens = [row["tokens_answer"] for row in held]
    for said, column in ((manifest.nll_before, "nll_before"), (manifest.nll_after, "nll_after")):
        assert said == pytest.approx(np.average([row[column] for row in held], weights=tokens))
    assert manifest.nll_after < 0.8 * manifest.nll_before
    for share, column in zip(manifest.agreement, ("agreement_before", "agreement_after"), strict=True):
        assert share == pytest.approx(np.average([row[column] for row in held], weights=tokens))
    assert 0 <= manifest.agreement[0] < manifest.agreement[1] <= 1
    assert json.loads((folder / "adapter" / "adapter_config.json").read_text())["peft_type"] == "LORA"


@pytest.mark.parametrize("seed", range(3))
def test_killed_anywhere_and_continued_is_the_same(
    whole: tuple[Path, list[Any]], pool: ModelPool, tiny_model: Path, tmp_path: Path, seed: int
) -> None:
    random, outcomes, attempts = np.random.default_rng(seed), None, 0
    while outcomes is None:
        attempts += 1
        assert attempts < 60, "no attempt gets anywhere"
        with contextlib.suppress(Stopped, Killed):
            outcomes = stage(tiny_model).run(DOCUMENTS, run_of(pool, tmp_path, stopping=Fate(random, 2, 13)))
    assert attempts > 3
    assert written(outcomes) == whole[1]
    mine, theirs = (load_file(folder / "adapter" / WEIGHTS) for folder in (tmp_path, whole[0]))
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_a_damaged_checkpoint_is_passed_over_and_one_of_another_training_too(
    whole: tuple[Path, list[Any]], pool: ModelPool, tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    calls = iter(range(1_000))
    with pytest.raises(Stopped):
        stage(tiny_model).run(DOCUMENTS, run_of(pool, tmp_path, stopping=lambda: next(calls) > 6))
    *_, last = sorted((tmp_path / "checkpoints").iterdir())
    last.write_bytes(last.read_bytes()[:-100])
    assert written(stage(tiny_model).run(DOCUMENTS, run_of(pool, tmp_path))) == whole[1]
    assert f"checkpoint {last} cannot be read" in caplog.text
    # The same folder under other settings: a training of its own, from its beginning.
    elsewhere = written(stage(tiny_model, seed=1).run(DOCUMENTS, run_of(pool, tmp_path / "elsewhere")))
    assert written(stage(tiny_model, seed=1).run(DOCUMENTS, run_of(pool, tmp_path))) == elsewhere != whole[1]


def test_what_is_held_out_stays_so_in_every_corpus() -> None:
    pairs = [Pair(one, np.arange(9), 5) for one in DOCUMENTS]
    trained, held = divide(pairs, 0.2)
    again = [
        pair.document for pair in divide(pairs[::-1] + [Pair(document(n), np.arange(9), 5) for n in (50, 51)], 0.2)[1]
    ]
    assert {pair.document.id for pair in held} <= {one.id for one in again}
    assert len(trained) + len(held) == len(pairs)
    answers = [Pair(document(number, text), np.arange(9), 5) for number in range(24) for text in ("one", "another")]
    kept, measured = divide(answers, 0.2)
    assert not {pair.document.content_hash for pair in kept} & {pair.document.content_hash for pair in measured}
    for share in (1e-9, 1 - 1e-9):  # all on one side
        assert all(len(side) for side in divide(pairs[:2], share))


def test_held_out_answers_do_not_shape_the_adapter(
    whole: tuple[Path, list[Any]], pool: ModelPool, tiny_model: Path, tmp_path: Path
) -> None:
    held = {number for number, row in enumerate(whole[1]) if row["split"] == "held_out"}
    changed = [document(one.seq, "Something else.") if one.seq in held else one for one in DOCUMENTS]
    stage(tiny_model).run(changed, run_of(pool, tmp_path))
    mine, theirs = (load_file(folder / "adapter" / WEIGHTS) for folder in (tmp_path, whole[0]))
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_memory_that_runs_out_halves_the_batch_and_changes_no_number(
    whole: tuple[Path, list[Any]],
    pool: ModelPool,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    backward, tried = torch.autograd.grad, []

    def scarce(loss: Any, weights: Any) -> Any:
        tried.append(1)
        if len(tried) == 2:
            raise torch.OutOfMemoryError("no room")
        return backward(loss, weights)

    monkeypatch.setattr(torch.autograd, "grad", scarce)
    rows = written(stage(tiny_model).run(DOCUMENTS, run_of(pool, tmp_path)))
    assert caplog.text.count("out of memory") == 1, "later steps begin with the smaller batch"
    for mine, theirs in zip(rows, whole[1], strict=True):
        assert mine["nll_after"] == (pytest.approx(theirs["nll_after"], rel=1e-3) if theirs["nll_after"] else None)


def test_a_step_is_adamw_on_the_mean_over_answer_tokens(pool: ModelPool, tiny_model: Path) -> None:
    specs = spec(tiny_model, batch_tokens=4096), spec(tiny_model, batch_tokens=60)
    trainers = [Trainer(one, pool.own_copy(str(tiny_model)), None, lambda *_: None) for one in specs]
    pairs = list(tokenise(DOCUMENTS[:6], pool.causal_lm(str(tiny_model)), 64))
    before = trainers[0].measure(pairs)
    tokens = [pair.answer_tokens for pair in pairs]
    losses = [trainer.step(pairs, 1e-3) for trainer in trainers]
    assert losses == pytest.approx([np.average([one.nats for one in before], weights=tokens)] * 2, rel=1e-5)
    first, second = (trainer.tensors() for trainer in trainers)
    moved = [name for name in first if name.startswith("weight.") and "lora_B" in name]
    # From B = 0, Adam's first step moves every weight that has a gradient by the learning rate.
    assert all(float(first[name].abs().max()) == pytest.approx(1e-3, rel=1e-2) for name in moved)
    assert all(torch.allclose(first[name], second[name], atol=1e-5) for name in moved)


def test_an_epoch_goes_through_every_pair_once_and_the_rate_warms_up_and_falls(tiny_model: Path) -> None:
    plan = Plan(spec(tiny_model, epochs=3, documents_per_step=8, warmup=0.3), 21)
    assert (plan.steps_per_epoch, plan.steps) == (3, 9)
    orders = [[number for step in range(3) for number in plan.batch(3 * epoch + step)] for epoch in range(3)]
    assert all(sorted(order) == list(range(21)) for order in orders) and len(set(map(tuple, orders))) == 3
    rates = [plan.learning_rate(step) for step in range(9)]
    assert rates[0] < rates[1] < rates[2] == max(rates) == 1e-2
    assert rates[3:] == sorted(rates[3:], reverse=True) and 0 < rates[-1] < 1e-3


def test_what_cannot_be_learned_from_is_refused_with_a_reason(
    whole: tuple[Path, list[Any]], pool: ModelPool, tiny_model: Path
) -> None:
    documents = [document(0, ""), document(1), document(2)]
    first, *others = stage(tiny_model, epochs=1).run(documents, Run(pool))
    assert isinstance(first, Refusal) and first.code == "no_answer" and "input.columns.answer" in first.reason
    assert all(isinstance(one, Result) for one in others)
    with pytest.raises(Halt, match="has an adapter already"):
        stage(f"{tiny_model}+{whole[0] / 'adapter'}").run(documents, Run(pool))
    with pytest.raises(Halt, match="at least two different prompts"):
        stage(tiny_model).run([document(1), document(1)], Run(pool))


def test_a_teacher_pulls_the_scorer_towards_its_own_distribution(
    pool: ModelPool, tiny_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "teacher").mkdir()
    teacher = save_tiny_llama(tmp_path / "teacher", seed=7)
    outcomes = stage(tiny_model, epochs=4, teacher=str(teacher), kl_weight=1.0).run(DOCUMENTS, run_of(pool, tmp_path))
    held = {number for number, row in enumerate(written(outcomes)) if row["split"] == "held_out"}
    pairs = list(tokenise([one for one in DOCUMENTS if one.seq in held], pool.causal_lm(str(tiny_model)), 64))
    apart = []
    for name in (str(tiny_model), f"{tiny_model}+{tmp_path / 'adapter'}"):
        loss = Loss(Reader(pool.own_copy(name)), Reader(pool.own_copy(str(teacher))), 1.0)
        apart.append(float(loss.total(pairs)))
    assert apart[1] < 0.85 * apart[0]
