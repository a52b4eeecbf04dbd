"""What a model is for, by its config: asked before any weight is read, so that the wrong kind is refused at once."""

from __future__ import annotations

from typing import Any

from pipeline.models.folder import read_json
from pipeline.models.ref import ModelError, ModelRef

TOKEN_CLASSIFIER = "ForTokenClassification"
CAUSAL = ("ForCausalLM", "LMHeadModel")
ENCODER_DECODER = ("ForConditionalGeneration", "MTModel")
OTHER_HEADS = ("MaskedLM", "SequenceClassification", "QuestionAnswering", "MultipleChoice", "PreTraining")
ENCODERS = ("bert", "mpnet", "roberta", "xlm-roberta", "electra", "deberta", "deberta-v2", "distilbert", "modernbert")
"""Families that transformers would give a random head as causal LMs: a folder of one states just its trunk."""

REMEDY = (
    "name a folder or hub id of an encoder fine-tuned for LLMLingua-2 (AutoModelForTokenClassification, labels remove "
    "and keep), or llmlingua2-minilm"
)


def check_classifier(ref: ModelRef) -> None:
    """``ModelError`` for what is no token classifier. A config that says nothing may be anything."""
    if ref.adapter is not None:
        raise ModelError(
            f"{ref.name}: an adapter belongs to a causal LM, and this is to be a token classifier; {REMEDY}"
        )
    stated, _ = _stated(ref)
    if stated and not any(one.endswith(TOKEN_CLASSIFIER) for one in stated):
        what = "a causal LM" if _is_causal(stated) else "a model"
        raise ModelError(f"{ref.name} is {what} without a head for token classification ({stated[0]}); {REMEDY}")


def check_causal(ref: ModelRef) -> None:
    """``ModelError`` for what predicts no next token. A config that says nothing may be anything."""
    stated, config = _stated(ref)
    if not stated or _is_causal(stated):
        return
    if any(one.endswith(TOKEN_CLASSIFIER) for one in stated):
        raise ModelError(
            f"{ref.name} is a token classifier, which predicts no next token: name a causal LM, "
            "or use method llmlingua2"
        )
    other = config.get("model_type") in ENCODERS or any(head in one for one in stated for head in OTHER_HEADS)
    if other or config.get("is_encoder_decoder"):
        raise ModelError(f"{ref.name} ({stated[0]}) is no causal LM: name one whose config says ForCausalLM")


def check_target(ref: ModelRef) -> None:
    """``ModelError`` for what writes no text: it is neither a causal LM nor an encoder-decoder with its head."""
    if not is_encoder_decoder(ref):
        check_causal(ref)


def is_encoder_decoder(ref: ModelRef) -> bool:
    """Whether it reads a text by one half and writes its answer by another."""
    stated, config = _stated(ref)
    return bool(config.get("is_encoder_decoder")) and any(one.endswith(ENCODER_DECODER) for one in stated)


def _is_causal(stated: list[str]) -> bool:
    return any(one.endswith(CAUSAL) for one in stated)


def _stated(ref: ModelRef) -> tuple[list[str], dict[str, Any]]:
    """Architectures of the config, and all of it."""
    config = read_json(ref.folder / "config.json")
    return [str(one) for one in config.get("architectures") or []], config
