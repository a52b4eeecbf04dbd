"""Spans of different lengths in one pass of an encoder.

Padded on the right: a causal model says of a token what it says without those behind it, so no mask is needed, and
memory tokens stand where they stand in a span alone. Where the encoder's passes are wide they are ``unpadded``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from pipeline.memory.autoencoder import Autoencoder, means
from pipeline.memory.spans import Ints, Reading, reading
from pipeline.memory.unpadded import states_of
from pipeline.passes.transfers import on_device

_CPU_TOKENS = 2048


def pass_tokens(batch_tokens: int, device: torch.device) -> int:
    """Most tokens of a pass that learns nothing: on a CPU more are no faster, and keep a worker that is to stop."""
    return min(batch_tokens, _CPU_TOKENS) if device.type == "cpu" else batch_tokens


def written_tokens(batch_tokens: int, device: torch.device) -> int:
    """Most tokens of rows that are written out together. Each token is a pass, of which a CPU takes longest to read the
    weights: many rows take hardly longer than a few."""
    return min(batch_tokens, 8 * _CPU_TOKENS) if device.type == "cpu" else batch_tokens


def places_of(tokens: int, slots: int, coder: Autoencoder) -> int:
    """What a span takes in a pass."""
    return 1 + tokens + (0 if coder.spec.layout == "pooled" else slots)


def encode_spans(coder: Autoencoder, spans: Sequence[Ints], slots: Sequence[int]) -> list[torch.Tensor]:
    """Token ids of each span, and how many slots it is to have -> its slots ``[k, d]``, on the coder's device."""
    how = [reading(len(ids), count, coder.spec.layout) for ids, count in zip(spans, slots, strict=True)]
    if coder.wide is not None:
        states = states_of(coder, coder.wide, spans, how)
        return list(torch.split(coder.map(states.to(coder.map.weight.dtype)), list(slots)))
    hidden = coder.read(coder.behind(_words(coder, spans, how)))[:, 1:]
    if coder.spec.layout == "pooled":
        found = means(hidden, _padded([one.ends for one in how], hidden.device, last=True))
    else:
        places = _padded([one.places for one in how], hidden.device)
        found = hidden.gather(1, places[..., None].expand(-1, -1, hidden.shape[2]))
    made: torch.Tensor = coder.map(found.to(coder.map.weight.dtype))
    return [one[:count] for one, count in zip(made, slots, strict=True)]


def _words(coder: Autoencoder, spans: Sequence[Ints], how: Sequence[Reading]) -> torch.Tensor:
    """Embeddings in the order in which they are read, ``[rows, longest, d]``."""
    device = coder.memory.device
    words: torch.Tensor = coder.embed(_padded(spans, device))
    if coder.spec.layout == "pooled":
        return words
    longest, most = words.shape[1], max(len(one.places) for one in how)
    memory = coder.memory[:most].to(words.dtype).expand(most, -1)
    known = torch.cat([words, memory.expand(len(words), -1, -1)], 1)
    order = _padded([one.order for one in how], device)
    # Memory tokens are numbered from the span's own end: here they stand behind the longest.
    ends = on_device(np.array([len(ids) for ids in spans]), device)[:, None]
    order = torch.where(order < ends, order, order - ends + longest)
    return known.gather(1, order[..., None].expand(-1, -1, known.shape[2]))


def _padded(rows: Sequence[Ints], device: torch.device, *, last: bool = False) -> torch.Tensor:
    """Rows of whole numbers as one rectangle, filled up with 0, or with the ``last`` number of each."""
    found = np.zeros((len(rows), max(map(len, rows))), np.int64)
    for place, row in enumerate(rows):
        found[place, : len(row)] = row
        found[place, len(row) :] = row[-1] if last else 0
    return on_device(found, device)
