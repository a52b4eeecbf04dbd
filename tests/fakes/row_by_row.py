"""Stands in for the GPU's attention kernels on the CPU, once imported."""

from __future__ import annotations

import torch

from pipeline.passes import packed
from pipeline.passes.packed import attend, attend_few


@attend.register_kernel("cpu")
def _row_by_row(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, begins: torch.Tensor, first: torch.Tensor,
    used: torch.Tensor, longest: int, most_used: int, causal: bool, scale: float,
) -> torch.Tensor:  # fmt: skip
    """What the GPU's kernel computes, word for word."""
    found = torch.full_like(query, float("nan"))
    for row, (begin, end) in enumerate(zip(begins[:-1].tolist(), begins[1:].tolist(), strict=True)):
        columns = slice(int(first[row]), int(first[row] + used[row]))
        assert end - begin <= longest and used[row] <= most_used
        mask = torch.ones(end - begin, int(used[row]), dtype=torch.bool)
        mask = mask.tril(int(used[row]) - (end - begin)) if causal else mask
        asked, key, value = (one.transpose(0, 1)[None] for one in (query[begin:end], keys[columns], values[columns]))
        seen = torch.nn.functional.scaled_dot_product_attention(asked, key, value, mask, scale=scale, enable_gqa=True)
        found[begin:end] = seen[0].transpose(0, 1)
    return found


packed.flash = _row_by_row


@attend_few.register_kernel("cpu")
def _token_by_token(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, first: torch.Tensor, stored: torch.Tensor,
    arrived: torch.Tensor, new: int, scale: float,
) -> torch.Tensor:  # fmt: skip
    key_heads, rows = keys.shape[1], len(first)
    assert not arrived.any() and len(arrived) >= rows * key_heads * -(-new * query.shape[1] // key_heads // 64)
    begins = torch.arange(0, rows * new + 1, new)
    longest = int(stored.max()) + new
    found: torch.Tensor = _row_by_row(query, keys, values, begins, first, stored + new, new, longest, True, scale)
    return found
