"""Run with TRITON_INTERPRET=1: how far ``attend_few`` is from attention written out in double precision.

A process of its own, as Triton must be told before it is imported. Takes cases as JSON ``[new, heads, key heads, size,
stored]`` and prints, for each, the largest difference of two calls in a row and what is left in the counters.
"""

from __future__ import annotations

import json
import sys

import torch

from pipeline.passes.few import attend_few


def written_out(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, first: torch.Tensor, stored: list[int], new: int
) -> torch.Tensor:
    """Token by token."""
    found, group = torch.empty_like(query), query.shape[1] // keys.shape[1]
    for row, before in enumerate(stored):
        for token in range(new):
            seen = slice(int(first[row]), int(first[row]) + before + token + 1)
            key, value = (one[seen].repeat_interleave(group, 1).double() for one in (keys, values))
            asked = query[row * new + token].double()
            weights = (torch.einsum("hd,nhd->hn", asked, key) * 0.2).softmax(-1)
            found[row * new + token] = torch.einsum("hn,nhd->hd", weights, value)
    return found


def off(new: int, heads: int, key_heads: int, size: int, stored: list[int]) -> tuple[float, int]:
    """Of one case."""
    torch.manual_seed(0)
    rows, room = len(stored), max(stored) + new + 3
    keys, values = (torch.randn(rows * room, key_heads, size) for _ in range(2))
    query = torch.randn(heads, rows * new, size).transpose(0, 1)  # as projections leave it
    first, arrived = (torch.arange(rows) * room).flip(0), torch.zeros(rows * heads, dtype=torch.int32)
    expected = written_out(query, keys, values, first, stored, new)
    found = [attend_few(query, keys, values, first, torch.tensor(stored), arrived, new, 0.2) for _ in range(2)]
    return max(float((one - expected).abs().max()) for one in found), int(arrived.abs().sum())


if __name__ == "__main__":
    print(json.dumps([off(*case) for case in json.loads(sys.argv[1])]))
