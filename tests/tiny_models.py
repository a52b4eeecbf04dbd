"""A real model small enough for any test: a random Llama with a byte-level BPE tokenizer, saved as safetensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CORPUS = Path(__file__).parent.parent / "examples" / "gsm8k.jsonl"


def lines() -> list[str]:
    """A few hundred lines of English with numbers: the contexts of the example corpus."""
    rows = [json.loads(row) for row in CORPUS.read_text(encoding="utf-8").splitlines()]
    return [line for row in rows for context in row["contexts"] for line in context.splitlines()]


def save_tokenizer(folder: Path, vocabulary: int = 1024) -> int:
    """Train a byte-level BPE tokenizer (any text comes back unchanged) and save it; returns its number of tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        lines(),
        trainers.BpeTrainer(
            vocab_size=vocabulary, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>", model_max_length=2048
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


def save_tiny_llama(folder: Path, seed: int = 0, window: int = 2048, layers: int = 2) -> Path:
    """Write model and tokenizer into ``folder``. Same seed, same weights.

    The usual initial spread (0.02) leaves a random model's choices all but even, so that rounding decides them: a
    wide one gives clear preferences that differ from text to text.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    vocabulary = save_tokenizer(folder)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=window,
        initializer_range=0.25,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def save_tiny_classifier(folder: Path, model: Path) -> Path:
    """Write a random token classifier of two labels into ``folder``, with the tokenizer of ``model``."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertForTokenClassification

    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
        initializer_range=0.4,
        num_labels=2,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertForTokenClassification(config).save_pretrained(folder)
    return folder


def save_tiny_encoder(folder: Path, model: Path, **spec: Any) -> Path:
    """Write a random memory encoder for ``model`` into ``folder``, as if it had been trained on spans of 16 tokens in 4
    slots; its low-rank weights count."""
    import torch

    from pipeline.memory.autoencoder import Autoencoder
    from pipeline.memory.encoder import write_encoder
    from pipeline.models import ModelPool, digest_of
    from pipeline.models.encoders import EncoderManifest, Figures
    from schemas.memory import EncoderSpec

    given = EncoderSpec.model_validate({"rank": 4, "alpha": 8.0, **spec})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        coder = Autoencoder(ModelPool("cpu").own_copy(str(model)).model, given)
        for name, one in coder.trained().items():
            if name.endswith("lora_B"):
                torch.nn.init.normal_(one, 0.0, 0.05)
        spans = torch.randint(3, 900, (8, 16))
        coder.resize(coder.encode(spans, 4))
        coder.describe(coder.encode(spans, 4).flatten(0, 1))
    unknown = (None, None)
    figures = Figures(0, 0, 16, 4, 4.0, unknown, unknown, unknown, unknown)
    manifest = EncoderManifest(str(model), digest_of(str(model)), given.model_dump(mode="json"), 0, figures, "")
    write_encoder(coder, [], manifest, str(folder))
    return folder
