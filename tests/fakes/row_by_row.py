"""Stands in for the GPU's attention kernel on the CPU, once imported."""

from __future__ import annotations

import torch

from pipeline.passes.packed import attend


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
