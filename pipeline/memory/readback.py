"""Spans said behind their slots, again and again as these change: laid out once, in one rectangle for all of them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch

from pipeline.memory.autoencoder import TAGS, Autoencoder
from pipeline.memory.head_loss import nats_of
from pipeline.memory.spans import Ints
from pipeline.passes.transfers import on_device


class Readback:
    """Of ``spans`` whose slots, ``sizes`` of them each, lie end to end: ``[sum of sizes, d]``. ``lengths``: of spans,
    ``[spans]``."""

    def __init__(self, coder: Autoencoder, spans: Sequence[Ints], sizes: Sequence[int]) -> None:
        self._coder, device = coder, coder.tags.device
        longest, places, first = max(map(len, spans)), 0, sum(sizes)
        tag, words = first + 1, first + 2  # what is read has these behind the slots
        order = np.full((len(spans), 1 + max(sizes) + longest), first, np.int64)
        says = np.zeros((len(spans), longest), np.int64)
        targets, there = says.copy(), np.zeros((len(spans), longest), bool)
        for row, (ids, size) in enumerate(zip(spans, sizes, strict=True)):
            some = [first, *range(places, places + size), tag, *range(words, words + len(ids) - 1)]
            order[row, : len(some)] = some
            says[row] = np.minimum(1 + size + np.arange(longest), len(some) - 1)
            targets[row, : len(ids)], there[row, : len(ids)] = ids, True
            places, words = places + size, words + len(ids) - 1
        known = np.fromiter(itertools.chain.from_iterable(ids[:-1] for ids in spans), np.int64)
        self.lengths = on_device(np.array([len(ids) for ids in spans], np.int64), device)
        self._order, self._says, self._targets, self._there = (
            on_device(one, device) for one in (order, says, targets, there)
        )
        kept, ae = coder.embed.weight.dtype, coder.tags[TAGS.index("AE")][None]
        self._told = torch.cat([coder.first.to(kept), ae.to(kept), coder.embed(on_device(known, device))]).detach()

    def nats(self, slots: torch.Tensor) -> torch.Tensor:
        """Of every token, behind the slots and the tokens before it, float32 ``[spans, longest]``, 0 behind ends."""
        head = self._coder.model.get_output_embeddings().weight
        table = torch.cat([slots.to(self._told.dtype), self._told])
        hidden = self._coder.say(table[self._order])
        states = hidden.gather(1, self._says[..., None].expand(-1, -1, hidden.shape[2])).to(head.dtype)
        return torch.where(self._there, nats_of(states, head, self._targets, ragged=True), 0)
