"""Which encoder-decoders are read by passes of our own (``encoded``): those that were seen to say the same by them."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pipeline.passes.encoded import EncodedPasses
from pipeline.passes.packable import TOLERANCE, doubt, ids_for

log = logging.getLogger(__name__)

_EXACTLY = 1e-3
"""Most that logits in float32 may be off at first sight, by rounding."""


@dataclass(frozen=True, slots=True)
class Head:
    """The logits of an encoder-decoder: T5's scales what its decoder gives, BART's adds to what comes of it."""

    linear: Any
    scale: float
    bias: torch.Tensor | None

    @property
    def weight(self) -> torch.Tensor:
        """``[v, d]``."""
        weight: torch.Tensor = self.linear.weight
        return weight

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """``[rows, d]`` -> ``[rows, v]``."""
        logits: torch.Tensor = self.linear(hidden * self.scale)
        return logits if self.bias is None else logits + self.bias


def head_of(model: Any) -> Head:
    """Of an encoder-decoder, as far as its config tells."""
    scale = model.config.d_model**-0.5 if getattr(model.config, "scale_decoder_outputs", False) else 1.0
    return Head(model.get_output_embeddings(), scale, getattr(model, "final_logits_bias", None))


@torch.inference_mode()
def can_encode(model: Any) -> bool:
    """Whether ``model`` says by such passes what it says by itself."""
    why = doubt(lambda: _written_after(model), _EXACTLY if model.dtype == torch.float32 else TOLERANCE)
    if why:
        log.warning("the model writes by transformers' generate, at a fraction of the speed: %s", why)
    return not why


def _written_after(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of three rows after texts and beginnings of different lengths, in another order; then of two of them."""
    ids, rows = ids_for(model, 24), np.arange(3)
    texts = [ids[0], ids[1, :5], ids[2, :9]]
    stored = np.array([ids.shape[1] - 5, 2, 1])
    passes, head = EncodedPasses(model, 3, 2**31 - 1), head_of(model)
    passes.encode(rows, torch.cat(texts), np.array([len(text) for text in texts]))
    begun = torch.cat([row[:count] for row, count in zip(ids, stored, strict=True)])
    found = [head(passes.run(rows, begun, np.zeros_like(stored), stored))]
    whole = [
        model(input_ids=text[None], decoder_input_ids=row[None]).logits[0] for text, row in zip(texts, ids, strict=True)
    ]
    expected = [one[:count] for one, count in zip(whole, stored, strict=True)]
    for which, skip, new in (([2, 0, 1], 0, 3), ([2, 0], 3, 1)):
        slots, begins = (torch.tensor(one, device=ids.device) for one in (which, (stored[which] + skip).tolist()))
        columns = begins[:, None] + torch.arange(new, device=ids.device)
        found.append(head(passes.read_on(slots, ids[slots[:, None], columns], begins, ids.shape[1])))
        expected += [whole[row][columns[place]] for place, row in enumerate(which)]
    return torch.cat(found), torch.cat(expected)
