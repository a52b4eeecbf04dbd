"""Whether what a round does besides passes is done by kernels of our own (``matching``, ``settling``): where they were
seen to do what torch's do."""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pipeline.generation.lines import Lines
from pipeline.generation.rounds import Model, cascade
from pipeline.generation.sampling import Choosing
from pipeline.passes.compiling import LAUNCHING
from schemas.drafting import Plan
from schemas.stage import GenerateSpec

log = logging.getLogger(__name__)

_TOKENS = 512
_LENGTHS = (1, 2, 40, 1500)  # one that a program looks at, and one that several do
_PLANS = (Plan(), Plan(copied=7), Plan(rounds=(2,)), Plan(copied=2, rounds=(2,), tail=1))


@functools.cache
def launches(device: torch.device) -> bool:
    """Whether lines on ``device`` may be worked on so; tried out once, which takes a second or two."""
    if device.type != "cuda":
        return False
    if why := unlike(device):
        log.warning("what stands around passes is launched in small pieces, and takes a little longer: %s", why)
    return not why


@torch.inference_mode()
def unlike(device: torch.device) -> str:
    """Why rounds by kernels of our own on ``device`` are none; empty where they do what torch's do."""
    try:
        with LAUNCHING:
            ways = [(plan, temperature) for plan in _PLANS for temperature in (0.0, 1.0)]
            off = [way for way in ways if not _alike(*(_rounds(*way, device, ours) for ours in (False, True)))]
    except Exception as error:  # noqa: BLE001  compilers and drivers fail in ways of their own
        return " ".join(str(error).split())[:300] or type(error).__name__
    return f"rounds of {off} end otherwise" if off else ""


def _alike(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(mine, its) for mine, its in zip(one, other, strict=True))


@dataclass(frozen=True, slots=True)
class _Table:
    """In place of a model's passes: what is said after a token hangs on it alone."""

    states: torch.Tensor

    def read_on(self, slots: torch.Tensor, ids: torch.Tensor, stored: torch.Tensor, most: int) -> torch.Tensor:
        """As of ``StoredPasses``."""
        return self.states[ids.flatten()]


def _rounds(plan: Plan, temperature: float, device: torch.device, ours: bool) -> list[torch.Tensor]:
    """Three rounds of lines of few different tokens: all that came of them."""
    drawn, rows = np.random.default_rng(0), len(_LENGTHS)
    lines = Lines(rows, max(_LENGTHS) + 99, 99, device, ours, (_TOKENS, 8))
    lines.learn(drawn.permutation(_TOKENS))
    nothing = [np.zeros(0, np.int64)] * rows
    lines.begin(np.arange(rows), [0] * rows, nothing, [drawn.integers(0, 4, one) for one in _LENGTHS], np.arange(rows))
    some = lines.of(torch.arange(rows, device=device))  # their first tokens are there
    some.put(some.length[:, None], some.slots[:, None])
    some.keep(some.length + 1)
    logits = torch.from_numpy(drawn.integers(0, 9, (_TOKENS, _TOKENS))).to(device, torch.bfloat16)
    logits[:, :4] += 8  # ties among few tokens, some of which were said before
    other = torch.cat([logits[:1].roll(1, 1), logits[1:]])  # it agrees behind most tokens
    passes: list[Any] = [_Table(one) for one in (logits, other)]
    models = [Model(one, torch.nn.Identity(), _TOKENS) for one in passes]
    choose = Choosing(GenerateSpec(kind="generate", temperature=temperature))
    target = cascade(models[0], models[1 : 1 + len(plan.rounds)], plan, choose)
    slots = torch.tensor([2, 0, 3, lines.idle, 1], device=device)
    found = [target.round(lines, slots, 1 + target.most, 0)[0] for _ in range(3)]
    # Behind what is written stand drafts that were given up.
    there = torch.arange(lines.tokens.shape[1], device=device) < lines.length[:-1, None]
    return [*found, lines.known[:-1], torch.where(there, lines.tokens, -1)[:-1], *lines.scratch]
