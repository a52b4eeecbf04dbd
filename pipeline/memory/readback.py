"""What is said behind slots, again and again as these change: laid out once, in one rectangle for all of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from pipeline.memory.autoencoder import TAGS, Autoencoder, Tag
from pipeline.memory.head_loss import Teacher, nats_of
from pipeline.memory.spans import Ints
from pipeline.passes.transfers import on_device


class Readback:
    """Of spans whose slots, ``sizes`` of them each, lie end to end ``[sum of sizes, d]``: behind them and the ``tag``
    as many ``texts`` of each as of any other. ``lengths``: of texts, ``[texts]``."""

    def __init__(self, coder: Autoencoder, sizes: Sequence[int], texts: Sequence[Ints], tag: Tag) -> None:
        self._coder, device, many = coder, coder.tags.device, len(texts) // len(sizes)
        longest, first = max(map(len, texts)), sum(sizes)
        order = np.full((len(texts), 1 + max(sizes) + longest), first, np.int64)  # what stands first fills up
        says = np.zeros((len(texts), longest), np.int64)
        targets, there = says.copy(), np.zeros((len(texts), longest), bool)
        begins, words = (
            np.cumsum([0, *sizes]),
            first + 2,
        )  # what is read has what stands first, and the tag, behind slots
        for row, ids in enumerate(texts):
            begin, end = begins[row // many], begins[row // many + 1]
            some = [first, *range(begin, end), first + 1, *range(words, words + len(ids) - 1)]
            order[row, : len(some)] = some
            says[row] = np.minimum(1 + end - begin + np.arange(longest), len(some) - 1)
            targets[row, : len(ids)], there[row, : len(ids)] = ids, True
            words += len(ids) - 1
        known = np.concatenate([ids[:-1] for ids in texts])
        self.lengths = on_device(np.array([len(ids) for ids in texts], np.int64), device)
        self._order, self._says, self._targets, self._there = (
            on_device(one, device) for one in (order, says, targets, there)
        )
        kept, told = coder.embed.weight.dtype, coder.tags[TAGS.index(tag)][None]
        self._told = torch.cat([coder.first.to(kept), told.to(kept), coder.embed(on_device(known, device))]).detach()

    def nats(self, slots: torch.Tensor, teacher: torch.Tensor | None = None) -> torch.Tensor:
        """Of every token, behind the slots and the tokens before it, float32 ``[texts, longest]``, 0 behind ends. With
        the states ``[texts, longest, d]`` of a ``teacher``: cross entropy with what that says."""
        head = self._coder.model.get_output_embeddings().weight
        table = torch.cat([slots.to(self._told.dtype), self._told])
        hidden = self._coder.say(table[self._order])
        states = hidden.gather(1, self._says[..., None].expand(-1, -1, hidden.shape[2])).to(head.dtype)
        taught = None if teacher is None else Teacher(teacher.to(head.dtype), 1.0)
        return torch.where(self._there, nats_of(states, head, self._targets, ragged=True, teacher=taught), 0)
