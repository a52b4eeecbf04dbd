"""Sampling whose outcome belongs to the document: the same whatever batch, worker or device it is drawn on."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from pipeline.passes.transfers import on_device
from schemas.stage import GenerateSpec

GREEDY_BELOW = 1e-5
"""A temperature under this is greedy: dividing by it would overflow, and the draw is certain anyway."""


_AT_ONCE = 256
"""Rows drawn at once: sorted and summed up, logits of thousands would take more room than all else."""


def document_seed(seed: int, content_hash: str) -> int:
    """The seed of one document, 63 bits of sha256 over the stage's seed and the document's content."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{content_hash}".encode()).digest()[:8], "big") >> 1


def warpers(spec: GenerateSpec) -> LogitsProcessorList:
    """Temperature, then top-k, then top-p, as transformers orders them."""
    chain = LogitsProcessorList()
    if spec.temperature != 1.0:
        chain.append(TemperatureLogitsWarper(spec.temperature))
    if spec.top_k:
        chain.append(TopKLogitsWarper(spec.top_k))
    if spec.top_p < 1.0:
        chain.append(TopPLogitsWarper(spec.top_p))
    return chain


def uniform(seeds: Sequence[int], new_tokens: int, device: torch.device) -> torch.Tensor:
    """Numbers in [0, 1), float64 ``[rows, new_tokens]``: one for each step of each document.

    From a CPU generator per document: equal on every device, whatever the rows beside it, and one number a step where
    Gumbel noise would take one for each entry of the vocabulary.
    """
    rows = [torch.rand(new_tokens, dtype=torch.float64, generator=torch.Generator().manual_seed(s)) for s in seeds]
    return on_device(torch.stack(rows), device)


def draw(scores: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """Where ``numbers`` ``[rows]`` fall in the cumulated distributions of warped ``scores`` ``[rows, v]``: tokens."""
    cumulated = scores.softmax(-1).double().cumsum(-1)  # float32 sums would lose the tail of a large vocabulary
    at = numbers[:, None] * cumulated[:, -1:]
    # right=True: the first entry above ``at``, so a token of probability 0 is never drawn
    return torch.searchsorted(cumulated, at, right=True).clamp(max=scores.shape[-1] - 1)[:, 0]


def peaks(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The highest of each of up to 256 pieces of ``[rows, v]``, and its place in the piece, ``[rows, pieces]`` each: on
    a GPU a row of its own would be one processor's."""
    pieces = math.gcd(logits.shape[-1], 256)
    highest, places = logits.view(len(logits), pieces, -1).max(-1)
    return highest, places


def most_likely(logits: torch.Tensor) -> torch.Tensor:
    """The argmax of ``[rows, v]``, the first of equal ones."""
    highest, places = peaks(logits)
    best = highest.argmax(-1, keepdim=True)
    return torch.add(places.gather(-1, best), best, alpha=logits.shape[-1] // highest.shape[-1])[:, 0]


class Choosing:
    """The token that comes next, greedily or at the document's own number."""

    def __init__(self, spec: GenerateSpec) -> None:
        self.sampled = spec.temperature >= GREEDY_BELOW
        self._warpers = warpers(spec) if self.sampled else LogitsProcessorList()

    def __call__(self, logits: torch.Tensor, numbers: torch.Tensor | None) -> torch.Tensor:
        """int64 ``[rows]`` after ``logits`` ``[rows, v]``, where ``sampled`` at ``numbers`` ``[rows]``."""
        if numbers is None:
            return most_likely(logits)
        return torch.cat(list(map(self._drawn, torch.split(logits, _AT_ONCE), torch.split(numbers, _AT_ONCE))))

    def _drawn(self, logits: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        none: Any = None  # what the warpers do not look at
        scores: torch.Tensor = self._warpers(none, logits.float())
        return draw(scores, numbers)


def processors(
    spec: GenerateSpec, seeds: Sequence[int], width: int, new_tokens: int, device: torch.device
) -> LogitsProcessorList:
    """``Choosing`` as ``generate`` takes it, which does the argmax; nothing at all when decoding greedily.

    ``width`` is the padded length of the prompts.
    """
    if spec.temperature < GREEDY_BELOW:
        return LogitsProcessorList()
    return LogitsProcessorList([*warpers(spec), SeededDraw(seeds, width, new_tokens, device)])


class SeededDraw(LogitsProcessor):  # type: ignore[misc]
    """``draw`` for ``generate``, which draws a whole batch from one generator: a row's sample would hang on its
    neighbours. All that is left to it is the argmax of a row with one finite score."""

    def __init__(self, seeds: Sequence[int], width: int, new_tokens: int, device: torch.device) -> None:
        self._numbers, self._width = uniform(seeds, new_tokens, device), width

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """``scores`` [rows, vocabulary], warped logits -> 0 at the drawn token, minus infinity elsewhere."""
        token = draw(scores, self._numbers[:, input_ids.shape[1] - self._width])
        return torch.full_like(scores, -torch.inf).scatter_(1, token[:, None], 0.0)
