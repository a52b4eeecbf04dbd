"""A small random model with opinions, for comparisons in bulk: the same weights for the same window, everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Kind = Literal["bytes", "llama"]

SPECIAL = ["<unk>", "<bos>", "<eos>"]

TEXTS = (
    "Question: Sam bought 12 boxes with 30 pens each, then sold 5 boxes at $3 per box. How much did he get?\n"
    "Let's think step by step. He bought 12*30=360 pens in all; 5 boxes brought 5*3=$15. The answer is 15.",
    "The quick brown fox jumps over the lazy dog while many small rivers run to the sea. Nobody had seen it before.",
    "def area(width, height):\n    return width * height  # the product\n\nvalues = [area(2, 3), area(4, 5)]\n",
    '{"name": "Ada", "born": 1815, "tags": ["math", "code"], "note": "She wrote the first program."}',
    "“It was,” he said, “the best of times — and the worst.” Mr. Smith (of the U.S.A.) did n't agree ; he left .",
    "First: a + b ++ c +++ d. Then 3.14, 1,000,000 and 50% of -7. Dr. No came at 5 p.m. on Jan. 3rd! Really? Yes...",
    "naïve café, Zürich, señor; 你好，世界。这是一个测试。 мир, 😀👩‍👩‍👧 مرحبا بالعالم.",
    "Once there was a wide plain on which the flowers were strange and the trees tall. A traveller came to a palace of "
    "silver; its spires were told of in song. To those who keep their fancies within the fields we know it is hard to "
    "tell of such a land, and so he said little when he was asked about it.",
)


def save(folder: Path, window: int, kind: Kind = "bytes") -> Path:
    """A Llama of two layers and a tokenizer of some 500 tokens, in ``folder`` as transformers 5 saves them.

    ``kind``: a byte-level tokenizer that adds nothing, or one like Llama 2's, which adds a first token and takes the
    first space of what it decodes away. In the former ``+`` is token 13, which ``keep_split`` keeps.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    inner = _byte_level() if kind == "bytes" else _like_llama()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>", pad_token="<eos>")
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=window, initializer_range=0.3, tie_word_embeddings=False,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(window)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def _byte_level() -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(TEXTS, trainer)
    return bpe


def _like_llama() -> Tokenizer:
    """No pre-tokenizer: spaces are letters, and a line break is a byte of its own."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers

    bpe = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    bpe.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    every_byte = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=[*SPECIAL, *every_byte], show_progress=False)
    words = [f" {word}" for text in TEXTS for word in text.split()]
    bpe.train_from_iterator(words, trainer)
    bpe.post_processor = processors.TemplateProcessing("<bos> $A", "<bos> $A <bos> $B", [("<bos>", 1)])
    return bpe
