"""The autoencoder: one frozen model that reads with low-rank weights and writes without."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModelForCausalLM,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GraniteConfig,
    PhiConfig,
    PreTrainedTokenizerFast,
)

from pipeline.memory import lowrank
from pipeline.memory.autoencoder import TAGS, Autoencoder
from pipeline.memory.head_loss import Teacher, nats_of
from pipeline.memory.lowrank import LowRank, Switch
from pipeline.memory.packing import pack, unpack
from pipeline.memory.target import check_head, start_of
from pipeline.models import LoadedModel, ModelError
from schemas.memory import EncoderSpec

KINDS: dict[str, dict[str, Any]] = {
    "interleaved": {"layout": "interleaved", "rank": 8},
    "appended": {"layout": "appended", "rank": 8, "slots": 6, "targets": ("q_proj", "v_proj")},
    "pooled": {"layout": "pooled", "rank": 8},
    "whole": {"layout": "interleaved", "rank": 0},
}


def made(base: LoadedModel, kind: str) -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(copy.deepcopy(base.model), EncoderSpec(**KINDS[kind]))


def spans(rows: int = 3, tokens: int = 13) -> torch.Tensor:
    return torch.randint(3, 900, (rows, tokens), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_is_encoded_as_it_is_alone_and_at_the_size_of_embeddings(base: LoadedModel, kind: str) -> None:
    coder, ids = made(base, kind), spans()
    coder.resize(coder.encode(ids, 4))
    found = coder.encode(ids, 4)
    assert found.shape == (3, 4, base.model.config.hidden_size)
    torch.testing.assert_close(found[1:2], coder.encode(ids[1:2], 4))
    sizes = found.square().mean().sqrt(), coder.embed.weight.square().mean().sqrt()
    torch.testing.assert_close(*sizes)
    some = found.flatten(0, 1).repeat(400, 1)
    coder.describe(some)
    mean, deviation = coder.typical
    left = (some - mean) / deviation
    torch.testing.assert_close(left.mean(0), torch.zeros_like(mean), atol=0.02, rtol=0)
    torch.testing.assert_close(left.square().mean(0), torch.ones_like(mean), atol=0.02, rtol=0)


@pytest.mark.parametrize(("number", "same"), [(1, 0), (2, 0), (4, 0), (64, 1)])
def test_few_slots_and_numbers_that_hardly_varied_leave_bits_for_the_others(
    base: LoadedModel, number: int, same: int
) -> None:
    """By what was seen alone 98% of slots were lost in int4 after two, and 35% by one number that was constant."""
    coder, random = made(base, "interleaved"), torch.Generator().manual_seed(3)
    shown, stored = (torch.randn(rows, base.model.config.hidden_size, generator=random) for rows in (number, 50))
    shown[:, :same] = 0.5
    coder.describe(shown)
    lost = (unpack(pack(stored, coder.common, "int4", 64)) - stored).norm() / stored.norm()
    assert lost < 0.25


def test_what_is_typical_is_what_float16_has(base: LoadedModel) -> None:
    coder = made(base, "interleaved")
    for size in (0.0, 1e-9, 1e6):
        coder.describe(torch.randn(20, base.model.config.hidden_size) * size + size)
        assert coder.typical.isfinite().all() and (coder.typical[1] > 0).all()


@pytest.mark.parametrize("kind", ["interleaved", "whole"])
def test_a_slot_knows_nothing_of_what_comes_after_it(base: LoadedModel, kind: str) -> None:
    coder, ids = made(base, kind), spans(1, 12)
    other = ids.clone()
    other[0, 6:] += 1
    one, two = coder.encode(ids, 4), coder.encode(other, 4)
    torch.testing.assert_close(one[:, :2], two[:, :2])
    assert not torch.allclose(one[:, 2:], two[:, 2:])


@pytest.mark.parametrize("kind", KINDS)
def test_the_decoder_is_the_frozen_model(base: LoadedModel, kind: str) -> None:
    """Its states behind slots are those of the model as it came, whatever was learned."""
    coder, ids = made(base, kind), spans()
    for name, one in coder.trained().items():
        assert one.dtype == torch.float32, name
        torch.nn.init.normal_(one, 0.0, 0.1)
    slots, tags = coder.encode(ids, 4).detach(), torch.tensor([0, 1, 2])
    words = base.model.get_input_embeddings()(ids[:, :-1])
    inputs = torch.cat([coder.first.expand(3, 1, -1), slots, coder.tags[tags][:, None], words], 1)
    expected = base.model.get_decoder()(inputs_embeds=inputs).last_hidden_state[:, 5:]
    found = coder.states(slots, tags, ids)
    torch.testing.assert_close(found, expected)
    frozen = {name for name, one in coder.named_parameters() if not one.requires_grad}
    assert {name for name in frozen if name.startswith("model.")} and not any(one.grad for one in coder.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_all_that_is_trained_gets_a_gradient_and_nothing_else(base: LoadedModel, kind: str) -> None:
    coder, ids = made(base, kind), spans()
    if coder.switch:
        for one in (one for name, one in coder.trained().items() if name.endswith("lora_B")):
            torch.nn.init.normal_(one, 0.0, 0.1)  # at 0 they let no gradient through to A
    head = coder.model.get_output_embeddings().weight
    nats_of(coder.states(coder.encode(ids, 4), torch.tensor([0, 1, 2]), ids), head, ids).mean().backward()  # type: ignore[no-untyped-call]
    without = {name for name, one in coder.trained().items() if one.grad is None or not one.grad.any()}
    assert without <= {"memory", "encoder.embed_tokens.weight"} and (kind == "pooled" or "memory" not in without)
    assert all(one.grad is None for one in coder.parameters() if not one.requires_grad)
    assert len(TAGS) == len(coder.tags)


@pytest.mark.parametrize("half", [False, True])
def test_low_rank_weights_add_the_same_with_gradients_and_without(half: bool) -> None:
    torch.manual_seed(0)
    layer = LowRank(torch.nn.Linear(24, 40), 4, 2.0, Switch(on=True))
    torch.nn.init.normal_(layer.lora_B)
    given = torch.randn(3, 5, 24)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        learning = layer(given)
        with torch.inference_mode():
            found = layer(given)
    bound = 0.05 if half else 1e-5
    assert found.dtype == learning.dtype == (torch.bfloat16 if half else torch.float32)
    torch.testing.assert_close(found, learning, rtol=bound, atol=bound)
    plain = layer.linear(given)
    assert (learning.float() - plain).abs().max() > 1


SMALL = {"vocab_size": 100, "initializer_range": 0.25}
LAYERS = {"num_hidden_layers": 1, "num_attention_heads": 4, "hidden_size": 32}
OTHERS: dict[str, Any] = {
    "layers that lie the other way round": GPT2Config(n_embd=32, n_layer=1, n_head=4, **SMALL),
    "linear layers of its own": FalconConfig(**LAYERS, **SMALL),
    "embeddings larger than in their table": Gemma3TextConfig(
        **LAYERS, intermediate_size=48, num_key_value_heads=2, head_dim=8, **SMALL
    ),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_models_of_other_makes(kind: str) -> None:
    """An encoder of all of their layers, which learns, and whose slots have the size of what the model reads."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(OTHERS[kind]).eval()
    ids = torch.randint(3, 90, (3, 12))
    with torch.inference_mode():
        expected = model(input_ids=ids).logits
    coder = Autoencoder(model, EncoderSpec(rank=4))
    coder.resize(coder.encode(ids, 3))
    words = coder.embed(ids).square().mean().sqrt()
    assert 0.8 < coder.encode(ids, 3).square().mean().sqrt() / words < 1.25
    assert 0.8 < coder.tags.square().mean().sqrt() / words < 1.25
    states = coder.states(coder.encode(ids, 3), torch.zeros(3, dtype=torch.int64), ids)
    nats_of(states, model.get_output_embeddings().weight, ids).mean().backward()  # type: ignore[no-untyped-call]
    layers = [one for one in model.modules() if isinstance(one, LowRank)]
    assert len(layers) >= 4 and all(one.lora_B.grad is not None and one.lora_B.grad.any() for one in layers)
    with torch.inference_mode():
        torch.testing.assert_close(model(input_ids=ids).logits, expected)


MORE: dict[str, Any] = {
    "capped": Gemma2Config(
        **LAYERS, intermediate_size=48, num_key_value_heads=2, head_dim=8, final_logit_softcapping=30.0, **SMALL
    ),
    "scaled": GraniteConfig(**LAYERS, intermediate_size=48, logits_scaling=8.0, **SMALL),
    "with a bias": PhiConfig(**LAYERS, intermediate_size=48, **SMALL),
}


@pytest.mark.parametrize("kind", MORE)
def test_a_model_that_says_more_than_its_head_is_told(kind: str) -> None:
    """All losses would be those of another distribution."""
    model = AutoModelForCausalLM.from_config(MORE[kind]).eval()
    with pytest.raises(ModelError, match=r"this one .*says more of a token than its head times a state"):
        check_head(model, "this one")


def test_a_model_that_says_no_more_is_not(base: LoadedModel) -> None:
    """Nor one whose weights are no numbers: others say so."""
    check_head(base.model, "this one")
    broken = copy.deepcopy(base.model)
    with torch.no_grad():
        next(broken.parameters()).fill_(float("nan"))
    check_head(broken, "this one")


def test_text_is_read_behind_what_any_text_starts_with(base: LoadedModel) -> None:
    """As the tokenizer has it: nothing, or a BOS, whatever stands behind the text."""
    inner = Tokenizer.from_str(base.tokenizer.backend_tokenizer.to_str())
    inner.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    assert start_of(PreTrainedTokenizerFast(tokenizer_object=inner)) == [1] and start_of(base.tokenizer) == []
    ids = torch.randint(3, 900, (2, 9))
    plain, behind = (Autoencoder(copy.deepcopy(base.model), EncoderSpec(rank=4), start) for start in ((), (1,)))
    with torch.inference_mode():
        expected = plain.text_states(torch.cat([torch.ones(2, 1, dtype=torch.long), ids], 1))[:, 1:]
        torch.testing.assert_close(behind.text_states(ids), expected)
        assert not torch.allclose(plain.text_states(ids), expected, atol=1e-3)
    assert "start" not in behind.kept() and "start" not in behind.state_dict()


@pytest.mark.parametrize("half", [False, True])
def test_merged_weights_learn_the_same(half: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layer = LowRank(torch.nn.Linear(24, 40).requires_grad_(False), 4, 2.0, Switch(on=True))
    torch.nn.init.normal_(layer.lora_B)
    given, told = torch.randn(3, 5, 24, requires_grad=True), torch.randn(3, 5, 40)
    seen = []
    for merged in (False, True):
        monkeypatch.setattr(lowrank, "pays", lambda given, merged=merged: merged)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            found = layer(given)
        slopes = torch.autograd.grad((found.float() * told).sum(), [given, layer.lora_A, layer.lora_B])
        seen.append([found.detach().float(), *slopes])
    bound = 0.1 if half else 1e-4
    for one, other in zip(*seen, strict=True):
        torch.testing.assert_close(one, other, rtol=bound, atol=bound * float(other.detach().abs().max()))
    assert seen[1][2].abs().max() > 0.1 and seen[1][3].abs().max() > 0.1


def test_a_layer_that_is_not_there_is_said(base: LoadedModel) -> None:
    with pytest.raises(ValueError, match="no linear layer is called nowhere"):
        Autoencoder(copy.deepcopy(base.model), EncoderSpec(targets=("nowhere",)))


@pytest.mark.parametrize("share", [None, 0.0, 0.3, 1.0])
def test_the_loss_of_a_few_rows_at_a_time_is_cross_entropy(
    share: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a teacher, with a distribution that is its own for that share."""
    monkeypatch.setattr("pipeline.memory.head_loss.ROWS", 4)
    torch.manual_seed(0)
    head, targets = torch.randn(50, 8), torch.randint(50, (2, 5))
    weights, taught = torch.rand(2, 5), torch.randn(2, 5, 8)
    ours, theirs = (torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(2)).requires_grad_() for _ in range(2))
    found = nats_of(ours, head, targets, teacher=None if share is None else Teacher(taught, share))
    told = torch.nn.functional.one_hot(targets, 50).float()
    if share is not None:
        told = (1 - share) * told + share * (taught @ head.T).softmax(-1)
    expected = torch.nn.functional.cross_entropy(
        (theirs @ head.T).flatten(0, 1), told.flatten(0, 1), reduction="none"
    ).view(2, 5)
    torch.testing.assert_close(found, expected)
    slopes = torch.autograd.grad((found * weights).sum(), ours)
    torch.testing.assert_close(slopes, torch.autograd.grad((expected * weights).sum(), theirs))
