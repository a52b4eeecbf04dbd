"""Token classifiers by name: what is none is refused, and says what would be one."""

from __future__ import annotations

import json
import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    MPNetConfig,
    MPNetForTokenClassification,
    PreTrainedTokenizerFast,
)

from pipeline.models import (
    ModelError,
    ModelPool,
    ModelRef,
    check_causal,
    check_classifier,
    check_target,
    is_encoder_decoder,
)
from pipeline.models.mpnet import with_fused_attention
from pipeline.stages import build
from schemas.job import JobSpec
from schemas.settings import Settings


@pytest.fixture
def encoder(tmp_path: Path, folder: Path) -> Path:
    """A random BERT with a head of two labels."""
    return _save(tmp_path / "encoder", folder, BertForTokenClassification)


@pytest.fixture
def pool(settings: Settings) -> ModelPool:
    return ModelPool("cpu", settings=settings)


def _save(target: Path, tokenizer_of: Path, kind: Any, **options: Any) -> Path:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tokenizer_of)
    tokenizer.save_pretrained(target)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=40, **options,
    )  # fmt: skip
    torch.manual_seed(0)
    kind(config).save_pretrained(target)
    return target


def test_it_is_ready_for_inference_and_kept(encoder: Path, pool: ModelPool) -> None:
    loaded = pool.token_classifier(str(encoder))
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert loaded.window == 40
    assert pool.token_classifier(str(encoder)) is loaded
    half = pool.token_classifier(str(encoder), "bfloat16").model
    assert half.dtype == torch.bfloat16
    assert half.classifier.weight.dtype == torch.float32


def test_a_tokenizer_of_fewer_tokens_bounds_the_window(encoder: Path, pool: ModelPool) -> None:
    path = encoder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": 32}))
    assert pool.token_classifier(str(encoder)).window == 32


def test_a_causal_lm_is_no_token_classifier(folder: Path, pool: ModelPool) -> None:
    with pytest.raises(ModelError, match=r"is a causal LM without a head .*Llama.*llmlingua2-minilm"):
        pool.token_classifier(str(folder))


def test_a_token_classifier_is_no_causal_lm(encoder: Path, pool: ModelPool) -> None:
    with pytest.raises(ModelError, match=r"is a token classifier.*llmlingua2"):
        pool.causal_lm(str(encoder))


def test_an_encoder_without_a_head_gets_no_random_one(tmp_path: Path, folder: Path, pool: ModelPool) -> None:
    bare = _save(tmp_path / "bare", folder, BertModel)
    with pytest.raises(ModelError, match=r"is a model without a head .*BertModel.*llmlingua2-minilm"):
        pool.token_classifier(str(bare))
    config = json.loads((bare / "config.json").read_text())
    del config["architectures"]  # nothing says what it is: its tensors do
    (bare / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"classifier\.(bias|weight).*llmlingua2-minilm"):
        pool.token_classifier(str(bare))


def test_a_lost_tensor_is_not_made_up(encoder: Path, pool: ModelPool) -> None:
    weights = load_file(encoder / "model.safetensors")
    del weights["bert.encoder.layer.0.output.dense.weight"]
    save_file(weights, encoder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"1 tensors .* missing .*output\.dense\.weight"):
        pool.token_classifier(str(encoder))


def test_three_labels_are_not_remove_and_keep(tmp_path: Path, folder: Path, pool: ModelPool) -> None:
    tagger = _save(tmp_path / "tagger", folder, BertForTokenClassification, num_labels=3)
    with pytest.raises(ModelError, match="3 labels, but remove and keep are two"):
        pool.token_classifier(str(tagger))


def test_an_unknown_architecture_says_so(encoder: Path, pool: ModelPool, tmp_path: Path) -> None:
    shutil.copytree(encoder, tmp_path / "odd")
    config = json.loads((encoder / "config.json").read_text()) | {"model_type": "no-such-thing"}
    (tmp_path / "odd" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"cannot load .* as a token classifier"):
        pool.token_classifier(str(tmp_path / "odd"))


def test_mpnets_fused_attention_gives_what_its_own_gives() -> None:
    torch.manual_seed(0)
    config = MPNetConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        initializer_range=0.3,
    )  # fmt: skip
    own = MPNetForTokenClassification(config).eval()
    fused = deepcopy(own)
    with_fused_attention(fused)
    ids, seen = torch.randint(2, 50, (3, 200)), torch.arange(200) < torch.tensor([[200], [7], [130]])
    with torch.inference_mode():
        for mask in (None, seen):
            expected, found = (one(input_ids=ids, attention_mask=mask).logits for one in (own, fused))
            counts = seen if mask is not None else slice(None)
            torch.testing.assert_close(found[counts], expected[counts], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (BertModel, r"BertModel\) is no causal LM: name one whose config says ForCausalLM"),
        (BertForMaskedLM, r"BertForMaskedLM\) is no causal LM"),
        (BertForTokenClassification, r"is a token classifier, which predicts no next token.*llmlingua2"),
        (BertForSequenceClassification, r"BertForSequenceClassification\) is no causal LM"),
    ],
)
def test_what_predicts_no_next_token_is_refused_before_anything_is_queued(
    tmp_path: Path, folder: Path, kind: Any, says: str
) -> None:
    """The stages' identities are asked for when a job is submitted."""
    other = str(_save(tmp_path / "other", folder, kind))
    stages: list[dict[str, Any]] = [
        {"kind": "compress", "method": "llmlingua", "rate": 0.5, "model": other},
        {"kind": "compress", "fidelity": "reference", "model": other},
        {"kind": "generate"},
    ]
    for stage in stages:
        with pytest.raises(ModelError, match=says):
            build(job(stage, other), 0).identity()


@pytest.mark.parametrize(
    ("config", "causal"),
    [
        ({"model_type": "xlm-roberta", "architectures": ["XLMRobertaModel"]}, False),
        ({"model_type": "xlm-roberta", "architectures": ["XLMRobertaForCausalLM"]}, True),
        ({"model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True}, False),
        ({"model_type": "bart", "architectures": ["BartModel"], "is_encoder_decoder": True}, False),
        ({"model_type": "bart", "architectures": ["BartForCausalLM"], "is_encoder_decoder": False}, True),
        ({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}, True),
        ({"model_type": "of-its-own"}, True),
    ],
)
def test_what_a_config_says_decides(tmp_path: Path, config: dict[str, Any], causal: bool) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    ref = ModelRef("m", tmp_path, "0" * 64)
    if causal:
        check_causal(ref)
        return
    with pytest.raises(ModelError, match="is no causal LM"):
        check_causal(ref)
    assert is_encoder_decoder(ref) == (config["model_type"] == "t5")
    if is_encoder_decoder(ref):
        check_target(ref)
    else:
        with pytest.raises(ModelError, match="is no causal LM"):
            check_target(ref)
    with pytest.raises(ModelError, match="m is a model without a head for token classification"):
        check_classifier(ref)


def test_a_causal_lm_is_refused_as_a_classifier_before_anything_is_queued(folder: Path) -> None:
    stage = {"kind": "compress", "method": "llmlingua2", "rate": 0.5, "model": str(folder)}
    with pytest.raises(ModelError, match="is a causal LM without a head"):
        build(job(stage, str(folder)), 0).identity()


def job(stage: dict[str, Any], target: str) -> JobSpec:
    raw = {"name": "n", "input": {"path": ["a"]}, "output": {"path": "b"}, "target": {"model": target}}
    return JobSpec.model_validate({**raw, "stages": [stage]})
