"""What prompts have in common is read once, and their answers are what they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.generation import prefixes
from pipeline.generation.local import Generation, LocalGenerator
from pipeline.generation.prefixes import WORTH, Prefixes
from pipeline.generation.prompts import Prompt
from pipeline.models import LoadedModel, ModelPool
from pipeline.passes.padded import PaddedPasses
from pipeline.stages import Run
from schemas.stage import GenerateSpec


def shared_by(one: Prompt, other: Prompt) -> int:
    equal = [a == b for a, b in zip(one.ids, other.ids, strict=False)]
    return equal.index(False) if False in equal else len(equal)


texts = st.lists(st.lists(st.sampled_from([300, 2]), min_size=1, max_size=8), min_size=1, max_size=12)


@given(texts, st.data())
def test_each_shares_most_with_what_is_here(ids: list[list[int]], data: st.DataObject) -> None:
    prompts = [Prompt(one * 20, 1) for one in ids]
    found = Prefixes([one.ids for one in prompts])
    here: set[int] = set()
    rows = data.draw(st.permutations(range(len(prompts))))
    cut = data.draw(st.integers(0, len(rows)))
    for some in (rows[:cut], rows[cut:]):
        read: list[int] = []
        for wave in found.waves(some):
            for row, other, shared in wave:
                most = max((shared_by(prompts[row], prompts[one]) for one in here), default=0)
                assert shared == (most if most >= WORTH else 0)
                assert not shared or (other in here and shared_by(prompts[row], prompts[other]) == shared)
            here.update(row for row, *_ in wave)
            read += [row for row, *_ in wave]
        assert sorted(read) == sorted(some)
        for row in data.draw(st.lists(st.sampled_from(sorted(here)), unique=True) if here else st.just([])):
            found.leave(row)
            here.remove(row)


def test_the_others_wait_for_the_first_that_begins_alike() -> None:
    common = list(range(3, 103))
    prompts = [Prompt([*common, row, 7], 1) for row in range(5)] + [Prompt([9], 1), Prompt([*common, 3, 7, 8], 1)]
    first, second = Prefixes([one.ids for one in prompts]).waves(range(7))
    assert [row for row, *_ in first] == [0, 5]
    assert [(row, shared) for row, _, shared in second] == [(1, 100), (2, 100), (3, 100), (6, 100), (4, 100)]


LENGTHS = (0, 5, 1, 30, 2, 0, 12)


def prompts_of(window: int) -> list[Prompt]:
    """Two families, one row that is another's beginning, two equal ones, and one by itself."""
    random = torch.Generator().manual_seed(3)
    drawn = [torch.randint(3, 300, (90,), generator=random).tolist() for _ in range(3)]
    ids = [[*drawn[place % 2], *drawn[2][:extra], place % 5 + 3] for place, extra in enumerate(LENGTHS)]
    return [
        Prompt(one, min(20, window - len(one)), seed) for seed, one in enumerate([*ids, drawn[0], drawn[0], [4, 9]])
    ]


def answers(loaded: LoadedModel, prompts: list[Prompt], **settings: Any) -> list[list[int]]:
    generator = LocalGenerator(loaded, GenerateSpec(kind="generate", **settings), Run(ModelPool("cpu")))
    made: list[Generation] = generator.generate(prompts)
    return [one.tokens for one in made]


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox", "gpt2"])
def test_answers_stay_and_less_is_read(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, architecture: str
) -> None:
    loaded = ModelPool("cpu").causal_lm(str(models[architecture]))
    prompts = prompts_of(loaded.window)
    read: list[int] = []
    run = PaddedPasses.run

    def counted(self: PaddedPasses, rows: Any, ids: torch.Tensor, cached: Any, counts: Any, *rest: Any) -> torch.Tensor:
        read.append(int(np.sum(counts)))
        return run(self, rows, ids, cached, counts, *rest)

    alone = answers(loaded, prompts, batch_tokens=1)
    monkeypatch.setattr(PaddedPasses, "run", counted)
    together = answers(loaded, prompts)
    tokens, sharing = sum(len(one.ids) for one in prompts), sum(read)
    read.clear()
    monkeypatch.setattr(prefixes, "WORTH", 10_000)
    assert together == answers(loaded, prompts) == alone
    assert sum(read) == tokens and sharing < tokens / 2.5
