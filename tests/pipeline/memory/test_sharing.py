"""A training shared by two processes, on the CPU: it takes the steps of one, and knows when the other is gone."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import finetuning_jobs
import pretraining_jobs
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from pipeline.memory import peers, sharing
from pipeline.memory.training import Trainer
from pipeline.models import ModelPool
from pipeline.models.encoders import CURVE, WEIGHTS
from pipeline.stages import Run, Stopped

JOBS: dict[str, tuple[Any, Any]] = {
    "pretrain": (pretraining_jobs.stage, pretraining_jobs.TEXTS),
    "finetune": (finetuning_jobs.stage, finetuning_jobs.ROWS),
    "rehearse": (finetuning_jobs.rehearsing, [*finetuning_jobs.ROWS, *finetuning_jobs.texts(8)]),
}


def learned(folder: Path) -> tuple[dict[str, torch.Tensor], list[float]]:
    losses: list[float] = pq.read_table(folder / "encoder" / CURVE)["loss"].to_pylist()
    return load_file(folder / "encoder" / WEIGHTS), losses


@pytest.fixture(params=["waits", "goes on"])
def first(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first process does as on a CPU, or as on a GPU."""
    if request.param == "goes on":
        monkeypatch.setattr(sharing, "GO_ON", {"cpu"})


@pytest.mark.usefixtures("first")
@pytest.mark.parametrize("kind", JOBS)
def test_two_processes_take_the_steps_of_one_and_go_on(kind: str, tiny_model: Path, tmp_path: Path) -> None:
    """The same weights but for the order in which gradients were summed, and what float16 makes of that."""
    stage, documents = JOBS[kind]
    pool, alone, two = ModelPool("cpu"), tmp_path / "alone", tmp_path / "two"
    stage(tiny_model, steps=6).run(documents, Run(pool, folder=str(alone)))
    stopped = Run(pool, folder=str(two), stopping=_after(two / "checkpoints" / "step-00000003.safetensors"))
    with pytest.raises(Stopped):
        stage(tiny_model, steps=6, processes=2).run(documents, stopped)
    stage(tiny_model, steps=6, processes=2).run(documents, Run(pool, folder=str(two)))
    (expected, losses), (found, shared) = learned(alone), learned(two)
    assert shared == pytest.approx(losses, abs=1e-3)
    for name, one in expected.items():
        torch.testing.assert_close(found[name], one, rtol=1e-2, atol=2e-3)


def _after(path: Path) -> Any:
    return path.exists


@pytest.mark.usefixtures("first")
def test_one_that_is_gone_ends_the_attempt(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started, others, step = peers._started, [], Trainer.step

    @contextlib.contextmanager
    def seen(told: bytes) -> Iterator[Any]:
        with started(told) as one:
            others.append(one[0])
            yield one

    def struck(self: Trainer, number: int, *parts: Any) -> torch.Tensor:
        if number == 3:
            others[0].kill()
        return step(self, number, *parts)

    monkeypatch.setattr(peers, "_started", seen)
    monkeypatch.setattr(Trainer, "step", struck)
    stage, documents = JOBS["finetune"]
    with pytest.raises(peers.PeerLost, match="ended with code -9"):
        stage(tiny_model, steps=6, processes=2).run(documents, Run(ModelPool("cpu"), folder=str(tmp_path)))
    assert others[0].poll() is not None and not torch.distributed.is_initialized()


def test_each_process_has_a_device_of_its_own(tiny_model: Path) -> None:
    assert peers.world_of(finetuning_jobs.stage(tiny_model, processes=0), torch.device("cpu")) == 1
    with pytest.raises(ValidationError, match="each of several processes has its own: say cuda"):
        finetuning_jobs.stage(tiny_model, processes=2, device="cuda:1")


@pytest.mark.parametrize("size", [2**16 + 464, 2**22])
def test_one_that_is_let_go_before_it_listens_takes_nobody_with_it(size: int) -> None:
    """It imports torch before it reads what it is told, which may be more than a pipe holds, or a little more."""
    began = time.perf_counter()
    with peers._started(b"x" * size) as (process, _):
        assert process.poll() is None
    assert process.returncode is not None and time.perf_counter() - began < 10
