"""Losses of many texts at once, as the library computes them: text by text from its first token on.

loss[j] is -log p(token j+1 | tokens 0..j) in nats: the library ascribes it to token j.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.compression.reading import in_passes
from pipeline.compression.registry import Passed
from pipeline.compression.scoring import Scorer
from pipeline.passes.ragged import ragged
from pipeline.passes.transfers import Fetch, fetch, on_device

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Text:
    """``ids`` to be read; its score is the mean of loss[first:], ``first`` as Python reads it."""

    ids: Ints
    first: int = 0


def most_positions(scorer: Scorer) -> int:
    """The model's max_position_embeddings, which the library takes for its window; no more than ``scorer`` reads."""
    return min(scorer.window, int(getattr(scorer.config, "max_position_embeddings", scorer.window)))


def mean_losses(scorer: Scorer, texts: Sequence[Text], passed: Passed) -> list[float]:
    """The score of each text: nats per token, of at most the model's window; nan where no token has a loss."""
    most = most_positions(scorer)
    cut = [text.ids[:most] for text in texts]
    first = [range(max(0, len(ids) - 1))[text.first :].start for ids, text in zip(cut, texts, strict=True)]
    found = in_passes(
        scorer,
        [len(ids) for ids in cut],
        lambda rows: _means(scorer, [cut[row] for row in rows], np.array([first[row] for row in rows]), passed),
    )
    return [float(fetched()[place]) for fetched, place in found]


@torch.inference_mode()
def _means(scorer: Scorer, texts: Sequence[Ints], first: Ints, passed: Passed) -> list[tuple[Fetch, int]]:
    """Where the mean of each text will be found: the next pass does not wait for it."""
    lengths = np.array([len(ids) for ids in texts])
    ids = on_device(np.concatenate(texts), scorer.device)
    row, place = ragged(lengths)
    wanted = (place >= first[row]) & (place < lengths[row] - 1)
    nats = _nats(scorer, scorer.states(ids, lengths), ids, np.flatnonzero(wanted))
    counts = np.bincount(row[wanted], minlength=len(texts))
    rows = on_device(np.repeat(np.arange(len(texts)), counts), scorer.device)
    sums = torch.zeros(len(texts), dtype=torch.float64, device=scorer.device).index_add_(0, rows, nats.double())
    passed(int(lengths.sum()))
    means = fetch(sums / on_device(counts, scorer.device))
    return [(means, place) for place in range(len(texts))]


def _nats(scorer: Scorer, hidden: torch.Tensor, ids: torch.Tensor, places: Ints) -> torch.Tensor:
    """The losses at ``places`` of ``ids`` ``[n]``, with hidden states ``[n, d]``: how surprising the next token is."""
    at = on_device(places, scorer.device)
    return scorer.surprisal(hidden[at], ids[at + 1])


class Reading:
    """Texts that shrink while they are read: their losses, and the keys and values of what is decided.

    Row r has losses ``loss[r, :scored[r]]``; ``cached[r]`` of its tokens have keys and values. ``loss`` is 0 behind
    what is scored. Losses of removed tokens are taken out by whoever removes them; the others stay until they are
    computed anew, however much of the text before them is gone.
    """

    def __init__(self, scorer: Scorer, rows: int, width: int, passed: Passed) -> None:
        self._scorer, self._passed = scorer, passed
        self._most = most_positions(scorer)
        self.passes = scorer.passes(rows)
        exact = torch.float64 if scorer.head.weight.dtype is torch.float64 else torch.float32
        self.loss = torch.zeros(rows, width, dtype=exact, device=scorer.device)
        self.scored = np.zeros(rows, np.int64)
        self.cached = np.zeros(rows, np.int64)

    def read_all(self, ids: torch.Tensor, lengths: Ints) -> None:
        """The first pass: every text ``ids[r, :lengths[r]]`` as a whole, up to the model's window; nothing is kept."""
        taken = np.minimum(lengths, self._most)
        in_passes(self._scorer, taken.tolist(), lambda rows: self._read_some(ids, np.array(rows), taken[rows]))
        self.scored = np.maximum(0, taken - 1)

    def _read_some(self, ids: torch.Tensor, rows: Ints, lengths: Ints) -> list[None]:
        row, column = ragged(lengths)
        some = ids[on_device(rows[row], self._scorer.device), on_device(column, self._scorer.device)]
        at = np.flatnonzero(column < lengths[row] - 1)
        nats = _nats(self._scorer, self._scorer.states(some, lengths), some, at)
        self._write(rows[row[at]], column[at], nats)
        self._passed(int(lengths.sum()))
        return [None] * len(rows)

    def read_on(self, rows: Ints, ids: torch.Tensor, ends: Ints, keep: Ints) -> None:
        """The tokens from ``cached`` to ``ends`` of these rows of ``ids``, after those that are cached.

        Their losses are computed anew, of all but the last; keys and values up to place ``keep`` are kept. Every row
        has at least one token to be read.
        """
        device, cached = self._scorer.device, self.cached[rows]
        feed = ends - cached
        row, place = ragged(feed)
        some = ids[on_device(rows[row], device), on_device(cached[row] + place, device)]
        hidden = self.passes.run(rows, some, cached, feed)
        at = np.flatnonzero(place < feed[row] - 1)
        nats = _nats(self._scorer, hidden, some, at)
        self._write(rows[row[at]], cached[row[at]] + place[at], nats)
        self.scored[rows] = np.maximum(self.scored[rows], ends - 1)
        self.cached[rows] = keep
        self._passed(int(feed.sum()))

    def _write(self, rows: Ints, columns: Ints, nats: torch.Tensor) -> None:
        device = self._scorer.device
        self.loss[on_device(rows, device), on_device(columns, device)] = nats
