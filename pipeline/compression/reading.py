"""Surprisal of every token of whole texts, each read once: what needs no iteration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.batching import run_packed
from pipeline.compression.registry import Passed
from pipeline.compression.scoring import Scorer, Window, windows_of
from pipeline.passes.ragged import ragged
from pipeline.passes.transfers import Fetch, on_device

T = TypeVar("T")

Ints = NDArray[np.int64]
Nats = NDArray[np.float32]

ENOUGH = {"cpu": 512, "cuda": 8192}
"""Tokens in a pass that keep the device busy: from there on less padding is worth more than a larger batch."""


def in_passes(scorer: Scorer, lengths: Sequence[int], work: Callable[[list[int]], Sequence[T]]) -> list[T]:
    """``work`` with the numbers of whole texts of these ``lengths``, as many as ``scorer`` reads at once."""
    enough = None if scorer.packs else ENOUGH[scorer.device.type]
    return run_packed(lengths, scorer.batch_tokens, work, enough=enough, padded=not scorer.packs)


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

    in_passes(scorer, [len(window.ids) for window in windows], work)
    while waiting:
        settle()
    return [found[row] for row in range(len(windows))]


@torch.inference_mode()
def _pass(scorer: Scorer, windows: Sequence[Window]) -> tuple[Fetch, Ints]:
    """One forward pass, and how many tokens of each window it scores."""
    lengths = np.array([len(window.ids) for window in windows])
    scored = np.array([window.scored for window in windows])
    ids = np.concatenate([window.ids for window in windows])
    row, place = ragged(lengths)
    wanted = np.flatnonzero(place >= scored[row])
    hidden = scorer.states(on_device(ids, scorer.device), lengths)
    return scorer.surprisal_at(hidden, wanted - 1, ids[wanted]), lengths - scored
