"""A pretraining as a job's stage: the same encoder however often it was killed, and what it says of held-out texts."""

from __future__ import annotations

import contextlib
import errno
import logging
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from fates import Fate, Killed
from pretraining_jobs import SETTINGS, TEXTS, stage, text, written
from pydantic import ValidationError
from safetensors.torch import load_file
from small_disks import small_disk
from transformers import AutoConfig, AutoModelForCausalLM

from pipeline.checkpoints import Checkpoints
from pipeline.memory import session
from pipeline.memory.autoencoder import Autoencoder
from pipeline.memory.encoder import filled
from pipeline.memory.stage import Pretrain
from pipeline.memory.training import Diverged, Trainer
from pipeline.memory.windows import Batch
from pipeline.models import ModelDamaged, ModelError, ModelPool
from pipeline.models.encoders import CURVE, MANIFEST, WEIGHTS, read_manifest
from pipeline.stages import Halt, Refusal, Result, Run, Stopped
from schemas.memory import PretrainSpec

Whole = tuple[Path, list[Any]]


@pytest.fixture(scope="module")
def whole(tiny_model: Path, pool: ModelPool, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """An uninterrupted training: its folder and what it wrote of each text."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, written(stage(tiny_model).run(TEXTS, Run(pool, folder=str(folder))))


def test_held_out_texts_are_measured_before_and_after(whole: Whole) -> None:
    folder, rows = whole
    held = [row for row in rows if row["split"] == "held_out"]
    assert 0 < len(held) < len(rows) == len(TEXTS)
    assert np.mean([row["nll_after"] - row["nll_before"] for row in held]) < 0
    measured = [name for name in rows[0] if name.endswith(("_before", "_after"))]
    assert len(measured) == 8
    assert all((row[name] is not None) == (row in held) for row in rows for name in measured)
    figures = read_manifest(folder / "encoder").figures
    assert (figures.texts, figures.tokens, figures.slots) == (len(held), 16, 8)
    assert figures.nats[1] == pytest.approx(np.mean([row["nll_after"] for row in held]))
    assert "16 tokens in 8 slots: " in figures.told() and "BLEU-4" in figures.told()


def test_only_some_are_written_out_again(tiny_model: Path, pool: ModelPool) -> None:
    rows = written(stage(tiny_model, steps=1, measured=1).run(TEXTS, Run(pool)))
    assert sum(row["bleu4_after"] is not None for row in rows) == sum(row["prefix_before"] is not None for row in rows)
    assert sum(row["prefix_after"] is not None for row in rows) == 1 < sum(row["nll_after"] is not None for row in rows)


def test_the_curve_lies_beside_the_encoder(whole: Whole) -> None:
    folder = whole[0] / "encoder"
    assert {path.name for path in folder.iterdir()} == {WEIGHTS, CURVE, MANIFEST}
    curve = pq.read_table(folder / CURVE).to_pylist()
    assert [row["step"] for row in curve] == list(range(SETTINGS["steps"]))
    assert curve[-1]["loss"] < curve[0]["loss"] and curve[0]["rate"] == pytest.approx(5e-3)
    assert [row["seconds"] for row in curve] == sorted(row["seconds"] for row in curve)


def test_it_says_at_which_step_it_is_and_the_loss(tiny_model: Path, pool: ModelPool) -> None:
    said: list[str] = []
    outcomes = stage(tiny_model).run(TEXTS, Run(pool, say=said.append))
    assert any(isinstance(one, Result) for one in outcomes)
    steps = SETTINGS["steps"]
    assert [said[0], said[-1]] == ["measuring before the first step", "measuring what was learned"]
    assert [one.split(",")[0] for one in said[1:-1]] == [f"step {n} of {steps}" for n in range(1, steps + 1)]
    assert all(re.search(r", loss \d\.\d{3}$", one) for one in said[2:-1])


@pytest.mark.parametrize("seed", range(2))
def test_killed_anywhere_and_continued_is_the_same(
    whole: Whole, tiny_model: Path, pool: ModelPool, tmp_path: Path, seed: int
) -> None:
    random, outcomes, attempts = np.random.default_rng(seed), None, 0
    while outcomes is None:
        attempts += 1
        assert attempts < 40, "no attempt gets anywhere"
        with contextlib.suppress(Stopped, Killed):
            outcomes = stage(tiny_model).run(TEXTS, Run(pool, folder=str(tmp_path), stopping=Fate(random, 19, 30)))
    assert attempts > 2
    assert written(outcomes) == whole[1]
    assert (tmp_path / "encoder" / WEIGHTS).read_bytes() == (whole[0] / "encoder" / WEIGHTS).read_bytes()
    losses = [pq.read_table(at / "encoder" / CURVE)["loss"].to_pylist() for at in (tmp_path, whole[0])]
    assert losses[0] == losses[1]


def test_a_damaged_checkpoint_is_passed_over(
    whole: Whole, tiny_model: Path, pool: ModelPool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    third = tmp_path / "checkpoints" / "step-00000003.safetensors"
    with pytest.raises(Stopped):
        stage(tiny_model).run(TEXTS, Run(pool, folder=str(tmp_path), stopping=third.exists))
    *_, last = sorted((tmp_path / "checkpoints").iterdir())
    last.write_bytes(last.read_bytes()[:-9])
    assert written(stage(tiny_model).run(TEXTS, Run(pool, folder=str(tmp_path)))) == whole[1]
    assert f"checkpoint {last} cannot be read, the one before it is taken" in caplog.text
    assert "all is done anew" not in caplog.text


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
    said = r"step 5: the loss is nan.*the checkpoint after 5 steps is kept. Lower learning_rate, which is 0.01"
    with pytest.raises(Halt, match=said) as halted:
        stage(tiny_model).run(TEXTS, Run(pool, folder=str(tmp_path)))
    assert isinstance(halted.value.__cause__, Diverged)
    assert sorted(path.stem for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000004", "step-00000005"]


@pytest.mark.parametrize("late", [False, True], ids=["at once", "as on a GPU"])
def test_what_was_learned_before_is_begun_with(
    late: bool, tiny_model: Path, pool: ModelPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the same settings it would diverge again, and checkpoints are no other training's. Of the step behind, which
    a GPU has begun by then, nothing is learned, either."""
    step, loss, number, last = Trainer.step, Batch.loss, [0], dict[str, torch.Tensor]()

    def counting(self: Trainer, at: int, *parts: Any) -> torch.Tensor:
        self._late, number[0] = late, at
        if at == 9:
            last.update({name: one.detach().half().clone() for name, one in self.autoencoder.trained().items()})
        return step(self, at, *parts)

    monkeypatch.setattr(Trainer, "step", counting)
    monkeypatch.setattr(Batch, "loss", lambda self, coder: loss(self, coder) * (float("nan") if number[0] == 9 else 1))
    folder = tmp_path / "one" / "last-good"
    with pytest.raises(Halt, match=r"step 9: the loss is nan.*goes on from what was learned in 9 steps") as halted:
        stage(tiny_model, checkpoint_seconds=600).run(TEXTS, Run(pool, folder=str(tmp_path / "one")))
    assert f'begin = "{folder}"' in str(halted.value) and not (tmp_path / "one" / "encoder").exists()
    assert number == [10 if late else 9]
    kept = load_file(folder / WEIGHTS)
    assert last and all(torch.equal(kept[name], one) for name, one in last.items())
    assert pq.read_table(folder / CURVE)["step"].to_pylist() == [*range(9)] and read_manifest(folder).steps == 9
    monkeypatch.undo()
    again = stage(tiny_model, begin=str(folder), learning_rate=1e-3, steps=2)
    again.check()
    rows = written(again.run(TEXTS, Run(pool, folder=str(tmp_path / "two"))))
    before, learned = read_manifest(folder).figures.nats
    assert before and learned and learned < before
    assert np.mean([row["nll_before"] for row in rows if row["nll_before"]]) == pytest.approx(learned, abs=1e-4)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_model_that_says_more_than_its_head_stops_the_job(
    processes: int, whole: Whole, tiny_model: Path, pool: ModelPool, tmp_path: Path
) -> None:
    """And is named, whoever else would have learned with it; so does an encoder over such a model."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
    config = AutoConfig.for_model("granite", vocab_size=1024, logits_scaling=8.0, **sizes)
    scaled = AutoModelForCausalLM.from_config(config)
    scaled.save_pretrained(tmp_path / "scaled")
    for one in tiny_model.glob("*token*"):
        shutil.copy(one, tmp_path / "scaled")
    said = r"scaled \(GraniteForCausalLM\) says more of a token than its head times a state"
    with pytest.raises(ModelError, match=said):
        stage(tmp_path / "scaled", processes=processes).run(TEXTS, Run(pool, folder=str(tmp_path / "out")))
    manifest = replace(read_manifest(whole[0] / "encoder"), base="scaled")
    with pytest.raises(ModelError, match=said) as refused:
        filled(pool.own_copy(str(tmp_path / "scaled")).model, manifest, tmp_path)
    assert not isinstance(refused.value, ModelDamaged)


@pytest.fixture
def diverging(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The step that diverges."""
    step, at = Trainer.step, [2]

    def diverge(self: Trainer, number: int, *parts: Any) -> torch.Tensor:
        if number == at[0]:
            raise Diverged(number, float("nan"), float("nan"))
        return step(self, number, *parts)

    monkeypatch.setattr(Trainer, "step", diverge)
    yield at


def halted(stage: Pretrain, run: Run) -> str:
    with pytest.raises(Halt, match=r"step \d: the loss is nan.*Lower learning_rate") as found:
        stage.run(TEXTS, run)
    return str(found.value)


def test_a_disk_that_is_full_hides_no_divergence(
    diverging: list[int], tiny_model: Path, pool: ModelPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(session, "write_encoder", full)
    said = halted(stage(tiny_model, steps=4), Run(pool, folder=str(tmp_path)))
    assert "what was learned in 2 steps cannot be written: " in said and "No space left" in said


def test_an_encoder_on_s3_is_to_be_copied_first(
    diverging: list[int], tiny_model: Path, pool: ModelPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    monkeypatch.setattr(session, "write_encoder", lambda *given: written.append(given[-1]))
    monkeypatch.setattr(session, "Checkpoints", lambda folder, key: Checkpoints(str(tmp_path), key))
    said = halted(stage(tiny_model, steps=4), Run(pool, folder="s3://bucket/job"))
    assert written == ["s3://bucket/job/last-good"]
    assert "begin = a copy of s3://bucket/job/last-good on this machine goes on" in said


@pytest.mark.parametrize("case", ["no step", "no folder", "no numbers"])
def test_where_nothing_can_be_begun_with_nothing_is_written(
    case: str, diverging: list[int], tiny_model: Path, pool: ModelPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    described: list[bool] = []

    def describe(self: Autoencoder, found: torch.Tensor) -> None:
        described.append(True)
        self.typical.fill_(float("nan"))

    monkeypatch.setattr(Autoencoder, "describe", describe)
    diverging[0] = 0 if case == "no step" else 2
    run = Run(pool) if case == "no folder" else Run(pool, folder=str(tmp_path))
    said = halted(stage(tiny_model, steps=4), run)
    assert "begin" not in said and ("cannot hold" in said) is (case == "no numbers")
    assert bool(described) is (case == "no numbers") and not (tmp_path / "last-good").exists()


def test_an_encoder_that_float16_cannot_hold_is_none(tiny_model: Path, pool: ModelPool, tmp_path: Path) -> None:
    """Each step's loss may be a number all the same."""
    wild = stage(tiny_model, steps=3, warmup=0, learning_rate=1e5)
    with pytest.raises(Halt, match=r"after 3 steps .*float16.* cannot hold. Lower learning_rate, which is 100000,"):
        wild.run(TEXTS, Run(pool, folder=str(tmp_path)))
    assert not (tmp_path / "encoder").exists()


def test_a_full_disk_stops_a_training_that_goes_on_where_there_is_room(
    whole: Whole, tiny_model: Path, pool: ModelPool, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "small", "400k") as disk:
        with pytest.raises(OSError, match="No space left on device") as full:
            stage(tiny_model).run(TEXTS, Run(pool, folder=str(disk / "p")))
        assert full.value.errno == errno.ENOSPC and "step-0000000" in str(full.value.filename)
        kept = sorted(path.name for path in (disk / "p" / "checkpoints").iterdir())
        assert kept == ["step-00000001.safetensors", "step-00000002.safetensors"], "and nothing half-written"
        shutil.copytree(disk / "p", tmp_path / "large")
    assert written(stage(tiny_model).run(TEXTS, Run(pool, folder=str(tmp_path / "large")))) == whole[1]


def test_a_stop_behind_a_step_that_counts_for_nothing_keeps_what_was_good(
    tiny_model: Path, pool: ModelPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, where that is known a step later."""
    step, stopping = Trainer.step, list[int]()

    def diverging(self: Trainer, number: int, *parts: Any) -> torch.Tensor:
        self._late = True
        if number == 5:
            stopping.append(number)
            with torch.no_grad():
                self.autoencoder.tags.fill_(float("nan"))
        return step(self, number, *parts)

    monkeypatch.setattr(Trainer, "step", diverging)
    run = Run(pool, folder=str(tmp_path), stopping=lambda: bool(stopping))
    with pytest.raises(Halt, match=r"step 5: the loss is nan.*the checkpoint after 5 steps is kept"):
        stage(tiny_model).run(TEXTS, run)
    assert sorted(path.stem for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000004", "step-00000005"]


def test_memory_that_runs_out_is_said_with_the_remedy(
    tiny_model: Path, pool: ModelPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Trainer, "step", full)
    with pytest.raises(Halt, match="memory ran out; tokens_per_step is 512: halve it"):
        stage(tiny_model).run(TEXTS, Run(pool))


def test_texts_that_are_too_short_are_left_out_and_counted(
    tiny_model: Path, pool: ModelPool, caplog: pytest.LogCaptureFixture
) -> None:
    short = [text(100 + number, f"only {number}") for number in range(3)]
    with caplog.at_level(logging.INFO):
        outcomes = stage(tiny_model, steps=1).run([*short, *TEXTS], Run(pool))
    assert [one.code for one in outcomes if isinstance(one, Refusal)] == ["too_short"] * 3
    assert "3 of 23 texts are left out" in caplog.text and "comes back as" in caplog.text
    with pytest.raises(Halt, match="none of 3 texts has the 12 tokens that a lesson takes: give longer"):
        stage(tiny_model).run(short, Run(pool))


@pytest.mark.parametrize(
    ("texts", "changes", "said"),
    [
        (TEXTS[:1], {}, "at least two different texts of 16 tokens are needed"),
        ([TEXTS[0]] * 2, {}, "at least two different texts of 16 tokens are needed"),
        (
            TEXTS,
            {"encoder": {"targets": ["q_proj", "nowhere"]}},
            r"no linear layer is called nowhere; there are .*q_proj",
        ),
        (
            TEXTS,
            {"lessons": [{"tokens": 900, "ratio": 2.0, "share": 0.5}, {"tokens": 16, "ratio": 2.0, "share": 0.5}]},
            r"a lesson of 900 tokens, which takes 1800 in a row; the longest that is not held out has \d+",
        ),
    ],
)
def test_what_cannot_be_learned_is_said(
    tiny_model: Path, pool: ModelPool, texts: list[Any], changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(Halt, match=said):
        stage(tiny_model, **changes).run(texts, Run(pool))


def test_layers_that_the_model_lacks_are_refused_at_once(tiny_model: Path) -> None:
    for targets in (["q_proj", "nowhere"], ["lm_head"], ["embed_tokens"], ["self_attn.q_proj"]):
        with pytest.raises(ModelError, match=f"no linear layer is called {targets[-1]}; there are down_proj, .*q_proj"):
            stage(tiny_model, encoder={"targets": targets}).check()
    stage(tiny_model, encoder={"targets": ["q_proj", "v_proj"]}).check()
    stage(tiny_model, encoder={"rank": 0, "targets": ["nowhere"]}).check()  # which get no low-rank weights


def test_who_cannot_build_the_model_leaves_its_layers_to_the_worker(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacking(*_: Any) -> None:
        raise ImportError("no torch here")

    monkeypatch.setattr("pipeline.models.loading.without_weights", lacking)
    stage(tiny_model, encoder={"targets": ["nowhere"]}).check()


def test_spans_that_do_not_fit_are_refused_at_once(tiny_model: Path) -> None:
    long = [{"tokens": 1500, "ratio": 2.0, "share": 1.0}]
    with pytest.raises(
        ModelError, match=r"a lesson of 1500 tokens takes 2251 places with its slots, and .* reads 2048"
    ):
        stage(tiny_model, lessons=long).check()
    read = [{"tokens": 1200, "ratio": 2.0, "share": 1.0}]
    stage(tiny_model, lessons=read).check()
    with pytest.raises(ModelError, match=r"1200 tokens takes 2400 places with what goes on behind it, as distilled"):
        stage(tiny_model, lessons=read, distilled=0.5).check()
    with pytest.raises(ValidationError, match="autoencoding = 1 leaves none"):
        stage(tiny_model, autoencoding=1.0, distilled=0.5)
    stage(tiny_model).check()
    with pytest.raises(ValidationError, match="16 tokens at 2 a slot take 8 slots, and a span has 4 at most"):
        PretrainSpec.model_validate(
            {**SETTINGS, "encoder": {"slots": 4}, "lessons": [SETTINGS["lessons"][1] | {"share": 1.0}]}
        )
    with pytest.raises(ValidationError, match="greater than or equal to 1"):  # more slots than tokens
        PretrainSpec.model_validate({**SETTINGS, "lessons": [{"tokens": 8, "ratio": 0.5, "share": 1.0}]})


@pytest.mark.parametrize("encoder", [{"rank": 4, "alpha": 8.0}, {"rank": 0}, {"rank": 4, "layout": "pooled"}])
def test_half_precision_learns_too(tiny_model: Path, pool: ModelPool, tmp_path: Path, encoder: dict[str, Any]) -> None:
    halved = stage(tiny_model, dtype="bfloat16", encoder=encoder, learning_rate=3e-3)
    rows = written(halved.run(TEXTS, Run(pool, folder=str(tmp_path))))
    losses = pq.read_table(tmp_path / "encoder" / CURVE)["loss"].to_pylist()
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    assert all(np.isfinite(row["nll_after"]) for row in rows if row["split"] == "held_out")
