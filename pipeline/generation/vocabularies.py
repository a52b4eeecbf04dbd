"""Drafters of another vocabulary than their target's: what they read and what they say, token by token.

Where both vocabularies have a token for the same text, one stands for the other; a drafter says nothing else. Those of
the target's that a drafter lacks it reads as the last piece that it would cut them into, so that its columns stay the
target's: what it makes of that may be wrong, and an answer does not hang on it.

The token-level intersection of arXiv 2502.05202 (Timor et al.).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from pipeline.generation.token_texts import shared, texts_of
from pipeline.models import LoadedModel


@dataclass(frozen=True, slots=True)
class Translation:
    """For every number of the target's head: the token that a drafter ``reads`` for it, and the one with which it
    ``says`` the same; where there is none, the size of its own head."""

    reads: torch.Tensor
    says: torch.Tensor

    def read(self, ids: torch.Tensor) -> torch.Tensor:
        """The target's tokens as the drafter's, one for one."""
        return self.reads[ids]

    def said(self, logits: torch.Tensor) -> torch.Tensor:
        """The drafter's logits ``[n, v]`` as some of the target's tokens; minus infinity for what it cannot say."""
        return torch.nn.functional.pad(logits, (0, 1), value=-torch.inf)[:, self.says]


def translation(drafter: LoadedModel, target: LoadedModel) -> Translation | None:
    """Between a drafter and its target, kept with the drafter; None where they have one vocabulary."""
    if drafter.tokenizer is target.tokenizer:
        return None
    known: dict[str, Translation | None] = vars(drafter.model).setdefault("contextmill_translations", {})
    if target.ref.digest not in known:
        alike = drafter.tokenizer.get_vocab() == target.tokenizer.get_vocab()
        known[target.ref.digest] = None if alike else _made(drafter, target)
    return known[target.ref.digest]


def _made(drafter: LoadedModel, target: LoadedModel) -> Translation:
    head, tokens = _head(drafter), _head(target)  # a tokenizer's numbers may have gaps, or go beyond the model's
    texts = {number: text for text, number in texts_of(target.tokenizer).items() if number < tokens}
    both = shared(drafter.tokenizer, target.tokenizer).items()
    same = {ours: its for ours, its in both if ours in texts and its < head}
    rest = {number: text.decode(errors="replace") for number, text in texts.items() if number not in same}
    pieces = drafter.tokenizer(list(rest.values()), add_special_tokens=False)["input_ids"] if rest else []
    reads = torch.zeros(tokens, dtype=torch.int64)
    says = torch.full((tokens,), head)
    for number, cut in zip(rest, pieces, strict=True):
        reads[number] = cut[-1] if cut and cut[-1] < head else 0
    for number, one in same.items():
        reads[number] = says[number] = one
    return Translation(reads.to(drafter.device), says.to(drafter.device))


def _head(loaded: LoadedModel) -> int:
    model: Any = loaded.model
    return int(model.get_output_embeddings().weight.shape[0])
