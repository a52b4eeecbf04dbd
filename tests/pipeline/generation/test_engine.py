"""What one batch was decoded with decodes the next."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import row_by_row  # noqa: F401  the kernels
import torch

from pipeline.batching import RELIEF, attempted
from pipeline.generation import decoding, engine, policy
from pipeline.generation.chances import Chances
from pipeline.generation.costs import Costs
from pipeline.generation.decoding import passes_for
from pipeline.generation.engine import Engine, Size, let_go
from pipeline.generation.local import Generation, LocalGenerator
from pipeline.generation.paces import Paces
from pipeline.generation.prompts import Prompt
from pipeline.generation.purse import Purse
from pipeline.models import LoadedModel, ModelPool
from pipeline.passes import recorded
from pipeline.passes.packed import PackedPasses
from pipeline.stages import Run
from schemas.stage import GenerateSpec

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")  # inductor's own

_COMPILE = torch.compile
SAMPLED: dict[str, Any] = {"temperature": 0.8, "top_p": 0.9}


def prompts(lengths: tuple[int, ...], new: int = 20) -> list[Prompt]:
    generators = (torch.Generator().manual_seed(length) for length in lengths)
    ids = [
        torch.randint(3, 300, (length,), generator=one).tolist()
        for length, one in zip(lengths, generators, strict=True)
    ]
    return [Prompt(one, new, seed=len(one)) for one in ids]


@pytest.fixture(scope="module")
def loaded(models: dict[str, Path]) -> Iterator[LoadedModel]:
    """Ready for packed passes, which are recorded as what runs once more."""
    torch._dynamo.reset()
    found = ModelPool("cpu").causal_lm(str(models["llama"]))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(decoding, "_worth_packing", lambda loaded: True)
        patched.setattr(torch, "compile", partial(_COMPILE, backend="eager"))
        assert passes_for(found) is PackedPasses
    yield found


@pytest.fixture
def made(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, list[Any]]]:
    """Engines and recordings that were made."""
    noted: dict[str, list[Any]] = {"engines": [], "recordings": []}
    begin = Engine.__init__

    def counted(self: Engine, kind: Any, size: Size, look: Any) -> None:
        noted["engines"].append(size)
        begin(self, kind, size, look)

    def record(run: recorded.Run) -> recorded.Recorded:
        found, logits = (one.clone() for one in run())
        noted["recordings"].append(len(found))

        def again() -> None:
            for one, other in zip((found, logits), run(), strict=True):
                one.copy_(other)

        return again, (found, logits)

    let_go()
    monkeypatch.setattr(decoding, "_worth_packing", lambda loaded: True)
    monkeypatch.setattr(Engine, "__init__", counted)
    monkeypatch.setitem(recorded.RECORDERS, "cpu", lambda device: record)
    yield noted
    let_go()


def generations(loaded: LoadedModel, some: list[Prompt], **settings: Any) -> list[Generation]:
    return LocalGenerator(loaded, GenerateSpec(kind="generate", **settings), Run(ModelPool("cpu"))).generate(some)


def answers(loaded: LoadedModel, some: list[Prompt], **settings: Any) -> list[list[int]]:
    return [one.tokens for one in generations(loaded, some, **settings)]


@pytest.mark.parametrize("settings", [{}, SAMPLED])
def test_batches_in_a_row_share_an_engine(
    loaded: LoadedModel, made: dict[str, list[Any]], settings: dict[str, Any]
) -> None:
    """Whatever was in it before: answers are those of an engine of their own."""
    first, second, larger = prompts((30, 12, 40, 7)), prompts((9, 21, 33)), prompts((50, 8, 61, 20, 33, 70))
    expected = []
    for some in (first, second, larger):
        let_go()
        expected.append(answers(loaded, some, **settings))
    let_go()
    made["engines"].clear()
    made["recordings"].clear()
    assert answers(loaded, first, **settings) == expected[0]
    recordings = list(made["recordings"])
    assert recordings == [4]
    assert answers(loaded, second, **settings) == expected[1]
    assert made["recordings"] == recordings and len(made["engines"]) == 1
    assert answers(loaded, larger, **settings) == expected[2]
    assert answers(loaded, first, **settings) == expected[0]
    assert len(made["engines"]) == 2  # with room for both
    assert answers(loaded, second, **{**settings, "top_k": 7}) and len(made["engines"]) == 3


def test_no_engine_is_kept_where_memory_is_short(
    loaded: LoadedModel, made: dict[str, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = answers(loaded, prompts((30, 12)))
    kept = engine._KEPT[loaded.model]
    assert len(kept) == 1
    tries: list[int] = []

    def fails_once() -> str:
        tries.append(1)
        if len(tries) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return "done"

    assert let_go in RELIEF and attempted(fails_once, last=True) == ["done"]  # there was something to let go of
    assert not kept and answers(loaded, prompts((30, 12))) == expected
    let_go()
    assert not let_go()
    tries.clear()
    with pytest.raises(torch.OutOfMemoryError):
        attempted(fails_once, last=True)


def test_an_engine_that_failed_is_not_kept(
    loaded: LoadedModel, made: dict[str, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise ValueError("broken")

    with monkeypatch.context() as patched:
        patched.setattr(recorded.Steps, "__call__", broken)
        with pytest.raises(ValueError, match="broken"):
            answers(loaded, prompts((30, 12)))
    assert not engine._KEPT[loaded.model]


@pytest.mark.parametrize("settings", [{}, SAMPLED])
def test_as_many_copies_as_pay_change_no_answer(
    loaded: LoadedModel, made: dict[str, list[Any]], monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    """Random weights go in circles: some greedy drafts pass."""
    some = prompts((30, 12, 40, 7), new=80)
    expected = answers(loaded, some, **settings)
    # Answers are short, passes of this model take any time, and few drafts pass.
    for name, value in {"_SETUP": 0, "_ENOUGH": 1, "_STINT": 1, "SHARE": 1e9}.items():
        monkeypatch.setattr(policy, name, value)
    monkeypatch.setattr(Chances, "expected", lambda self, chance: np.arange(1.0, 17.0).tolist())
    monkeypatch.setattr(Purse, "holds", 1e9)
    monkeypatch.setattr(Paces, "saw", lambda *_: None)
    monkeypatch.setattr(engine, "kept_or_measured", lambda *_: Costs(np.ones((6, 6))))
    for batch_tokens in (200, 16384):
        for known in ("contextmill_costs", "contextmill_policies"):
            vars(loaded.model).pop(known, None)
        found = generations(loaded, some, draft_tokens="auto", batch_tokens=batch_tokens, **settings)
        assert [one.tokens for one in found] == expected
        assert all(one.drafted > 0 for one in found)
        assert settings or sum(one.passes for one in found) < sum(map(len, expected))
    again = generations(loaded, some, draft_tokens="auto", **settings)  # what passed before is known
    assert [one.tokens for one in again] == expected
    assert settings or sum(one.drafted for one in again) > 0
    for known in ("contextmill_costs", "contextmill_policies"):
        vars(loaded.model).pop(known)


def test_many_rows_are_not_as_long_as_the_longest_of_others() -> None:
    many, long = Size(1000, 64, 100, 120, 8), Size(3000, 1, 3000, 3001, 8)
    assert many.with_room_for(long) == long
    assert many.with_room_for(Size(2000, 32, 90, 150, 16)) == Size(2000, 64, 100, 150, 16)


def test_another_model_gets_the_memory(
    loaded: LoadedModel, made: dict[str, list[Any]], models: dict[str, Path]
) -> None:
    answers(loaded, prompts((30, 12)))
    assert engine._KEPT[loaded.model]
    ModelPool("cpu").causal_lm(str(models["gpt2"]))
    assert not engine._KEPT[loaded.model]
