"""Small random models that load by folder name, and what the tests of this folder share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma3TextConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
)

from pipeline.stages import Outcome, Result, Stage, build
from schemas.compress import compress_tag
from schemas.document import Document, PromptParts
from schemas.job import JobSpec
from schemas.stage import SPECS

WORDS = (
    "Question: Sam bought 12 boxes with 30 pens each, then sold 5 boxes at $3 per box.\n"
    "Let's think step by step. He bought 12*30=360 pens in all; the answer is 115.\n\n"
    "def area(width, height):\n    return width * height  # the product\n"
    '{"name": "Ada", "born": 1815, "tags": ["math", "code"]}\n'
    "The quick brown fox jumps over the lazy dog while many small rivers run to the sea. "
) * 3 + "a" * 64


KINDS = ("llama", "mistral", "gemma3")
"""Architectures: full attention; a sliding window everywhere; one in every other layer, and capped logits."""

SCALED = ("granite", "cohere")
"""Architectures that scale logits after their last layer."""


def tokenizer_of(vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE with single digits, trained on ``WORDS``; BOS and padding are ``<s>``."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(
        [WORDS],
        trainers.BpeTrainer(
            vocab_size=vocabulary, initial_alphabet=alphabet, special_tokens=["<s>"], show_progress=False
        ),
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", pad_token="<s>")


def save_model(folder: Path, kind: str = "llama", vocabulary: int = 500, window: int = 256) -> str:
    """A random model under ``folder``; its weights are wide enough to have opinions. Returns the name to load it by."""
    tokenizer = tokenizer_of(vocabulary)
    common: dict[str, Any] = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": window, "initializer_range": 0.3,
        "tie_word_embeddings": False, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
    }  # fmt: skip
    made = {
        "llama": lambda: LlamaConfig(**common),
        "mistral": lambda: MistralConfig(**common, sliding_window=24),
        "gemma3": lambda: Gemma3TextConfig(
            **common, head_dim=8, sliding_window=24, layer_types=["sliding_attention", "full_attention"],
            query_pre_attn_scalar=8, final_logit_softcapping=3.0,
        ),
        "granite": lambda: GraniteConfig(**common, logits_scaling=8.0),
        "cohere": lambda: CohereConfig(**common, logit_scale=0.0625),
    }  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(made[kind]())
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


TOKENIZERS = ("words", "unigram", "wordpiece")
"""Other kinds: three digits and leading punctuation in a token; white space and case lost, characters replaced."""


def save_tokenizer(folder: Path, kind: str) -> str:
    """A tokenizer without a model, trained on ``WORDS``. Returns the name to load it by."""
    special = ["[UNK]", "[PAD]"]
    options: dict[str, Any] = {"special_tokens": special, "show_progress": False}
    if kind == "words":
        inner = Tokenizer(models.BPE())
        words = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        inner.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(words), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
        )
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer: trainers.Trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, **options)
    elif kind == "unigram":
        inner = Tokenizer(models.Unigram())
        inner.normalizer, inner.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=200, unk_token="[UNK]", **options)
    else:
        inner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        inner.normalizer, inner.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=400, **options)
    inner.train_from_iterator([WORDS], trainer)
    PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(folder)
    return str(folder)


def document(parts: PromptParts, seq: int = 0) -> Document:
    """A document of these parts."""
    return Document(seq, str(seq), parts, parts.content_hash())


def stage_of(model: str, target: str | None = None, **settings: Any) -> Stage:
    """The compress stage over ``model``, for prompts counted by ``target`` (default: the same)."""
    stage = {"kind": "compress", "device": "cpu", **settings}
    spec = SPECS.get(compress_tag(stage))
    if spec is None or "model" in spec.model_fields:
        stage = {"model": model, **stage}
    job = {"input": {"path": "x"}, "target": {"model": target or model}, "stages": [stage]}
    return build(JobSpec.model_validate(job), 0)


Compressing = Callable[..., list[Outcome]]


def text_of(outcome: Outcome) -> str:
    """The compressed text; a refusal fails the test and says why."""
    assert isinstance(outcome, Result), outcome
    text = outcome.fields["compressed"]
    assert isinstance(text, str)
    return text
