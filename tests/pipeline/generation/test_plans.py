"""What drafts, in numbers: plans and their matrices, and how lenient drafters are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from pipeline.generation.leniences import Leniences
from pipeline.generation.lines import Lines
from pipeline.generation.sampling import Choosing
from pipeline.generation.tuning import Figures, Measured, Tuned
from pipeline.generation.verifying import write
from schemas.drafting import Plan
from schemas.stage import GenerateSpec


def test_a_row_has_a_lenience_of_its_own() -> None:
    """The same draft, to which a drafter gives a fifth: the strict row says something else, the lenient one passes."""
    lines = Lines(3, 64, 0, torch.device("cpu"))
    texts = [np.arange(5)] * 2
    lines.begin(np.array([0, 1]), [0, 0], [np.zeros(0, np.int64)] * 2, texts, np.zeros(2, np.int64))
    lines.allow(np.array([0, 1]), np.array([1, 30], np.float32))
    lines.move(1, 2)
    chances = torch.tensor([0.1, 0.6, 0.2, 0.1]).log().repeat(6, 1)
    some = lines.of(torch.tensor([0, 1, 2]))
    some.length[2] = some.length[1]
    written = some.places(some.length, 0, 2)
    drafts = torch.full((3, 1), 2)
    some.put(written[:, :1], drafts)
    greedily = Choosing(GenerateSpec(kind="generate"))
    length = write(some, chances, some.length, written, drafts, greedily, some.lenience, None)
    assert (length - some.length).tolist() == [1, 2, 2]
    assert some.at(written).tolist() == [[1, 1], [2, 1], [2, 1]]


def test_rows_mostly_have_the_best_lenience_once_it_is_known() -> None:
    some = Leniences()
    assert set(some.choose(40).tolist()) == {0, 1, 2, 3}  # nothing is known yet
    for lenience, accepted in enumerate((1, 5, 2, 0)):
        some.saw(np.full(30, lenience), [accepted] * 30)
    chosen = np.bincount(some.choose(4000), minlength=4)
    assert chosen[1] > 3400 and chosen.min() > 50
    for _ in range(200):
        some.saw(np.repeat(np.arange(4), 50), np.repeat([1, 0, 2, 0], 50))  # it no longer is
    assert np.bincount(some.choose(400)).argmax() == 2


@pytest.mark.parametrize(
    ("plan", "drafted", "behind", "passes"),
    [
        (Plan(3, (2,), 4), [12, 3], [4], [2]),
        (Plan(1, (2, 3), 2), [16, 6, 1], [2, 2], [2, 6]),
        (Plan.of_matrix(((2, 1, 4), (2, 5), (3,)), 1.0), [36, 13, 3], [8, 9], [2, 5]),
    ],
)
def test_a_plan_counts_what_is_drafted(plan: Plan, drafted: list[int], behind: list[int], passes: list[int]) -> None:
    assert [plan.drafted_for(level) for level in range(len(drafted))] == drafted and plan.most == drafted[0]
    assert [plan.behind(level + 1) for level in range(len(behind))] == behind and plan.passes == passes
    assert plan.of(*range(len(passes))) == plan


def test_what_is_not_there_leaves_a_matrix() -> None:
    plan = Plan.of_matrix(((2, 1, 4), (2, 5), (3,)), 2.0)
    assert plan.of(0) == Plan.of_matrix(((2, 4), (5,)), 2.0)  # copies drafted for it, behind those of the other
    assert plan.of(1) == Plan.of_matrix(((1, 4), (3,)), 2.0)
    assert plan.of() == Plan(4)
    plan = Plan.of_matrix(((2, 0, 0), (2, 0), (3,)), 1.0)  # as rounds of 2 and 2 over 3 copies
    assert plan.of(1).matrix == Plan(3, (2, 2)).of(1).matrix == ((2, 0), (3,))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"draft_tokens": 49}, "49 drafts at once"),
        ({"drafters": ["a"], "draft_rounds": [7], "draft_tokens": 6}, "49 drafts at once, and at most 48"),
        ({"drafters": ["a"], "draft_rounds": [1, 2]}, "draft_rounds names 2 numbers for 1 drafters"),
        ({"draft_tail": 3}, "without any, raise draft_tokens"),
        ({"draft_lenience": 2.0, "draft_tokens": 3}, "it needs both"),
        ({"draft_lenience": "auto", "drafters": ["a"]}, "it needs both"),
        ({"draft_lenience": "much", "drafters": ["a"]}, 'or "auto"'),
        ({"drafters": ["a"], "draft_matrix": [[1, 1], [1]], "draft_rounds": [1]}, "drop these"),
        ({"drafters": ["a"], "draft_matrix": [[1, 1]]}, "here 2, of 2 numbers"),
        ({"drafters": ["a"], "draft_matrix": [[1], [1]]}, "here 2, of 2 numbers"),
        ({"drafters": ["a", "b"], "draft_matrix": [[0, 1, 1], [1, 1], [1]]}, "at least 1"),
        ({"drafters": ["a"], "draft_matrix": [[7, 7], [5]]}, "49 drafts at once"),
        ({"draft_tokens": 3, "backend": "openai"}, 'drafts need backend = "local"'),
        ({"drafters": ["a", "b", "c", "d"]}, "at most 3 items"),
        ({"drafters": ["a"], "draft_rounds": [0]}, "greater than or equal to 1"),
        ({"drafters": ["a"], "draft_tokens": 1, "draft_lenience": 0.5}, "greater than or equal to 1"),
    ],
)
def test_plans_that_make_no_sense_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        GenerateSpec.model_validate({"kind": "generate", **settings})


def test_drafts_change_nothing_that_is_hashed() -> None:
    plain, copies = (GenerateSpec(kind="generate", draft_tokens=tokens, draft_earlier=tokens) for tokens in (0, 7))
    matrix = GenerateSpec(kind="generate", drafters=["a"], draft_matrix=[[2, 1], [3]], draft_lenience="auto")
    assert plain.output_settings() == copies.output_settings() == matrix.output_settings()


def test_a_setting_keeps_its_own_bound_beside_that_of_all_numbers() -> None:
    for most, name in ((2**14, "draft_earlier"), (2**31 - 1, "max_new_tokens")):
        assert GenerateSpec.model_validate({"kind": "generate", name: most})
        with pytest.raises(ValidationError, match=name):
            GenerateSpec.model_validate({"kind": "generate", name: most + 1})


def test_no_plan_is_fastest_that_drafts_nothing_of_use() -> None:
    """It is the clock that differs then."""

    def figures(seconds: float, passes: int) -> Figures:
        return Figures(1, seconds, 0.0, 100, passes, 100 - passes, [[1]])

    plain = figures(2.0, 100)
    idle, useful = Measured("copies 3", {}, figures(1.0, 100), plain), Measured("copies 7", {}, figures(1.5, 60), plain)
    measured = [Measured("plain", {}, plain, plain), idle]
    assert Tuned(1, 9, "cpu", measured, []).fastest()[1].plan == "plain"
    assert Tuned(1, 9, "cpu", [*measured, useful], []).fastest()[1].plan == "copies 7"
