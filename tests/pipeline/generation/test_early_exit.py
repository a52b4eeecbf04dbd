"""The first layers of a target draft for it: they share its weights, and change no answer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import row_by_row  # noqa: F401  the kernels of packed passes
import torch

from pipeline.generation import decoding
from pipeline.generation.decoding import passes_for
from pipeline.generation.early_exit import early_exit
from pipeline.generation.local import Generation, LocalGenerator
from pipeline.generation.prompts import Prompt
from pipeline.models import LoadedModel, ModelError, ModelPool
from pipeline.passes import recorded
from pipeline.passes.packed import PackedPasses
from pipeline.stages import Result, Run, build, check
from schemas.document import Document, PromptParts
from schemas.job import JobSpec
from schemas.stage import GenerateSpec

PROMPTS = [Prompt(list(range(3, 3 + length)), 30, seed=length) for length in (9, 40, 2)]


def generate(loaded: LoadedModel, drafters: Sequence[LoadedModel] = (), **settings: Any) -> list[Generation]:
    spec = GenerateSpec(kind="generate", drafters=[one.ref.name for one in drafters], **settings)
    return LocalGenerator(loaded, spec, Run(ModelPool("cpu")), drafters).generate(PROMPTS)


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox", "gpt2"])
@pytest.mark.parametrize("settings", [{}, {"temperature": 0.8, "top_p": 0.9}], ids=["greedy", "sampled"])
def test_answers_are_those_of_the_whole(models: dict[str, Path], architecture: str, settings: dict[str, Any]) -> None:
    loaded = ModelPool("cpu").causal_lm(str(models[architecture]))
    first = early_exit(loaded, 1)
    assert early_exit(loaded, 1) is first and first.ref.name == "layers:1" and first.ref.digest != loaded.ref.digest
    plain = generate(loaded, **settings)
    for plan in ({"draft_rounds": (3,)}, {"draft_tokens": "auto"}):
        found = generate(loaded, [first], **plan, **settings)
        assert [one.tokens for one in found] == [one.tokens for one in plain]
        assert plan.get("draft_tokens") or all(one.drafts["layers:1"].passes for one in found)


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")  # inductor's own
def test_compiled_layers_stay_so_for_both(models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """In packed passes; the whole says what it said before its first layers were made a model of their own."""
    torch._dynamo.reset()
    monkeypatch.setattr(decoding, "_worth_packing", lambda loaded: True)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    monkeypatch.setattr(recorded, "RECORDERS", {})
    loaded = ModelPool("cpu").causal_lm(str(models["llama"]))
    assert passes_for(loaded) is PackedPasses
    plain = [one.tokens for one in generate(loaded)]
    first = early_exit(loaded, 1)
    assert passes_for(first) is PackedPasses
    assert [one.tokens for one in generate(loaded, [first], draft_rounds=(2,))] == plain
    assert [one.tokens for one in generate(loaded)] == plain


@torch.inference_mode()
def test_it_is_the_model_cut_off(models: dict[str, Path]) -> None:
    loaded = ModelPool("cpu").causal_lm(str(models["llama"]))
    model: Any = loaded.model
    ids = torch.tensor([PROMPTS[1].ids])
    states = model(input_ids=ids, output_hidden_states=True).hidden_states
    first: Any = early_exit(loaded, 1).model
    expected = model.lm_head(model.model.norm(states[1]))
    assert torch.allclose(first(input_ids=ids, use_cache=False).logits, expected, atol=1e-5)
    mine, whole = ({one.data_ptr() for one in some.parameters()} for some in (first, model))
    assert mine < whole
    assert len(model.model.layers) == model.config.num_hidden_layers == 2


def test_by_its_name_in_a_job(models: dict[str, Path]) -> None:
    def job(drafter: str) -> JobSpec:
        stage = {"kind": "generate", "max_new_tokens": 20, "chat": False, "drafters": [drafter]}
        target = {"model": str(models["llama"])}
        return JobSpec.model_validate({"input": {"path": "x"}, "target": target, "stages": [stage]})

    check(job("layers:1"))
    with pytest.raises(ModelError, match=r"layers:2 cannot draft for .*, which has 2 layers: name fewer"):
        check(job("layers:2"))
    with pytest.raises(ModelError, match="drafters: layers:0 is none: layers:N are the target's own first N layers"):
        check(job("layers:0"))
    document = Document(0, "0", PromptParts(contexts=("one two three four",)), "h")
    (outcome,) = build(job("layers:1"), 0).run([document], Run(ModelPool("cpu")))
    assert isinstance(outcome, Result)
    assert [one["model"] for one in outcome.fields["drafts"]][1:] == ["max-gram", "layers:1"]
