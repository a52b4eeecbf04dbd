"""Small random token classifiers of several architectures, each with the kind of tokenizer it comes with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForTokenClassification,
    BertConfig,
    MPNetConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    XLMRobertaConfig,
)

TRAINING = (
    "Question: Sam bought 12 boxes with 30 pens each, then sold 5 boxes at $3 per box.\n"
    "He bought 12*30=360 pens in all; the answer is 115. Café, naïve and Zoë came too.\n"
    "The quick brown fox jumps over the lazy dog while many small rivers run to the sea. 東京都に住んでいます。\n"
) * 3

KINDS = ("bert", "xlm-roberta", "mpnet")
WINDOW = 48
"""Tokens that the models take at once, special tokens included."""


def save_classifier(folder: Path, kind: str = "bert", labels: int = 2, window: int = WINDOW) -> str:
    """A random classifier under ``folder``; its weights are wide enough to have opinions. Returns its name."""
    tokenizer = _sentence_pieces() if kind == "xlm-roberta" else _word_pieces()
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    AutoModelForTokenClassification.from_config(_config(kind, tokenizer, labels, window)).save_pretrained(folder)
    return str(folder)


def _config(kind: str, tokenizer: PreTrainedTokenizerFast, labels: int, window: int) -> PretrainedConfig:
    padding = tokenizer.pad_token_id
    options: dict[str, Any] = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 64, "initializer_range": 0.4, "pad_token_id": padding, "num_labels": labels,
        # RoBERTa and MPNet count positions from behind the padding's.
        "max_position_embeddings": window + (0 if kind == "bert" else padding + 1),
    }  # fmt: skip
    return {"bert": BertConfig, "xlm-roberta": XLMRobertaConfig, "mpnet": MPNetConfig}[kind](**options)


def _word_pieces() -> PreTrainedTokenizerFast:
    """BERT's: lower-cased, accents and white space lost, unknown words are one [UNK]."""
    inner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    inner.normalizer, inner.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    special = ["[UNK]", "[PAD]", "[CLS]", "[SEP]"]
    inner.train_from_iterator(
        [TRAINING], trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    )
    return _finished(inner, "[CLS]", "[SEP]", "[UNK]", "[PAD]")


def _sentence_pieces() -> PreTrainedTokenizerFast:
    """XLM-R's: a unigram model over text in which white space is a character."""
    inner = Tokenizer(models.Unigram())
    inner.normalizer, inner.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    inner.train_from_iterator(
        [TRAINING],
        trainers.UnigramTrainer(vocab_size=200, special_tokens=special, unk_token="<unk>", show_progress=False),
    )
    return _finished(inner, "<s>", "</s>", "<unk>", "<pad>")


def _finished(inner: Any, begin: str, end: str, unknown: str, padding: str) -> PreTrainedTokenizerFast:
    frame = [(begin, inner.token_to_id(begin)), (end, inner.token_to_id(end))]
    inner.post_processor = processors.TemplateProcessing(single=f"{begin} $A {end}", special_tokens=frame)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, cls_token=begin, sep_token=end, unk_token=unknown, pad_token=padding
    )
