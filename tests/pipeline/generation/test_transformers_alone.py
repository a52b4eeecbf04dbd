"""Models that only transformers can read answer as targets, plainly, one like many, and say so; nothing else is let
read them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import save_tiny_llama, save_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from pipeline.generation.decoding import passes_for
from pipeline.generation.generated import minds_company, no_defaults
from pipeline.generation.local import Generation, LocalGenerator
from pipeline.generation.prompts import Prompt
from pipeline.models import LoadedModel, ModelError, ModelPool
from pipeline.stages import Result, Run, build
from schemas.document import Document, PromptParts
from schemas.job import JobSpec
from schemas.stage import GenerateSpec

SIZES: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 2}
KINDS: dict[str, dict[str, Any]] = {
    "mamba": {**SIZES, "state_size": 8},
    "mamba2": {**SIZES, "state_size": 16, "num_heads": 8, "head_dim": 16, "n_groups": 2, "chunk_size": 32},
    "rwkv": {**SIZES, "attention_hidden_size": 64, "context_length": 160},
    "gemma2": {
        **SIZES, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 128,
        "sliding_window": 32,
    },
    "gptj": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 160, "rotary_dim": 8},
}  # fmt: skip
STATES = "cannot be taken back"
PROMPTS = [
    Prompt(torch.randint(3, 300, (length,), generator=torch.Generator().manual_seed(length)).tolist(), 16, length)
    for length in (9, 40, 2, 9, 23)
]


def save(folder: Path, kind: str) -> Path:
    """A random one, wide enough to have preferences."""
    config = AutoConfig.for_model(
        kind, vocab_size=save_tokenizer(folder), bos_token_id=1, eos_token_id=2, pad_token_id=0, **KINDS[kind]
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_config(config)
        for name, weight in model.named_parameters():
            weight.data *= 3 if weight.ndim == 2 and "embed" not in name else 1
        model.save_pretrained(folder)
    return folder


def reference(loaded: LoadedModel, prompt: Prompt) -> list[int]:
    ids = torch.tensor([prompt.ids])
    config = GenerationConfig(max_new_tokens=prompt.new_tokens, eos_token_id=2, pad_token_id=0)
    with no_defaults(loaded.model), torch.inference_mode():
        made = loaded.model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
    tokens: list[int] = made[0, ids.shape[1] :].tolist()
    return tokens


@pytest.mark.parametrize("kind", KINDS)
def test_they_answer_plainly_and_say_so(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pool = ModelPool("cpu")
    loaded = pool.target(str(save(tmp_path, kind)))
    expected = [reference(loaded, one) for one in PROMPTS]
    assert len({token for one in expected for token in one}) > 10

    def generate(**settings: Any) -> list[Generation]:
        return LocalGenerator(loaded, GenerateSpec(kind="generate", **settings), Run(pool)).generate(PROMPTS)

    for settings in ({}, {"batch_tokens": 1}, {"draft_tokens": 5}):
        found = generate(**settings)
        assert [one.tokens for one in found] == expected and not any(one.drafted for one in found)
    sampled = generate(temperature=0.8, top_p=0.9)
    assert [one.tokens for one in sampled] == [
        one.tokens for one in generate(temperature=0.8, top_p=0.9, batch_tokens=1)
    ]
    assert passes_for(loaded) is None and minds_company(loaded) is (kind == "rwkv")
    assert "writes by transformers' generate, at a fraction of the speed" in caplog.text and STATES in caplog.text
    assert "hence without drafts" in caplog.text


def test_nothing_else_reads_them(tmp_path: Path, models: dict[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    """As scorer, drafter or model to be trained one is refused: what our passes would make of it is something else."""
    mamba, pool = str(save(tmp_path, "mamba")), ModelPool("cpu")
    pool.target(mamba)
    for read in (pool.causal_lm, pool.own_copy):
        with pytest.raises(ModelError, match="it can answer as a job's target, and neither score nor draft"):
            read(mamba)
    stage = {"kind": "generate", "max_new_tokens": 9, "drafters": [mamba]}
    job = JobSpec.model_validate({"input": {"path": "x"}, "target": {"model": str(models["llama"])}, "stages": [stage]})
    with caplog.at_level(logging.WARNING):
        (outcome,) = build(job, 0).run([Document(0, "0", PromptParts(contexts=("x",)), "h")], Run(pool))
    assert (
        isinstance(outcome, Result) and "does not draft: " in caplog.text and "neither score nor draft" in caplog.text
    )


@pytest.mark.parametrize("times", [1e18, 1e36])
def test_a_model_that_prefers_no_token_stops_the_job(tmp_path: Path, times: float) -> None:
    """Its weights are numbers, and what becomes of them is none, or nothing: every answer would pass for one."""
    model = save_tiny_llama(tmp_path / "wild")
    loaded = ModelPool("cpu").own_copy(str(model))
    for weight in loaded.model.parameters():
        weight.data *= times
    loaded.model.save_pretrained(model)
    job = {"input": {"path": "x"}, "target": {"model": str(model)}, "stages": [{"kind": "generate"}]}
    documents = [Document(0, "0", PromptParts(contexts=("Some words.",)), "h")]
    with pytest.raises(ModelError, match="says of no token in float32 that it is likelier than another"):
        build(JobSpec.model_validate(job), 0).run(documents, Run(ModelPool("cpu")))
