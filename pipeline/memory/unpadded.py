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
    lengths = np.array([len(one.order) for one in how])
    pooled = coder.spec.layout == "pooled"
    if pooled:
        words = coder.embed(on_device(np.concatenate(spans), coder.memory.device))
    else:
        begins = np.cumsum(lengths) - lengths
        at = np.concatenate([one.places + begin for one, begin in zip(how, begins, strict=True)])
        words, places = _words(coder, spans, how, at)
    turned, pack = end_to_end(lengths, range(wide.window or 2**31 - 1), words.device)
    hidden = wide.read(words, turned, pack)
    return _means(hidden, how) if pooled else hidden[places]


def _words(
    coder: Autoencoder, spans: Sequence[Ints], how: Sequence[Reading], at: Ints
) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings in the order in which they are read, ``[tokens, d]``, memory tokens ``at`` their places; and these."""
    ids = np.zeros(sum(len(one.order) for one in how), np.int64)
    text = np.ones(len(ids), bool)
    text[at] = False
    ids[text] = np.concatenate(spans)  # tokens keep their order in every layout
    device = coder.memory.device
    places, words = on_device(at, device), coder.embed(on_device(ids, device))
    memory = coder.memory.to(words.dtype)
    if len(memory) > 1:
        memory = memory[on_device(np.concatenate([np.arange(len(one.places)) for one in how]), device)]
    words[places] = memory
    return words, places


def _means(hidden: torch.Tensor, how: Sequence[Reading]) -> torch.Tensor:
    """Of each slot's own run of tokens: these follow one another through all spans."""
    counts = on_device(np.concatenate([np.diff(one.ends, prepend=0) for one in how]), hidden.device)
    # Unsafe: not looked through, for which the device would be waited for.
    return torch.segment_reduce(hidden.float(), "mean", lengths=counts, unsafe=True)
