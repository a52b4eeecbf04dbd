"""Surprisal of every token of whole texts, each read once: what needs no iteration."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.batching import run_packed
from pipeline.compression.ragged import padded
from pipeline.compression.registry import Passed
from pipeline.compression.scoring import Scorer, Window, windows_of
from pipeline.compression.transfers import Fetch, on_device

Ints = NDArray[np.int64]
Nats = NDArray[np.float32]

ENOUGH = {"cpu": 512, "cuda": 8192}
"""Tokens in a pass that keep the device busy: from there on less padding is worth more than a larger batch."""


def surprisals(scorer: Scorer, texts: Sequence[Ints], passed: Passed = lambda tokens: None) -> list[Nats]:
    """Nats of every token of each text but its first, the start token.

    A text beyond ``Scorer.prefix`` tokens is read in windows of that length that overlap by half: every token sees all
    tokens before it, or at least half a window of them, whatever it is batched with.
    """
    windows = [(place, window) for place, ids in enumerate(texts) for window in windows_of(ids, scorer.prefix)]
    nats = read(scorer, [window for _, window in windows], passed)
    found: list[list[Nats]] = [[] for _ in texts]
    for (place, _), some in zip(windows, nats, strict=True):
        found[place].append(some)
    return [np.concatenate(some) for some in found]


def read(scorer: Scorer, windows: Sequence[Window], passed: Passed) -> list[Nats]:
    """Nats of the scored tokens of every window.

    One pass is in hand while the one before it comes back: the device never waits for the host's bookkeeping.
    """
    found: dict[int, Nats] = {}
    waiting: list[tuple[list[int], Fetch, Ints]] = []

    def settle() -> None:
        rows, fetched, counts = waiting.pop(0)
        nats = fetched()
        passed(len(nats))
        ends = np.cumsum(counts).tolist()
        found.update((row, nats[begin:end]) for row, begin, end in zip(rows, [0, *ends], ends, strict=False))

    def work(rows: list[int]) -> list[int]:
        waiting.append((rows, *_pass(scorer, [windows[row] for row in rows])))
        if len(waiting) > 1:
            settle()
        return rows

    lengths = [len(window.ids) for window in windows]
    run_packed(lengths, scorer.batch_tokens, work, enough=ENOUGH[scorer.device.type])
    while waiting:
        settle()
    return [found[row] for row in range(len(windows))]


@torch.inference_mode()
def _pass(scorer: Scorer, windows: Sequence[Window]) -> tuple[Fetch, Ints]:
    """One forward pass, and how many tokens of each window it scores. Padding stands on the right, where a causal model
    never looks."""
    lengths = np.array([len(window.ids) for window in windows])
    scored = np.array([window.scored for window in windows])
    ids = padded(np.concatenate([window.ids for window in windows]), lengths)
    place = np.arange(ids.shape[1])
    wanted = (place >= scored[:, None]) & (place < lengths[:, None])
    hidden = scorer.trunk(input_ids=on_device(ids, scorer.device), use_cache=False).last_hidden_state
    return scorer.surprisal_at(hidden.flatten(0, 1), np.flatnonzero(wanted) - 1, ids[wanted]), lengths - scored
