"""Sampling whose outcome belongs to the document: the same whatever batch, worker or device it is drawn on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from schemas.stage import GenerateSpec

GREEDY_BELOW = 1e-5
"""A temperature under this is greedy: dividing by it would overflow, and the draw is certain anyway."""


def document_seed(seed: int, content_hash: str) -> int:
    """The seed of one document, 63 bits of sha256 over the stage's seed and the document's content."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{content_hash}".encode()).digest()[:8], "big") >> 1


def processors(
    spec: GenerateSpec, seeds: Sequence[int], width: int, new_tokens: int, device: torch.device
) -> LogitsProcessorList:
    """What stands between logits and argmax for rows with these ``seeds``; nothing at all when decoding greedily.

    Temperature, then top-k, then top-p, as transformers orders them; the draw comes last. ``width`` is the padded
    length of the prompts.
    """
    chain = LogitsProcessorList()
    if spec.temperature < GREEDY_BELOW:
        return chain
    if spec.temperature != 1.0:
        chain.append(TemperatureLogitsWarper(spec.temperature))
    if spec.top_k:
        chain.append(TopKLogitsWarper(spec.top_k))
    if spec.top_p < 1.0:
        chain.append(TopPLogitsWarper(spec.top_p))
    chain.append(SeededDraw(seeds, width, new_tokens, device))
    return chain


def narrow(chain: LogitsProcessorList, rows: torch.Tensor) -> None:
    """From now on ``chain`` is shown the scores of these ``rows`` alone, int64 numbers among its seeds."""
    for one in chain:
        if isinstance(one, SeededDraw):
            one.rows = rows


class SeededDraw(LogitsProcessor):  # type: ignore[misc]
    """Draws each row's next token by inverting its distribution at that row's own uniform number.

    ``generate`` draws a whole batch from one generator, so a row's sample would hang on its neighbours; it takes no
    generator per row. Here the draw happens among the processors, and all that is left to ``generate`` is the argmax
    of a row with one finite score. The numbers come from a CPU generator per document, one for each step: equal on
    every device, and one number a step where Gumbel noise would take one for each entry of the vocabulary.
    """

    def __init__(self, seeds: Sequence[int], width: int, new_tokens: int, device: torch.device) -> None:
        rows = [torch.rand(new_tokens, dtype=torch.float64, generator=torch.Generator().manual_seed(s)) for s in seeds]
        self._uniform = torch.stack(rows).to(device)  # [rows, new_tokens], in [0, 1)
        self._width = width
        self.rows: torch.Tensor | slice = slice(None)  # those that scores are of

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """``scores`` [rows, vocabulary], warped logits -> 0 at the drawn token, minus infinity elsewhere."""
        cumulated = scores.softmax(-1).double().cumsum(-1)  # float32 sums would lose the tail of a large vocabulary
        at = self._uniform[self.rows, input_ids.shape[1] - self._width, None] * cumulated[:, -1:]
        # right=True: the first entry above ``at``, so a token of probability 0 is never drawn
        token = torch.searchsorted(cumulated, at, right=True).clamp(max=scores.shape[-1] - 1)
        return torch.full_like(scores, -torch.inf).scatter_(1, token, 0.0)
