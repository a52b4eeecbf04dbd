"""Surprisal of tokens under a causal language model: many texts in one forward pass, never a B x T x V tensor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.batching import run_packed
from pipeline.compression.registry import Passed

if TYPE_CHECKING:
    from pipeline.models import LoadedModel

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_LOGITS = {"cpu": 2**23, "cuda": 2**27}
"""Most logits held at once (float32: 32 MiB and 512 MiB), by kind of device: what fills its cores."""

_ENOUGH = {"cpu": 512, "cuda": 8192}
"""Tokens in a pass that keep the device busy: from there on less padding is worth more than a larger batch."""

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
        model: Any = loaded.model
        self.trunk: Any = model.get_decoder()
        self.head: Any = model.get_output_embeddings()
        self.config: Any = model.config.get_text_config()
        self._softcap: float | None = getattr(self.config, "final_logit_softcapping", None)

    def surprisal(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """-log p(target | what the hidden state has seen): (n, d) and (n,) -> (n,) float32, in nats.

        The head and the log-sum-exp run over a few rows at a time; the log-sum-exp is in float32 whatever the dtype.
        """
        rows = max(1, _LOGITS[self.device.type] // self.head.weight.shape[0])
        found = [torch.empty(0, device=self.device)]
        for first in range(0, len(targets), rows):
            logits = self.head(hidden[first : first + rows]).float()
            if self._softcap is not None:
                logits = torch.tanh(logits / self._softcap) * self._softcap
            found.append(torch.logsumexp(logits, -1) - logits.gather(-1, targets[first : first + rows, None])[:, 0])
        return torch.cat(found)

    def surprisal_at(self, hidden: torch.Tensor, places: Ints, targets: Ints) -> NDArray[np.float32]:
        """``surprisal`` of ``targets`` after the ``places`` of ``hidden`` ``[rows, tokens, d]``, counted row by row."""
        # Places, not a mask: a mask would make the device report how many there are before work goes on.
        states = hidden.flatten(0, 1)[torch.from_numpy(places).to(self.device)]
        nats: NDArray[np.float32] = self.surprisal(states, torch.from_numpy(targets).to(self.device)).cpu().numpy()
        return nats

    def mean_surprisal(self, texts: Sequence[Ints], passed: Passed = lambda tokens: None) -> Floats:
        """The logarithm of each text's perplexity: mean nats over its tokens. A text begins with a start token.

        Texts beyond the model's window are scored in windows that overlap by half, so that every token sees all
        tokens before it or at least half a window of them.
        """
        windows = [(place, window) for place, ids in enumerate(texts) for window in windows_of(ids, self.window)]
        sums = run_packed(
            [len(window.ids) for _, window in windows],
            self.batch_tokens,
            lambda rows: self._window_sums([windows[row][1] for row in rows], passed),
            enough=_ENOUGH[self.device.type],
        )
        places = np.array([place for place, _ in windows], dtype=np.int64)
        totals = np.bincount(places, weights=sums, minlength=len(texts))
        return totals / np.maximum(1, [len(ids) - 1 for ids in texts])

    @torch.inference_mode()
    def _window_sums(self, windows: Sequence[Window], passed: Passed) -> list[float]:
        """Nats of each window's scored tokens. Padding stands on the right, where a causal model never looks."""
        lengths = np.array([len(window.ids) for window in windows])
        scored = np.array([window.scored for window in windows])
        ids = padded(np.concatenate([window.ids for window in windows]), lengths)
        place = np.arange(ids.shape[1])
        wanted = (place >= scored[:, None]) & (place < lengths[:, None])
        hidden = self.trunk(input_ids=torch.from_numpy(ids).to(self.device), use_cache=False).last_hidden_state
        nats = self.surprisal_at(hidden, np.flatnonzero(wanted) - 1, ids[wanted])
        passed(len(nats))
        rows = np.repeat(np.arange(len(windows)), lengths - scored)
        sums: list[float] = np.bincount(rows, weights=nats, minlength=len(windows)).tolist()
        return sums


def windows_of(ids: Ints, size: int) -> Iterator[Window]:
    """``ids`` (start token first) in windows of ``size`` tokens (even); every token but the start is scored once."""
    half = size // 2
    yield Window(ids[: 2 * half], 1)
    for begin in range(half, len(ids) - half, half):
        yield Window(ids[begin : begin + 2 * half], half)


def padded(flat: Ints, lengths: Ints) -> Ints:
    """Ragged rows, laid end to end in ``flat``, as a rectangle filled with 0 on the right."""
    mask = np.arange(int(lengths.max(initial=0))) < lengths[:, None]
    rectangle = np.zeros(mask.shape, dtype=np.int64)
    rectangle[mask] = flat
    return rectangle
