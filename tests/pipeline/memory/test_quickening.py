"""Fine-tuning compiled for passes of any shape: only where that is seen to say the same, sooner."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import finetuning_jobs
import pytest
import torch
from tiny_models import save_tiny_llama

from pipeline.memory import finetuning, quickening
from pipeline.memory.autoencoder import Autoencoder
from pipeline.memory.finetuning import Finetuning
from pipeline.memory.sheets import Sheet
from pipeline.models import ModelPool
from pipeline.stages import Stopped

Compile = Callable[..., None]
CLOCK = 0, 9, 10, 18, 20, 40, 50, 51
"""Once for nothing, as it is, compiling, compiled."""


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> tuple[Autoencoder, list[Sheet]]:
    model = save_tiny_llama(tmp_path_factory.mktemp("one-layer"), layers=1)
    stage, loaded = finetuning_jobs.stage(model, batch_tokens=400), ModelPool("cpu").own_copy(str(model))
    plan = Finetuning(stage.spec, finetuning_jobs.ROWS, loaded, lambda: None)
    coder = Autoencoder(loaded.model, stage.spec.encoder)
    coder.resize(plan.slots(coder))
    return coder, [*plan.sheets(0), *plan.sheets(1)]


def ticking(ticks: Sequence[float]) -> Callable[[torch.device], float]:
    left = iter(ticks)
    return lambda device: next(left)


def losses(coder: Autoencoder, parts: list[Sheet]) -> list[float]:
    return [one.loss(coder).item() for one in parts]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch looks at it while it traces
def test_one_program_serves_passes_of_all_shapes(
    tried: tuple[Autoencoder, list[Sheet]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As torch traces it, whose programs are as they were written: making them fast takes minutes here."""
    torch._dynamo.reset()  # what other tests have compiled of the same code counts, too
    compile_: Compile = torch.nn.Module.compile
    programs = []

    def counted(graph: Any, inputs: Any) -> Any:
        programs.append(len(inputs))
        return graph.forward

    def traced(self: Any, dynamic: bool) -> None:
        compile_(self, dynamic=dynamic, backend=counted)

    monkeypatch.setattr(torch.nn.Module, "compile", traced)
    monkeypatch.setattr(quickening, "_now", ticking(CLOCK))
    coder, parts = tried
    expected = losses(coder, parts)
    assert len({one.words.shape for one in parts}) > 2
    with caplog.at_level(logging.INFO):
        assert quickening.quicken(coder, parts, half=False)
    assert "passes are compiled: 1000 ms for 8000 ms" in caplog.text
    made = len(programs)
    assert 2 <= made <= 4 < len(parts) * 2, "one to encode, one to decode, and of a single row"
    assert losses(coder, parts) == pytest.approx(expected, rel=1e-5) and len(programs) == made
    assert all(one.grad is None for one in coder.trained().values())
    coder.slow_down()


def _wrong(self: Any, dynamic: bool) -> None:
    self._compiled_call_impl = lambda *args, **kwargs: self.forward(*args, **kwargs).roll(1, -1)


def _breaking(self: Any, dynamic: bool) -> None:
    def call(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("no compiler is at hand")

    self._compiled_call_impl = call


def _slow(self: Any, dynamic: bool) -> None:
    self._compiled_call_impl = self.forward


@pytest.mark.parametrize(
    ("compile_", "ticks", "said"),
    [
        (_wrong, CLOCK, "of their losses it is"),
        (_breaking, CLOCK, "no compiler is at hand"),
        (_slow, (*CLOCK[:-1], 58), "they take 8000 ms, and 8000 ms as they are"),
    ],
)
def test_where_it_does_not_pay_all_is_as_before(
    compile_: Compile, ticks: tuple[float, ...], said: str, tried: tuple[Autoencoder, list[Sheet]],
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    coder, parts = tried
    expected = losses(coder, parts)
    monkeypatch.setattr(quickening, "_now", ticking(ticks))
    monkeypatch.setattr(torch.nn.Module, "compile", compile_)
    assert not quickening.quicken(coder, parts, half=False)
    assert f"passes are not compiled: {said}" in caplog.text
    assert losses(coder, parts) == pytest.approx(expected, rel=1e-5)
    assert all(one.grad is None for one in coder.trained().values())


def test_a_worker_that_is_stopping_blames_no_compiler(
    tried: tuple[Autoencoder, list[Sheet]], monkeypatch: pytest.MonkeyPatch
) -> None:
    coder, parts = tried
    monkeypatch.setattr(torch.nn.Module, "compile", _slow)
    left = iter(range(2 * len(parts)))

    def alive() -> None:
        if next(left, None) is None:
            raise Stopped

    with pytest.raises(Stopped):
        quickening.quicken(coder, parts, False, alive)
    coder.slow_down()


@pytest.mark.parametrize("batch_tokens", [64, 400, 100_000])
def test_a_few_passes_of_several_shapes_are_tried_however_many_a_step_has(
    batch_tokens: int, tried: tuple[Autoencoder, list[Sheet]], monkeypatch: pytest.MonkeyPatch, pool: ModelPool,
    tiny_model: Path,
) -> None:  # fmt: skip
    found: list[list[Sheet]] = []
    monkeypatch.setattr(finetuning, "quicken", lambda coder, parts, half, alive: found.append(parts))
    one = finetuning_jobs.stage(tiny_model, batch_tokens=batch_tokens)
    Finetuning(one.spec, finetuning_jobs.ROWS, pool.causal_lm(str(tiny_model)), lambda: None).hasten(tried[0])
    (parts,) = found
    assert len(parts) == finetuning.TRIED and len({part.words.shape for part in parts}) > 2


def test_what_fails_as_it_is_is_not_the_compilers(
    tried: tuple[Autoencoder, list[Sheet]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Sheet, "loss", full)
    with pytest.raises(torch.OutOfMemoryError):
        quickening.quicken(*tried, half=False)
