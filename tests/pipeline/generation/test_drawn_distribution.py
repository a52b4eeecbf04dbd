"""Whoever drafts, samples follow the target's own distribution: 100,000 draws of the engine against what it gives."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pipeline.generation import local
from pipeline.generation.decoding import passes_for
from pipeline.generation.local import LocalGenerator
from pipeline.generation.prompts import Prompt
from pipeline.generation.sampling import warpers
from pipeline.models import LoadedModel, ModelPool
from pipeline.passes.padded import PaddedPasses
from pipeline.stages import Run
from schemas.stage import GenerateSpec

WORDS, ROWS, NEW = 6, 5_000, 20
PROMPT = [1, 4, 2]
SAMPLING: dict[str, Any] = {"temperature": 1.3, "top_k": 5, "top_p": 0.97}


def small(like: LoadedModel, seed: int) -> LoadedModel:
    """A random model of ``WORDS`` tokens."""
    config = LlamaConfig(
        vocab_size=WORDS, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=160, initializer_range=0.6, tie_word_embeddings=False,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).eval().requires_grad_(False)
    return replace(like, ref=replace(like.ref, name=f"small {seed}", digest=f"small {seed}"), model=model)


@torch.inference_mode()
def expected(loaded: LoadedModel, said: torch.Tensor, spec: GenerateSpec) -> torch.Tensor:
    """The chances of each token at every place of ``said`` ``[rows, NEW]``, float64 ``[rows, NEW, WORDS]``."""
    model, none = loaded.model, torch.zeros(0, dtype=torch.int64)
    texts = torch.cat([torch.tensor(PROMPT).expand(len(said), -1), said], 1)
    logits: torch.Tensor = model(texts).logits[:, len(PROMPT) - 1 : -1]
    scores: torch.Tensor = warpers(spec)(none, logits.flatten(0, 1))
    return scores.double().softmax(-1).view(*said.shape, WORDS)


def chi_square(said: torch.Tensor, chances: torch.Tensor) -> float:
    """By the token before: what came after each, against what was due behind the very texts that were there."""
    before = torch.cat([torch.full((ROWS, 1), PROMPT[-1]), said[:, :-1]], 1).flatten()
    seen, due = (torch.zeros(WORDS, WORDS, dtype=torch.float64) for _ in range(2))
    seen.index_add_(0, before, torch.nn.functional.one_hot(said.flatten(), WORDS).double())
    due.index_add_(0, before, chances.flatten(0, 1))
    told = due > 20
    assert told.sum() > 15 and seen.sum() == ROWS * NEW == 100_000
    return float(((seen - due)[told] ** 2 / due[told]).sum())


def test_100_000_draws_pass_a_chi_square_test(models: dict[str, Path]) -> None:
    """A drafter over copies, and copies behind it."""
    like = ModelPool("cpu").causal_lm(str(models["llama"]))
    loaded, drafter = small(like, 0), small(like, 1)
    assert passes_for(loaded) is passes_for(drafter) is PaddedPasses
    plan: dict[str, Any] = {"draft_tokens": 1, "draft_rounds": (2,), "draft_tail": 1, "draft_lenience": "auto"}
    spec = GenerateSpec(kind="generate", drafters=["x"], batch_tokens=2**17, **plan, **SAMPLING)
    with mock.patch.object(local, "end_tokens", lambda *_: frozenset()):
        generator = LocalGenerator(loaded, spec, Run(ModelPool("cpu")), [drafter])
        found = generator.generate([Prompt(PROMPT, NEW, seed) for seed in range(ROWS)])
    for name, least in (("max-gram", 2_000), ("small 1", 10_000)):
        assert sum(one.drafts[name].accepted for one in found) > least
    said = torch.tensor([one.tokens for one in found])
    chances = expected(loaded, said, spec)
    assert (chances.gather(-1, said[..., None]) > 0).all()
    assert chi_square(said, chances) < 62  # 1 in 1000 at 32 degrees of freedom, all there may be; seeds are fixed
    # What a little less heat would say, and what the drafter would, is told apart.
    assert chi_square(said, expected(loaded, said, spec.model_copy(update={"temperature": 1.25}))) > 62
    assert chi_square(said, expected(drafter, said, spec)) > 1000
