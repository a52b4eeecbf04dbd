"""Spans of different lengths in one pass of an encoder.

Padded on the right: a causal model says of a token what it says without those behind it, so no mask is needed, and
memory tokens stand where they stand in a span alone. Where the encoder's passes are wide they are ``unpadded``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch

from pipeline.memory.autoencoder import Autoencoder, means
from pipeline.memory.spans import Ints, reading
from pipeline.memory.unpadded import states_of
from pipeline.passes.transfers import on_device
from schemas.memory import Layout

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


@dataclass(frozen=True, slots=True)
class Laid:
    """Spans as a padded pass reads them: their ``ids`` ``[rows, longest]``; the ``order`` ``[rows, longest + most]`` in
    which these and memory tokens are read, which are numbered behind the longest span; and of the ``most`` slots of
    each the ``places`` ``[rows, most]``: where memory tokens stand, or where what is pooled ends."""

    ids: torch.Tensor
    order: torch.Tensor
    places: torch.Tensor


def lay(
    spans: Sequence[Ints], slots: Sequence[int], layout: Layout, device: torch.device, rows: int = 0, longest: int = 0,
    most: int = 0,
) -> Laid:  # fmt: skip
    """Token ids of each span, and how many slots it is to have; in room for so many ``rows``, tokens and slots at
    least."""
    how = [reading(len(ids), count, layout) for ids, count in zip(spans, slots, strict=True)]
    rows, longest, most = max(rows, len(spans)), max(longest, *map(len, spans)), max(most, *slots)
    ids, places = np.zeros((rows, longest), np.int64), np.zeros((rows, most), np.int64)
    order = np.zeros((rows, 0 if layout == "pooled" else longest + most), np.int64)
    for row, (span, one) in enumerate(zip(spans, how, strict=True)):
        ids[row, : len(span)] = span
        ends = one.ends if layout == "pooled" else one.places
        places[row, : len(ends)], places[row, len(ends) :] = ends, ends[-1]
        if layout != "pooled":  # memory tokens are numbered from the span's own end
            order[row, : len(one.order)] = np.where(one.order < len(span), one.order, one.order - len(span) + longest)
    return Laid(*(on_device(one, device) for one in (ids, order, places)))


def encode_laid(coder: Autoencoder, laid: Laid) -> torch.Tensor:
    """``[rows, most, d]``: of a span of fewer slots the last one again and again."""
    words: torch.Tensor = coder.embed(laid.ids)
    if coder.spec.layout != "pooled":
        most = laid.places.shape[1]
        memory = coder.memory[:most].to(words.dtype).expand(most, -1)
        known = torch.cat([words, memory.expand(len(words), -1, -1)], 1)
        words = known.gather(1, laid.order[..., None].expand(-1, -1, known.shape[2]))
    hidden = coder.read(coder.behind(words))[:, 1:]
    if coder.spec.layout == "pooled":
        found = means(hidden, laid.places)
    else:
        found = hidden.gather(1, laid.places[..., None].expand(-1, -1, hidden.shape[2]))
    return cast("torch.Tensor", coder.map(found.to(coder.map.weight.dtype)))


def encode_spans(coder: Autoencoder, spans: Sequence[Ints], slots: Sequence[int]) -> list[torch.Tensor]:
    """Token ids of each span, and how many slots it is to have -> its slots ``[k, d]``, on the coder's device."""
    if coder.wide is not None:
        how = [reading(len(ids), count, coder.spec.layout) for ids, count in zip(spans, slots, strict=True)]
        states = states_of(coder, coder.wide, spans, how)
        return list(torch.split(coder.map(states.to(coder.map.weight.dtype)), list(slots)))
    made = encode_laid(coder, lay(spans, slots, coder.spec.layout, coder.memory.device))
    return [one[:count] for one, count in zip(made, slots, strict=True)]
