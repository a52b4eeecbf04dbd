"""The least time in which a device can do what a model is asked: by operations, or by the bytes that must be moved.

Whichever takes longer counts (Williams et al., "Roofline", 2009). Numbers are those of the matrix products: a token
passes ``weights`` of the layers, two operations each, and meets n columns in 4 * heads * size * n more operations in
each layer. Norms, activations, launches and what the host does count for nothing: it is a floor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.measuring import spent
from pipeline.memory.autoencoder import Autoencoder
from pipeline.memory.lowrank import LowRank

_RUNS = 9


@dataclass(frozen=True, slots=True)
class Work:
    """Operations, and bytes that are read or written."""

    operations: float
    bytes: float


@dataclass(frozen=True, slots=True)
class Machine:
    """What a device does in a second at best, as measured: operations of one large matrix product, bytes read and
    written by one large copy."""

    operations: float
    bytes: float

    @classmethod
    @torch.inference_mode()
    def measured(cls, device: torch.device, dtype: torch.dtype) -> Machine:
        """The fastest of several products and copies."""
        size, numbers = (8192, 2**29) if device.type == "cuda" else (1024, 2**26)
        one = torch.randn(size, size, device=device).to(dtype)
        held = torch.zeros(numbers, dtype=dtype, device=device)
        there = torch.empty_like(held)
        product = min(spent(lambda: one @ one, device)[1] for _ in range(_RUNS))
        copy = min(spent(lambda: there.copy_(held), device)[1] for _ in range(_RUNS))
        return cls(2 * size**3 / product, 2 * held.nbytes / copy)

    def seconds(self, works: Sequence[Work]) -> float:
        """For these, one after the other."""
        return sum(max(one.operations / self.operations, one.bytes / self.bytes) for one in works)


@dataclass(frozen=True, slots=True)
class LowRanks:
    """Of an encoder: low-rank ``numbers``, and multiplications by which they are once added to what they stand
    beside."""

    numbers: int
    merging: int

    @classmethod
    def of(cls, coder: Autoencoder) -> LowRanks:
        """All of its layers together; zeros where it has a trunk of its own."""
        found = [one for one in coder.modules() if isinstance(one, LowRank)]
        numbers = sum(one.lora_A.numel() + one.lora_B.numel() for one in found)
        return cls(numbers, sum(one.lora_A.numel() * len(one.lora_B) for one in found))


@dataclass(frozen=True, slots=True)
class Shapes:
    """Of a model: ``weights`` in the matrix products of its layers, numbers in its ``head``, and ``bytes`` of each."""

    layers: int
    heads: int
    key_heads: int
    size: int
    weights: int
    head: int
    bytes: int

    @classmethod
    def of(cls, model: Any) -> Shapes:
        """Of a causal LM of transformers', with nothing beside its own weights."""
        config, table = model.config, model.get_output_embeddings().weight
        heads = config.num_attention_heads
        key_heads = getattr(config, "num_key_value_heads", None) or heads
        size = getattr(config, "head_dim", None) or config.hidden_size // heads
        weights = sum(one.numel() for one in model.get_decoder().layers.parameters() if one.ndim == 2)
        return cls(config.num_hidden_layers, heads, key_heads, size, weights, table.numel(), table.element_size())

    @property
    def column(self) -> int:
        """Bytes of the keys and values of one place."""
        return 2 * self.layers * self.key_heads * self.size * self.bytes

    def reading(self, rows: int, places: int) -> Work:
        """Prompts of ``places`` each, up to the first token of every answer: each place sees itself and those before;
        all weights are read once, keys and values written."""
        products = 2 * (self.weights * places + self.head)
        moved = (self.weights + self.head) * self.bytes + rows * places * self.column
        return Work(rows * (products + self._attention(_pairs(places))), moved)

    def step(self, rows: int, columns: int) -> Work:
        """One more token for each, which sees ``columns``, its own included: all of them are read, and all weights."""
        weights = self.weights + self.head
        return Work(
            rows * (2 * weights + self._attention(columns)), weights * self.bytes + rows * columns * self.column
        )

    def answering(self, rows: int, places: int, new: int) -> list[Work]:
        """Prompts of ``places`` and ``new`` tokens of each answer, the last of which is never read."""
        return [self.reading(rows, places), *(self.step(rows, places + made) for made in range(1, new))]

    def encoding(self, spans: Sequence[tuple[int, int]], low: LowRanks, map_: int) -> Work:
        """Spans of so many tokens and slots, memory tokens beside them and one place before, by these weights and
        low-rank ones, merged if that is less; slots pass through a ``map_`` of so many numbers. As if in one pass."""
        each = [1 + tokens + slots for tokens, slots in spans]
        pairs, places = sum(map(_pairs, each)), sum(each)
        products = 2 * self.weights * places + 2 * map_ * sum(slots for _, slots in spans)
        products += 2 * min(low.merging, low.numbers * places)
        return Work(products + self._attention(pairs), (self.weights + low.numbers + map_) * self.bytes)

    def _attention(self, pairs: float) -> float:
        """Scores and weighted values of so many pairs of a token and a column."""
        return 4 * self.layers * self.heads * self.size * pairs


def _pairs(places: int) -> float:
    return places * (places + 1) / 2
