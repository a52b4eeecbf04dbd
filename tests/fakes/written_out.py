"""Stands in for the GPU's kernels between products and behind the head, in torch's own words: wide passes on a CPU."""

from __future__ import annotations

import pytest
import row_by_row  # noqa: F401  the kernels of attention
import torch

Two = tuple[torch.Tensor, torch.Tensor]


def norm(states: torch.Tensor, weights: torch.Tensor, epsilon: float) -> torch.Tensor:
    return torch.nn.functional.rms_norm(states, weights.shape, weights, epsilon)


def turn(
    projected: torch.Tensor, turns: Two, heads: int, size: int, store: tuple[torch.Tensor, *Two] | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    parts = projected.view(len(projected), -1, size)
    key_heads = (parts.shape[1] - heads) // 2
    cosines, sines = (one[:, None] for one in turns)
    turned = parts[:, : heads + key_heads]
    one, two = turned.chunk(2, -1)
    turned.copy_(turned * cosines + torch.cat([-two, one], -1) * sines)
    query, keys, values = torch.split(parts, [heads, key_heads, key_heads], 1)
    if store is None:
        return query, keys, values
    slots, to_keys, to_values = store
    to_keys[slots], to_values[slots] = keys, values
    return query, to_keys, to_values


def gate(given: torch.Tensor) -> torch.Tensor:
    opened, through = given.chunk(2, -1)
    return torch.nn.functional.silu(opened) * through


def surprisal(logits: torch.Tensor, targets: torch.Tensor, cap: float | None = None) -> torch.Tensor:
    wide = logits.double() if cap is None else cap * torch.tanh(logits.double() / cap)
    return (wide.logsumexp(-1) - wide.gather(-1, targets[:, None])[:, 0]).float()


def write_out(patched: pytest.MonkeyPatch) -> None:
    """From here on passes may be wide, and logits read once."""
    from pipeline.passes import between
    from pipeline.passes import surprisal as behind

    patched.setattr(behind, "surprisal", surprisal)
    for one in (norm, turn, gate):
        patched.setattr(between, one.__name__, one)
