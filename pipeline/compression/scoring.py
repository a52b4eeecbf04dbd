"""Surprisal of tokens under a causal language model: many texts in one forward pass, never a B x T x V tensor."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.models import ModelError
from pipeline.passes.compiling import hasten, read_once
from pipeline.passes.heads import nats, reads_logits_once
from pipeline.passes.packable import can_pack, reads_wide
from pipeline.passes.packed import PackedPasses, read_packed
from pipeline.passes.padded import PaddedPasses, keeps_columns
from pipeline.passes.ragged import ragged
from pipeline.passes.transfers import Fetch, fetch, on_device
from pipeline.passes.unstored import unstored

if TYPE_CHECKING:
    from pipeline.models import LoadedModel

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_LOGITS = {"cpu": 2**23, "cuda": 2**27}
"""Most logits held at once (float32: 32 MiB and 512 MiB), by kind of device: what fills its cores."""

WINDOW = 2**15
"""Most tokens of a text scored at once, however long the model's own window: they must fit in memory."""

PREFIX = 2**12
"""Most tokens of compressed text that a segment is scored after. More would cost more than the rest of the model (at
8,192 the attention of 135M parameters takes twice the time of all else) and tell it next to nothing."""


@dataclass(frozen=True, slots=True)
class Window:
    """``ids`` as one row of a forward pass; the tokens from place ``scored`` on are scored."""

    ids: Ints
    scored: int


class Scorer:
    """A causal LM as a scorer. ``trunk`` gives hidden states, ``surprisal`` turns them into nats per token."""

    def __init__(self, loaded: LoadedModel, batch_tokens: int) -> None:
        self.device, self.batch_tokens = loaded.device, batch_tokens
        self.window, self.prefix = min(loaded.window, WINDOW), min(loaded.window, PREFIX)
        self.model: Any = loaded.model
        self.trunk: Any = self.model.get_decoder()
        self.head: Any = self.model.get_output_embeddings()
        self.config: Any = self.model.config.get_text_config()
        self._softcap: float | None = getattr(self.config, "final_logit_softcapping", None)
        if self.device.type == "cuda":
            torch.backends.cuda.enable_cudnn_sdp(False)  # it plans anew for every shape, and all batches differ
            reads_logits_once(self.head, self._softcap)
        half = self.head.weight.dtype in (torch.bfloat16, torch.float16)
        self._compiled = self.packs = False
        if self.device.type == "cuda" and half:
            self._hasten(self.trunk)
        self._check_head()

    def _hasten(self, trunk: Any) -> None:
        self.packs = reads_wide(trunk)
        if not self.packs:
            self._compiled = hasten(trunk, trunk.layers, lambda: read_once(trunk))
            self.packs = self._compiled and can_pack(trunk)

    def states(self, ids: torch.Tensor, lengths: Ints) -> torch.Tensor:
        """Hidden states ``[tokens, d]`` of whole texts, laid end to end in ``ids``, no longer than ``window``."""
        if self.packs:
            packed: torch.Tensor = read_packed(self.trunk, ids, lengths, range(self.window)).last_hidden_state[0]
            return packed
        rows, width = len(lengths), int(lengths.max())
        row, place = ragged(lengths)
        # Padding stands on the right, where a causal model never looks.
        at = on_device(row * width + place, self.device)
        padded = ids.new_zeros(rows * width).index_copy_(0, at, ids).view(rows, width)
        cache = unstored(self.config) if self._compiled else None
        hidden: torch.Tensor = self.trunk(input_ids=padded, past_key_values=cache, use_cache=False).last_hidden_state
        return hidden.flatten(0, 1)[at]

    def passes(self, rows: int) -> PaddedPasses | PackedPasses:
        """Passes of ``rows`` rows in the fastest way there is. ``ModelError`` where nothing is kept of a token."""
        if not keeps_columns(self.config):
            kinds = set(self.config.layer_types) - {"full_attention", "sliding_attention"}
            raise ModelError(
                f"{self.config.model_type}: layers of kind {', '.join(sorted(kinds))} keep no keys and values that "
                "could be reused; score with a model of plain attention layers"
            )
        return (PackedPasses if self.packs else PaddedPasses)(self.trunk, rows, self.window)

    def surprisal(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """-log p(target | what the hidden state has seen): (n, d) and (n,) -> (n,) float32, in nats.

        The head and the log-sum-exp run over a few rows at a time; the log-sum-exp is in float32 whatever the dtype.
        """
        rows = max(1, _LOGITS[self.device.type] // self.head.weight.shape[0])
        if not len(targets):
            return torch.empty(0, device=self.device)
        pieces = zip(torch.split(hidden, rows), torch.split(targets, rows), strict=True)
        return torch.cat([nats(self.head, *piece, self._softcap) for piece in pieces])

    def surprisal_at(self, hidden: torch.Tensor, places: Ints, targets: Ints) -> Fetch:
        """``surprisal`` of ``targets`` after the ``places`` of ``hidden`` ``[tokens, d]``."""
        # Places, not a mask: a mask would make the device report how many there are before work goes on.
        states = hidden[on_device(places, self.device)]
        return fetch(self.surprisal(states, on_device(targets, self.device)))

    @torch.inference_mode()
    def _check_head(self) -> None:
        """Some models scale their logits between head and output: their surprisal would come out wrong, unseen."""
        ids = torch.arange(min(8, self.head.weight.shape[0]), device=self.device)[None]
        logits = self.model(input_ids=ids, use_cache=False).logits[0].float()
        theirs = -torch.log_softmax(logits, -1)[:-1].gather(-1, ids[0, 1:, None])[:, 0]
        ours = self.surprisal(self.trunk(input_ids=ids, use_cache=False).last_hidden_state[0, :-1], ids[0, 1:])
        if not torch.allclose(ours.float(), theirs, rtol=0.05, atol=0.05):
            raise ModelError(
                f"{self.config.model_type}: something scales its logits after its last layer, which would go unseen "
                "here; score with another model"
            )


def windows_of(ids: Ints, size: int) -> Iterator[Window]:
    """``ids`` (start token first) in windows of ``size`` tokens (even); every token but the start is scored once."""
    half = size // 2
    yield Window(ids[: 2 * half], 1)
    for begin in range(half, len(ids) - half, half):
        yield Window(ids[begin : begin + 2 * half], half)
