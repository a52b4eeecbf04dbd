from __future__ import annotations

import itertools
import math

import pytest
import torch

from pipeline.generation.sampling import SeededDraw, document_seed, most_likely, processors
from schemas.stage import GenerateSpec

CPU = torch.device("cpu")


def spec(**settings: object) -> GenerateSpec:
    return GenerateSpec.model_validate({"kind": "generate", **settings})


def draw(logits: list[float], draws: int, **settings: object) -> list[int]:
    """How often each token comes, over rows with a seed of their own."""
    seeds = [document_seed(0, str(row)) for row in range(draws)]
    scores = torch.tensor(logits).expand(draws, -1)
    ids = torch.zeros(draws, 3, dtype=torch.int64)
    drawn = processors(spec(**settings), seeds, 3, 1, CPU)(ids, scores).argmax(-1)
    return torch.bincount(drawn, minlength=len(logits)).tolist()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"temperature": 1.0}, [0.4, 0.3, 0.2, 0.1]),
        ({"temperature": 0.5}, [16 / 30, 9 / 30, 4 / 30, 1 / 30]),
        ({"temperature": 1.0, "top_k": 2}, [4 / 7, 3 / 7, 0, 0]),
        ({"temperature": 1.0, "top_p": 0.65}, [4 / 7, 3 / 7, 0, 0]),
        ({"temperature": 0.5, "top_k": 3, "top_p": 0.99}, [16 / 29, 9 / 29, 4 / 29, 0]),
    ],
)
def test_draws_follow_the_warped_distribution(settings: dict[str, float], expected: list[float]) -> None:
    draws = 100_000
    counts = draw([math.log(p) for p in (0.4, 0.3, 0.2, 0.1)], draws, **settings)
    assert all(count == 0 for count, p in zip(counts, expected, strict=True) if p == 0)
    chi2 = sum((count - draws * p) ** 2 / (draws * p) for count, p in zip(counts, expected, strict=True) if p)
    assert chi2 < 16.3  # 3 degrees of freedom, 1 in 1000; the seeds are fixed, so this passes always or never


def test_consecutive_steps_of_one_document_are_independent() -> None:
    steps = 4_000
    draws = SeededDraw([document_seed(0, "a")], 0, steps, CPU)
    scores = torch.zeros(1, 2)
    tokens = [int(draws(torch.zeros(1, step, dtype=torch.int64), scores).argmax()) for step in range(steps)]
    pairs = torch.bincount(torch.tensor([2 * a + b for a, b in itertools.pairwise(tokens)]), minlength=4)
    assert ((pairs - steps / 4) ** 2 / (steps / 4)).sum() < 16.3


@pytest.mark.parametrize("size", [1, 7, 64, 768, 257, 1024])
def test_the_most_likely_token_is_the_first_of_equal_ones(size: int) -> None:
    logits = torch.randint(5, (40, size)).to(torch.bfloat16)  # full of ties
    expected = [row.index(max(row)) for row in logits.tolist()]
    assert most_likely(logits).tolist() == expected
    assert most_likely(torch.cat([logits, logits], 1)[:, :size]).tolist() == expected  # no block of memory


def test_a_token_of_no_probability_is_never_drawn() -> None:
    counts = draw([-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf], 5_000, temperature=1.0)
    assert [count > 0 for count in counts] == [False, True, False, True, False]


def test_a_row_draws_the_same_in_any_batch() -> None:
    scores = torch.randn(5, 100, generator=torch.Generator().manual_seed(1))
    seeds = [document_seed(3, str(row)) for row in range(5)]
    ids = torch.zeros(5, 7, dtype=torch.int64)
    together = SeededDraw(seeds, 6, 4, CPU)(ids, scores).argmax(-1).tolist()
    alone = [int(SeededDraw([seeds[row]], 6, 4, CPU)(ids[:1], scores[row : row + 1]).argmax()) for row in range(5)]
    assert together == alone


def test_no_temperature_means_no_processor_and_seeds_differ_by_stage_seed_and_content() -> None:
    assert not processors(spec(temperature=0.0, top_k=5), [1], 1, 1, CPU)
    assert not processors(spec(temperature=1e-6), [1], 1, 1, CPU)
    assert len({document_seed(seed, content) for seed in (0, 1) for content in ("a", "b")}) == 4
    assert all(0 <= document_seed(seed, "x") < 2**63 for seed in range(100))
