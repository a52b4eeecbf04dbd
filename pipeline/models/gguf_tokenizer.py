"""The tokenizer inside a GGUF file, as its model was trained with it.

transformers' own reading differs by release and gets two things wrong: in older releases the special tokens (SmolLM2's
end of turn becomes its begin of turn), in all of them the digits of the vocabularies in ``SINGLE_DIGITS``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

SINGLE_DIGITS = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"})
"""Values of ``tokenizer.ggml.pre`` whose vocabularies split off every digit before anything else (llama.cpp's table of
pre-tokenizers). Without that, spaces before a number come out as tokens the model never saw there."""

SPECIAL = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
CONTROL, USER_DEFINED = 3, 4
"""``tokenizer.ggml.token_type``."""


@dataclass(frozen=True, slots=True)
class Metadata:
    """The metadata of a GGUF file, read key by key."""

    reader: Any

    @classmethod
    def of(cls, gguf: Path) -> Metadata:
        """The metadata of the file ``gguf``."""
        from gguf import GGUFReader

        return cls(GGUFReader(gguf))

    def get(self, key: str, default: Any = None) -> Any:
        """The value under ``key``: a number, a string, or a list."""
        field = self.reader.get_field(key)
        return field.contents() if field else default


def build_tokenizer(gguf: Path, metadata: Metadata, window: int | None) -> PreTrainedTokenizerFast:
    """The tokenizer, with the file's special tokens and chat template, a pad token and the model's window."""
    tokens = metadata.get("tokenizer.ggml.tokens")
    ids = {name: metadata.get(f"tokenizer.ggml.{key}_token_id") for name, key in SPECIAL.items()}
    special = {name: tokens[index] for name, index in ids.items() if index is not None}
    if "pad_token" not in special and "eos_token" in special:
        special["pad_token"] = special["eos_token"]
    if metadata.get("tokenizer.ggml.pre") in SINGLE_DIGITS:
        tokenizer = _wrapped(_single_digits(metadata, tokens, special), metadata)
    else:
        tokenizer = _as_transformers_reads_it(gguf)
    for name, token in special.items():
        setattr(tokenizer, name, token)
    tokenizer.clean_up_tokenization_spaces = False  # decoding must give back the text that was encoded
    if window:
        tokenizer.model_max_length = window
    return tokenizer


def _single_digits(metadata: Metadata, tokens: list[str], special: dict[str, str]) -> Tokenizer:
    """A byte-level BPE after each digit is set apart."""
    from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers, processors
    from tokenizers.models import BPE

    merges = [tuple(merge.split(" ", 1)) for merge in metadata.get("tokenizer.ggml.merges")]
    tokenizer = Tokenizer(BPE({token: index for index, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = dict(zip(tokens, metadata.get("tokenizer.ggml.token_type"), strict=True))
    added = [AddedToken(token, special=kind == CONTROL, normalized=False) for token, kind in kinds.items()
             if kind in (CONTROL, USER_DEFINED)]  # fmt: skip
    tokenizer.add_tokens(added)
    if metadata.get("tokenizer.ggml.add_bos_token"):
        first = special["bos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(
            f"{first} $A", f"{first} $A {first} $B", [(first, tokens.index(first))]
        )
    return tokenizer


def _wrapped(tokenizer: Tokenizer, metadata: Metadata) -> PreTrainedTokenizerFast:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, chat_template=metadata.get("tokenizer.chat_template"), padding_side="right"
    )


def _as_transformers_reads_it(gguf: Path) -> PreTrainedTokenizerFast:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(
        gguf.parent, gguf_file=gguf.name, local_files_only=True, trust_remote_code=False
    )
