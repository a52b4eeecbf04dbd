"""Drafts change how soon an answer is there, never a word of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.generation.decoding import passes_for
from pipeline.generation.local import Generation, LocalGenerator
from pipeline.generation.maxgram import LONGEST, PADDING, propose
from pipeline.generation.prompts import Prompt
from pipeline.models import LoadedModel, ModelPool
from pipeline.passes.padded import PaddedPasses
from pipeline.stages import Result, Run, build
from schemas.document import Document, PromptParts
from schemas.job import JobSpec
from schemas.stage import GenerateSpec

LENGTHS = (9, 70, 2, 41, 1, 40, 23, 23)
PROMPTS = [
    Prompt(torch.randint(3, 300, (length,), generator=torch.Generator().manual_seed(at)).tolist(), 40 - 3 * at, seed=at)
    for at, length in enumerate(LENGTHS)
]
SAMPLED: dict[str, Any] = {"temperature": 0.8, "top_p": 0.9, "top_k": 40}


def line(*tokens: int) -> torch.Tensor:
    return torch.tensor([[-1] * PADDING + list(tokens) + [-1] * 20])


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([1, 2, 3, 4, 9, 2, 3], [4, 9, 2, 3]),  # what followed the last two
        ([3, 7, 1, 2, 3, 8, 5, 2, 3], [8, 5, 2, 3]),  # a longer match before a later one
        ([2, 3, 7, 2, 3, 8, 2, 3], [8, 2, 3, 8]),  # the later of two, which then runs in circles
        ([5, 5], [5, 5, 5, 5]),
        ([1, 2, 1, 2], [1, 2, 1, 2]),
        ([1, 2, 3], [3, 3, 3, 3]),  # nothing came before
        ([*range(10), 50, *range(1, 10)], [50, 1, 2, 3]),
    ],
)
def test_what_followed_the_longest_match(tokens: list[int], expected: list[int]) -> None:
    found = propose(line(*tokens), torch.tensor([PADDING + len(tokens)]), 4)
    assert found.tolist() == [expected]


def test_lines_of_any_length_are_looked_at_at_once_and_as_by_hand() -> None:
    random = torch.Generator().manual_seed(0)
    lengths = torch.randint(2, 60, (200,), generator=random)
    tokens = torch.full((200, PADDING + 80), -1)
    for row, length in enumerate(lengths.tolist()):
        tokens[row, PADDING : PADDING + length] = torch.randint(0, 4, (length,), generator=random)
        tokens[row, PADDING + length :] = 3  # what was written and given up
    found = propose(tokens, PADDING + lengths, 6)
    for row, length in enumerate(lengths.tolist()):
        text = tokens[row, PADDING : PADDING + length].tolist()
        assert found[row].tolist() == by_hand(text, 6)


def by_hand(text: list[int], count: int) -> list[int]:
    for size in range(min(LONGEST, len(text) - 1), 0, -1):
        for end in range(len(text) - 1, size - 1, -1):
            if text[end - size : end] == text[-size:]:
                period = len(text) - end
                return [text[end + place % period] for place in range(count)]
    return [text[-1]] * count


def generate(loaded: LoadedModel, **settings: Any) -> list[Generation]:
    spec = GenerateSpec(kind="generate", **settings)
    return LocalGenerator(loaded, spec, Run(ModelPool("cpu"))).generate(PROMPTS)


def said(generations: list[Generation]) -> list[tuple[str, list[int], str]]:
    return [(one.text, one.tokens, one.finish_reason) for one in generations]


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox", "gpt2"])
@pytest.mark.parametrize("settings", [{}, SAMPLED], ids=["greedy", "sampled"])
def test_answers_are_those_of_plain_decoding(
    models: dict[str, Path], architecture: str, settings: dict[str, Any]
) -> None:
    loaded = ModelPool("cpu").causal_lm(str(models[architecture]))
    assert passes_for(loaded) is PaddedPasses
    plain = generate(loaded, **settings)
    assert all((one.passes, one.drafted) == (len(one.tokens), 0) for one in plain)
    for tokens in (1, 3, 31):
        for batch_tokens in (1, 200, 16384):
            drafted = generate(loaded, draft_tokens=tokens, batch_tokens=batch_tokens, **settings)
            assert said(drafted) == said(plain)
            assert all(one.passes <= len(one.tokens) for one in drafted)
            assert all(one.drafted == tokens * (one.passes - 1) for one in drafted)


def test_what_the_answer_copies_takes_a_pass_for_every_eight_tokens(models: dict[str, Path]) -> None:
    """As from the original of a compressed prompt."""
    loaded = ModelPool("cpu").causal_lm(str(models["llama"]))

    def one(copied: list[int], **settings: Any) -> Generation:
        generator = LocalGenerator(loaded, GenerateSpec(kind="generate", **settings), Run(ModelPool("cpu")))
        return generator.generate([Prompt(PROMPTS[0].ids, 140, copied=copied)])[0]

    for settings in ({}, SAMPLED):
        plain = one([], **settings)
        drafted = one([3, 4, *plain.tokens, 5], draft_tokens=7, **settings)
        assert drafted.tokens == plain.tokens and len(set(plain.tokens)) > 80
        assert drafted.passes < 140 / 8 + 4


def test_a_stage_drafts_from_the_original_of_a_compressed_prompt(models: dict[str, Path]) -> None:
    """The columns say how much that saved; the answer is the same."""
    folder, run = str(models["llama"]), Run(ModelPool("cpu"))

    def rows(original: str, **settings: Any) -> list[dict[str, Any]]:
        stage = {"kind": "generate", "max_new_tokens": 100, "chat": False, **settings}
        job = JobSpec.model_validate({"input": {"path": "x"}, "target": {"model": folder}, "stages": [stage]})
        parts = PromptParts(contexts=(original,))
        document = Document(0, "0", parts, "same", fields={"compressed": "How many clips did she sell?"})
        return [outcome.fields for outcome in build(job, 0).run([document], run) if isinstance(outcome, Result)]

    (plain,) = rows("x")
    (elsewhere,), (copied,) = (rows(one, draft_tokens=7) for one in ("x", plain["generated"]))
    assert plain["generated"] == elsewhere["generated"] == copied["generated"]
    assert (plain["target_passes"], plain["tokens_drafted"], plain["tokens_accepted"]) == (100, 0, 0)
    assert copied["tokens_accepted"] > elsewhere["tokens_accepted"] + 20
    assert copied["target_passes"] + copied["tokens_accepted"] == copied["tokens_generated"] == 100
    assert copied["tokens_drafted"] == 7 * (copied["target_passes"] - 1)


def test_drafts_change_nothing_that_is_hashed() -> None:
    one, other = (GenerateSpec(kind="generate", draft_tokens=tokens) for tokens in (0, 7))
    assert one.output_settings() == other.output_settings()
