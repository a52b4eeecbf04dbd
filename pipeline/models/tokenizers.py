"""Tokenizers by model name, kept for the life of the process."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.models.folder import window_of
from pipeline.models.ref import ModelDamaged, ModelError
from pipeline.models.resolve import resolve
from schemas.settings import Settings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def load_tokenizer(name: str, settings: Settings | None = None) -> PreTrainedTokenizerFast:
    """The fast tokenizer of the model called ``name``; its weights need not be there.

    It has a pad token, and ``model_max_length`` is no longer than the model's window. All callers in a process share
    it: pass padding and truncation per call, never set them on it.
    """
    ref = resolve(name, settings, weights=False)
    return _load(name, ref.folder, ref.digest)


@functools.lru_cache(maxsize=16)
def _load(name: str, folder: Path, digest: str) -> PreTrainedTokenizerFast:
    """``digest`` is part of the key only: a tokenizer that changed on the disk is loaded again."""
    del digest
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises bare Exceptions for files it cannot read
        raise ModelDamaged(
            f"{name}: the tokenizer in {folder} cannot be loaded ({type(error).__name__}: {error}); fetch it again"
        ) from error
    if not tokenizer.is_fast:
        raise ModelError(f"{name}: only a slow tokenizer in {folder}; save its fast form (tokenizer.json) beside it")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token is None:
        raise ModelError(f"{name}: its tokenizer has no pad, eos or unk token to pad with; set one in {folder}")
    tokenizer.model_max_length = min(tokenizer.model_max_length, window_of(folder) or tokenizer.model_max_length)
    return tokenizer
