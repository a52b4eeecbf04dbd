"""Slots fitted to their own spans: some steps of gradient descent from where the encoder left them.

An encoder reads a span once, and nobody tells it what it got wrong. Who encodes has the span: it can be asked back from
its slots, and these moved until it comes. The model that reads them stays as it is. (That vectors hold far more than
encoders put into them was shown by Kuratov et al., arXiv 2502.13063, from nothing and in thousands of steps.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from pipeline.memory.autoencoder import Autoencoder
from pipeline.memory.saying import nats
from pipeline.memory.spans import Ints
from pipeline.passes.compiling import uncompiled

RATE = 0.02
"""What a number moves at first, in deviations of this number over slots of the encoder's training: numbers of a slot
differ by hundreds."""

FASTER, SLOWER = 1.2, 0.5
"""Times that it moves as far after a step that helped its span, and after one that did not."""

SURE = -math.log(0.9)
"""Nats of a token below which nothing more is asked of it."""


def refined(
    coder: Autoencoder, spans: Sequence[Ints], slots: Sequence[torch.Tensor], steps: int,
    alive: Callable[[], None] = lambda: None,
) -> list[torch.Tensor]:  # fmt: skip
    """Slots ``[k, d]`` of each span after at most so many ``steps`` of Adam on the nats of repeating it, with a rate of
    its own: of all that were tried those of the fewest, so that none is worse than before. A step is one pass of all
    spans and its way back; ``alive`` is called before each, and may raise."""
    sizes, said = [len(one) for one in slots], [ids.tolist() for ids in spans]
    row = torch.repeat_interleave(torch.tensor(sizes)).to(coder.tags.device)
    with torch.inference_mode(False), torch.enable_grad(), uncompiled(coder.tags.device):
        begun = torch.cat([*slots]).clone().float()
        now, best = begun, begun
        mean, square = torch.zeros_like(begun), torch.zeros_like(begun)
        least = torch.full((len(sizes),), math.inf, device=begun.device)
        rate = torch.full_like(least, RATE / FASTER)
        for step in range(1, steps + 2):
            alive()
            now = now.detach().requires_grad_()
            prompts = [coder.prompt([[], []], [one], "AE") for one in torch.split(now, sizes)]
            found = nats(coder, prompts, said)
            total, worst = (torch.stack([how(one.detach()) for one in found]) for how in (torch.mean, torch.max))
            better = total < least
            best, least = torch.where(better[row, None], now.detach(), best), torch.minimum(total, least)
            if step > steps or bool((worst < SURE).all()):
                break
            (slope,) = torch.autograd.grad(torch.cat(found).sum(), now)
            slope = slope * coder.typical[1]
            mean, square = torch.lerp(slope, mean, 0.9), torch.lerp(slope.square(), square, 0.95)
            rate = rate * torch.where(better, FASTER, SLOWER) * (worst >= SURE)  # 0 for good: as it would be alone
            way = mean / (1 - 0.9**step) / (square / (1 - 0.95**step)).sqrt().clamp_min(1e-12)
            now = now.detach() - rate[row, None] * coder.typical[1] * way
    return [one.to(its.dtype) for one, its in zip(torch.split(best, sizes), slots, strict=True)]
