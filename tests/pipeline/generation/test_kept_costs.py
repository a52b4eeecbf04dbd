"""What passes take is measured once on a machine, and known only where it holds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from small_disks import small_disk
from test_drafting import generate
from test_other_vocabularies import smaller

from pipeline.generation import costs, kept_costs
from pipeline.generation.engine import Kind
from pipeline.generation.rounds import Model
from pipeline.generation.vocabularies import Translation
from pipeline.models import LoadedModel, ModelPool
from pipeline.passes.padded import PaddedPasses
from schemas.stage import GenerateSpec

SPEC = GenerateSpec(kind="generate", drafters=["other"])
MEASURED = len(costs._ROWS) * len(costs.WIDTHS)


class Clock:
    """Times every pass as if it took ``slow`` seconds a token."""

    def __init__(self) -> None:
        self.slow, self.timed = 1e-4, 0

    def __call__(self, model: Model, rows: int, width: int, records: bool) -> float:
        self.timed += 1
        return self.slow * rows * width

    def since(self) -> int:
        """Passes that were timed since this was asked last."""
        timed, self.timed = self.timed, 0
        return timed


@pytest.fixture
def clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    """A cache of its own, and a quiet machine."""
    made = Clock()
    monkeypatch.setenv("CONTEXTMILL_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(costs, "_seconds", made)
    yield made
    assert not list((tmp_path / "cache").rglob("*.[0-9]*"))


def answered(folder: Path, *drafters: LoadedModel, dtype: str = "float32") -> None:
    """As a worker does that has just been started."""
    generate(ModelPool("cpu").causal_lm(str(folder), dtype), drafters, draft_tokens="auto")


def test_a_worker_reads_what_another_has_measured(models: dict[str, Path], clock: Clock) -> None:
    answered(models["llama"])
    assert clock.since() == MEASURED
    answered(models["llama"])
    assert clock.since() == len(costs._SPOTS)


def test_what_would_take_another_time_is_measured(
    models: dict[str, Path], clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other weights, another precision, another machine, one more thread, other passes."""
    answered(models["llama"])
    clock.since()
    answered(models["gpt_neox"])
    assert clock.since() == MEASURED
    answered(models["llama"], dtype="bfloat16")
    assert clock.since() == MEASURED
    boot = tmp_path / "boot_id"
    boot.write_text("another machine\n")
    with monkeypatch.context() as patched:
        patched.setattr(kept_costs, "BOOT", boot)
        answered(models["llama"])
        assert clock.since() == MEASURED
    with monkeypatch.context() as patched:
        patched.setattr(torch, "get_num_threads", lambda: 3)
        answered(models["llama"])
        assert clock.since() == MEASURED
    with monkeypatch.context() as patched:
        patched.setattr(kept_costs, "_code", lambda: ["changed"])
        answered(models["llama"])
        assert clock.since() == MEASURED
    answered(models["llama"])
    assert clock.since() == len(costs._SPOTS)


@pytest.mark.parametrize(("slow", "again"), [(1.4, False), (1.6, True), (0.6, True)])
def test_costs_that_no_longer_hold_are_measured_anew(
    models: dict[str, Path], clock: Clock, slow: float, again: bool
) -> None:
    answered(models["llama"])
    clock.since()
    clock.slow *= slow
    answered(models["llama"])
    assert clock.since() == len(costs._SPOTS) + again * MEASURED
    answered(models["llama"])
    assert clock.since() == len(costs._SPOTS)  # the new ones are kept


def test_a_full_cache_keeps_nothing_not_even_half_a_file(models: dict[str, Path], clock: Clock, tmp_path: Path) -> None:
    with small_disk(tmp_path / "cache", "8k") as disk:
        (disk / "full").write_bytes(bytes(8192))
        answered(models["llama"])
        assert clock.since() == MEASURED and not list((disk / "costs").iterdir())


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", '{"about": {}, "seconds": [[1.0]]}'])
def test_a_file_that_is_not_what_was_written_is_written_again(
    models: dict[str, Path], clock: Clock, tmp_path: Path, text: str
) -> None:
    answered(models["llama"])
    (kept,) = (tmp_path / "cache" / "costs").iterdir()
    kept.write_text(text)
    clock.since()
    answered(models["llama"])
    assert clock.since() == MEASURED
    answered(models["llama"])
    assert clock.since() == len(costs._SPOTS)


def test_where_nothing_can_be_kept_it_is_measured_each_time(
    models: dict[str, Path], clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache that is no folder; a system that does not tell machines apart."""
    (tmp_path / "cache").write_text("")
    for _ in range(2):
        answered(models["llama"])
        assert clock.since() == MEASURED
    (tmp_path / "cache").unlink()
    monkeypatch.setattr(kept_costs, "BOOT", tmp_path / "missing")
    for _ in range(2):
        answered(models["llama"])
        assert clock.since() == MEASURED
    assert not (tmp_path / "cache" / "costs").exists()


def test_what_is_too_slow_to_be_measured_is_not_looked_at(
    models: dict[str, Path], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(costs, "_SECONDS", 0.0)
    answered(models["llama"])
    assert clock.since() == 1
    answered(models["llama"])
    assert clock.since() == 1


def test_a_translation_counts(models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a drafter of another vocabulary says is translated while it is timed."""
    translated: list[int] = []

    def said(self: Translation, logits: torch.Tensor) -> torch.Tensor:
        translated.append(len(logits))
        return logits

    target, other = (ModelPool("cpu").causal_lm(str(one)) for one in (models["llama"], smaller(tmp_path / "smaller")))
    make = Kind(target, SPEC, PaddedPasses, SPEC.plan, [other]).model
    monkeypatch.setattr(Translation, "said", said)
    with torch.inference_mode():
        costs._seconds(costs._ready(lambda rows: make(other, rows), 2), 2, 4, False)
        assert len(translated) > 1 and set(translated) == {8}
        translated.clear()
        costs._seconds(costs._ready(lambda rows: make(target, rows), 2), 2, 4, False)
        assert not translated


def test_a_drafter_has_costs_for_each_target_that_it_is_translated_for(
    models: dict[str, Path], clock: Clock, tmp_path: Path
) -> None:
    other = ModelPool("cpu").causal_lm(str(smaller(tmp_path / "smaller")))
    answered(models["llama"], other)
    assert clock.since() == 2 * MEASURED
    answered(models["gpt_neox"], other)
    assert clock.since() == 2 * MEASURED
    answered(models["llama"], other)
    assert clock.since() == len(costs._SPOTS)  # the drafter's are known to it
