"""What is written so far, on the device: a line for each document that is worked on, and rounds that write on.

A round drafts tokens, reads them with one pass of the target, and keeps those that it would have said itself (Leviathan
et al., arXiv 2211.17192), and the one it says next. The target's own choice decides, greedy or drawn at the document's
own number for that place, and a draft counts where it is the same: so answers are those of plain decoding, word for
word, whatever drafts. A draft is thereby accepted with the target's probability, as a point mass is by rejection
sampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.generation.maxgram import PADDING, propose
from pipeline.generation.sampling import Choosing
from pipeline.passes.recorded import Output
from pipeline.passes.transfers import on_device

Ints = NDArray[np.int64]


class Lines:
    """``number`` lines of ``width`` tokens, and one more that only fills up.

    A line holds texts to copy from, then what the target reads: prompt and answer. ``length`` tokens are written.
    """

    def __init__(self, number: int, width: int, device: torch.device) -> None:
        self.idle, self._device = number, device
        self.tokens = torch.full((number + 1, PADDING + width), -1, device=device)
        self.length = torch.full((number + 1,), PADDING + 2, device=device)
        self._read_from = torch.full((number + 1,), PADDING, device=device)
        self._answer_from = torch.full((number + 1,), PADDING, device=device)
        self._document = torch.zeros(number + 1, dtype=torch.int64, device=device)
        self.tokens[self.idle, PADDING:] = 0

    def begin(self, slots: Ints, documents: Ints, copied: Sequence[Ints], prompts: Sequence[Ints]) -> None:
        """Lines for these prompts, each behind the text that may be ``copied``."""
        texts = [np.concatenate(both) for both in zip(copied, prompts, strict=True)]
        filled = np.full((len(texts), self.tokens.shape[1]), -1)
        for row, text in enumerate(texts):
            filled[row, PADDING : PADDING + len(text)] = text
        begins, ends = PADDING + np.array([len(one) for one in copied]), PADDING + np.array([len(one) for one in texts])
        at, document, start, end = on_device(np.stack([slots, documents, begins, ends]), self._device)
        self.tokens[at] = on_device(filled, self._device)
        self.length[at], self._read_from[at], self._answer_from[at], self._document[at] = end, start, end, document

    def append(self, slots: torch.Tensor, chosen: torch.Tensor, count: Any) -> None:
        """The first ``count`` of ``chosen`` ``[rows, new]``; what is behind them is overwritten next time."""
        end = self.length[slots]
        self.tokens[slots[:, None], end[:, None] + torch.arange(chosen.shape[1], device=self._device)] = chosen
        self.length[slots] = end + count
        self.length[self.idle] = PADDING + 2

    def round(self, passes: Any, head: Any, choose: Choosing, slots: torch.Tensor, width: int, most: int) -> Output:
        """``width - 1`` drafts for each of ``slots``, read by ``passes``, and what comes of them: ``width`` tokens and
        how many of these count, int64 ``[rows, width + 1]``; and the logits ``[rows * width, v]``."""
        rows, length = len(slots), self.length[slots]
        ids = self.tokens[slots[:, None], length[:, None] - 1]
        if width > 1:
            ids = torch.cat([ids, propose(self.tokens[slots], length, width - 1)], 1)
        logits = head(passes.read_on(slots, ids, length - 1 - self._read_from[slots], most))
        made = (length - self._answer_from[slots])[:, None] + torch.arange(width, device=self._device)
        documents = self._document[slots, None].expand(rows, width)
        chosen = choose(logits, documents.flatten(), made.flatten()).view(rows, width)
        count = 1 + (chosen[:, :-1] == ids[:, 1:]).cumprod(1).sum(1)
        self.append(slots, chosen, count)
        return torch.cat([chosen, count[:, None]], 1), logits
