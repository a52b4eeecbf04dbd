"""Small random models say what transformers' greedy ``generate`` says, whoever drafts, 1 to 33 of them at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from other_models import save_other
from tiny_models import save_tiny_llama
from transformers import GenerationConfig

from pipeline.generation.decoding import passes_for
from pipeline.generation.early_exit import early_exit
from pipeline.generation.generated import no_defaults
from pipeline.generation.local import LocalGenerator
from pipeline.generation.prompts import Prompt
from pipeline.models import LoadedModel, ModelPool
from pipeline.stages import Run
from schemas.stage import GenerateSpec

NEW = 10
PROMPTS = [
    Prompt(
        torch.randint(3, 300, (1 + 7 * at % 40,), generator=torch.Generator().manual_seed(at)).tolist(), NEW - at % 4
    )
    for at in range(33)
]
PLANS: list[tuple[list[int], dict[str, Any]]] = [
    ([], {}),
    ([], {"draft_tokens": 7}),
    ([1], {"draft_rounds": (3,)}),  # its own first layer
    ([2], {"draft_rounds": (2,), "draft_tokens": 2, "draft_tail": 2}),  # a relative
    ([2, 1], {"draft_rounds": (2, 2), "draft_tokens": 1, "draft_lenience": 10.0}),
    ([2, 1], {"draft_matrix": ((2, 1, 2), (1, 1), (2,)), "draft_lenience": "auto"}),
    ([2, 1, 1], {"draft_rounds": (1, 2, 2), "draft_tokens": 1}),
]


def save(folder: Path, kind: str, seed: int) -> Path:
    return save_tiny_llama(folder, seed, 160) if kind == "llama" else save_other(folder, kind, seed)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt_neox"])
def test_whoever_drafts_and_however_many_there_are(kind: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    pool = ModelPool("cpu", limit=2)
    target, other = (pool.causal_lm(str(save(tmp_path_factory.mktemp(kind), kind, seed))) for seed in (1, 2))
    models = [target, early_exit(target, 1), other]
    expected = [reference(target, one) for one in PROMPTS]
    assert passes_for(target) and len({token for one in expected for token in one}) >= 50
    drafted = 0
    for rows in range(1, len(PROMPTS) + 1):
        which, plan = PLANS[rows % len(PLANS)]
        spec = GenerateSpec(kind="generate", drafters=["x"] * len(which), **plan)
        drafters = [models[one] for one in which]
        found = LocalGenerator(target, spec, Run(pool), drafters).generate(PROMPTS[-rows:])
        assert [one.tokens for one in found] == expected[-rows:], (rows, plan)
        drafted += sum(one.drafted for one in found)
    assert drafted > 1000


def reference(loaded: LoadedModel, prompt: Prompt) -> list[int]:
    ids = torch.tensor([prompt.ids])
    config = GenerationConfig(max_new_tokens=prompt.new_tokens, eos_token_id=2, pad_token_id=0)
    with no_defaults(loaded.model), torch.inference_mode():
        made = loaded.model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
    tokens: list[int] = made[0, ids.shape[1] :].tolist()
    return tokens
