"""Padded passes of an encoder-decoder: its encoder reads a row's text once, its decoder after its own stored columns.

What the decoder attends to of a text are keys and values like any others, stored row by row. transformers' decoders
know one position for all rows of a pass; here every row is told its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.utils.rnn import pad_sequence
from transformers.cache_utils import Cache, EncoderDecoderCache

from pipeline.passes.padded import Layer, PaddedPasses, Pass, Store
from pipeline.passes.ragged import ragged
from pipeline.passes.transfers import on_device
from pipeline.passes.vectors import Vectors, input_of

Ints = NDArray[np.int64]


class _Text(Layer):
    """What the decoder's layer sees of the texts: in a first pass it is asked to keep them, later they are there."""

    def __init__(self, store: Store, layer: int, one: Pass) -> None:
        super().__init__(store, layer, one)
        if not one.first:
            self.keys, self.values = store.read(layer, one)


class EncodedPasses(PaddedPasses):
    """Passes of the decoder of ``model``, each row after its text and what was stored of it. Nothing is stored yet."""

    def __init__(self, model: Any, rows: int, window: int) -> None:
        super().__init__(model.get_decoder(), rows, window)
        config = self.trunk.config
        self._encoder, self._texts = model.get_encoder(), Store(rows)
        self._layers = getattr(config, "decoder_layers", None) or config.num_hidden_layers
        self._lengths = np.zeros(rows, np.int64)  # of the texts
        self._there = on_device(self._lengths, self.device).clone()

    def encode(self, rows: Ints, texts: Sequence[Sequence[int] | Ints], vectors: Vectors | None = None) -> None:
        """Read these texts, after which ``rows`` are written from now on; in place of some tokens, counted through all
        texts, ``vectors``."""
        lengths, count = np.array([len(text) for text in texts]), len(rows)
        ids = pad_sequence([torch.as_tensor(text) for text in texts], batch_first=True).to(self.device)
        there = on_device(rows, self.device)
        self._lengths[rows], self._there[there] = lengths, on_device(lengths, self.device)
        seen = torch.arange(ids.shape[1], device=self.device) < self._there[there][:, None]
        row, column = ragged(lengths)
        row, column, to = on_device(np.stack([row, column, rows[row]]), self.device)
        if vectors is not None:
            vectors = Vectors((row * ids.shape[1] + column)[vectors.at], vectors.states)
        states = self._encoder(**input_of(self._encoder, ids, vectors), attention_mask=seen.long()).last_hidden_state
        kept = Pass(row, column, to, column, there, self.round(ids.shape[1]), True)
        # Keys and values are made where they are first attended to: by a token that is written over afterwards.
        first = torch.zeros_like(there)
        one = Pass(torch.arange(count, device=self.device), first, there, first, there, self.round(1), False)
        self._decode(first[:, None], first[:, None], one, kept, states)

    def pretend(self, length: int) -> None:
        """All rows are written after a text of so many tokens, whichever: what passes take is to be measured."""
        rows = np.arange(len(self._lengths))
        self.encode(rows[:1], [[0] * min(length, self._window)])
        self.copy(np.zeros_like(rows[1:]), rows[1:], np.zeros_like(rows[1:]))

    def copy(self, sources: Ints, targets: Ints, counts: Ints) -> None:
        """The first ``counts`` columns of rows ``sources`` to rows ``targets``, which are others, and their texts."""
        super().copy(sources, targets, counts)
        for source, target in zip(sources.tolist(), targets.tolist(), strict=True):
            self._texts.copy(source, target, int(self._lengths[source]))
            self._lengths[target], self._there[target] = self._lengths[source], self._there[source]

    def _pass(
        self, ids: torch.Tensor, positions: torch.Tensor, one: Pass, vectors: Vectors | None = None
    ) -> torch.Tensor:
        texts = replace(one, width=self.round(int(self._lengths.max())), first=False)
        return self._decode(ids, positions, replace(one, first=False), texts, ids)  # of states only that there are any

    def _decode(
        self, ids: torch.Tensor, positions: torch.Tensor, one: Pass, texts: Pass, states: torch.Tensor
    ) -> torch.Tensor:
        """Hidden states ``[rows, new, d]`` after ``texts``, whose ``states`` count where they are not stored yet."""
        seen = torch.arange(texts.width, device=self.device) < self._there[texts.rows][:, None]
        own = Cache(layers=[Layer(self._store, layer, one) for layer in range(self._layers)])
        other = Cache(layers=[_Text(self._texts, layer, texts) for layer in range(self._layers)])
        with _placed(self.trunk, positions.clamp(max=self._window - 1), one.width):
            output = self.trunk(
                input_ids=ids,
                attention_mask=self._mask(positions, one.width),
                encoder_hidden_states=states,
                encoder_attention_mask=seen[:, None, None],
                past_key_values=EncoderDecoderCache(own, other),
                use_cache=True,
            )
        hidden: torch.Tensor = output.last_hidden_state
        return hidden


@contextmanager
def _placed(trunk: Any, positions: torch.Tensor, width: int) -> Iterator[None]:
    """The tokens of a pass are at ``positions`` ``[rows, new]`` and attend to ``width`` columns: that is told to what
    adds places to tokens, learned or computed (BART and its kin), and to what adds distances to scores (T5 and its)."""
    with ExitStack() as stack:
        for one in trunk.modules():
            if getattr(one, "has_relative_attention_bias", False):
                bias = _bias(one, positions, width)
                one.compute_bias = lambda *_, bias=bias, **__: bias
                stack.callback(delattr, one, "compute_bias")
        if places := getattr(trunk, "embed_positions", None):
            places.forward = partial(_embedded, places.forward, positions)
            stack.callback(delattr, places, "forward")
        yield


def _bias(attention: Any, positions: torch.Tensor, width: int) -> torch.Tensor:
    """``[rows, heads, new, width]``: by how far back a column lies, as of a text's last token, which sees all."""
    back = attention.compute_bias(1, width, past_seen_tokens=width - 1)[0, :, 0]
    columns = torch.arange(width, device=positions.device)
    found: torch.Tensor = back[:, (width - 1 - positions[..., None] + columns).clamp(0, width - 1)]
    return found.transpose(0, 1)


def _embedded(embed: Any, positions: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
    """``[rows, new, d]``, of rows whose tokens are said to follow each other."""
    options["position_ids"] = positions.flatten()
    found: torch.Tensor = embed(*args, **options)
    return found.view(*positions.shape, -1)
