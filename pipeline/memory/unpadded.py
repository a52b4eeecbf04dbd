"""Spans of different lengths laid end to end in one pass of an encoder, for ``wide`` passes: nothing is padded."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from pipeline.memory.autoencoder import Autoencoder
from pipeline.memory.spans import Ints, Reading
from pipeline.passes.packed import end_to_end
from pipeline.passes.transfers import on_device
from pipeline.passes.wide import Wide


def states_of(coder: Autoencoder, wide: Wide, spans: Sequence[Ints], how: Sequence[Reading]) -> torch.Tensor:
    """What each slot is mapped from, ``[slots, d]``, span by span: states at memory tokens, or means where pooled."""
    lengths = np.array([1 + len(one.order) for one in how])
    firsts, pooled = np.cumsum(lengths) - lengths, coder.spec.layout == "pooled"
    memories = [] if pooled else [one.places + first + 1 for one, first in zip(how, firsts, strict=True)]
    text = np.ones(lengths.sum(), bool)
    text[np.concatenate([firsts, *memories])] = False
    ids = np.zeros(len(text), np.int64)
    ids[text] = np.concatenate(spans)  # tokens keep their order in every layout
    device = coder.memory.device
    words = coder.embed(on_device(ids, device))
    words[on_device(firsts, device)] = coder.first.to(words.dtype)
    places = on_device(np.flatnonzero(text) if pooled else np.concatenate(memories), device)
    if not pooled:
        words[places] = _memory(coder, how).to(words.dtype)
    turned, pack = end_to_end(lengths, range(wide.window or 2**31 - 1), device)
    hidden = wide.read(words, turned, pack)[places]
    return _means(hidden, how) if pooled else hidden


def _memory(coder: Autoencoder, how: Sequence[Reading]) -> torch.Tensor:
    """Memory tokens of all spans, or the one that they share, ``[slots or 1, d]``."""
    if len(coder.memory) == 1:
        return coder.memory
    return coder.memory[on_device(np.concatenate([np.arange(len(one.places)) for one in how]), coder.memory.device)]


def _means(hidden: torch.Tensor, how: Sequence[Reading]) -> torch.Tensor:
    """Of each slot's own run of tokens: these follow one another through all spans."""
    counts = on_device(np.concatenate([np.diff(one.ends, prepend=0) for one in how]), hidden.device)
    # Unsafe: not looked through, for which the device would be waited for.
    return torch.segment_reduce(hidden.float(), "mean", lengths=counts, unsafe=True)
