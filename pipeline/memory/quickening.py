"""Trainings whose passes are of all lengths, compiled for any shape where that was seen to say the same, sooner."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from pipeline.memory.autoencoder import Autoencoder
from pipeline.memory.training import Part
from pipeline.passes.packable import doubt
from pipeline.stages import Stopped

log = logging.getLogger(__name__)

_PROGRAMS = 32
"""Most of one layer's code: encoding and decoding, few tokens and many, a single row. Beyond, torch is eager again."""

_LOSSES, _SLOPES = 0.02, 0.1
"""That losses, and gradients, may be off: in bfloat16 either way is some hundredths off float32."""


class _Tried(NamedTuple):
    losses: torch.Tensor
    slopes: torch.Tensor
    seconds: float


def quicken(coder: Autoencoder, parts: Sequence[Part], half: bool, alive: Callable[[], None] = lambda: None) -> bool:
    """Compile what ``coder`` learns with, tried on ``parts``. False, and all is as before, where that cannot be, says
    something else or takes longer, which is logged. Raises what learning from them raises as it is, and what ``alive``
    does, which is called between passes."""
    _try(coder, parts, half, alive)  # once for whatever comes but once
    plain = _try(coder, parts, half, alive)
    settings: Any = torch._dynamo.config
    settings.recompile_limit = max(settings.recompile_limit, _PROGRAMS)
    coder.hasten(dynamic=True)
    try:
        _try(coder, parts, half, alive)  # compiles
        fast = _try(coder, parts, half, alive)
    except Stopped:
        raise
    except Exception as error:  # noqa: BLE001  compilers fail in ways of their own
        coder.zero_grad(set_to_none=True)
        why = " ".join(str(error).split())[:300] or type(error).__name__
    else:
        why = _doubt(fast, plain)
    if why:
        coder.slow_down()
        log.warning("passes are not compiled: %s", why)
        return False
    log.info("passes are compiled: %.0f ms for %.0f ms", 1e3 * fast.seconds, 1e3 * plain.seconds)
    return True


def _doubt(fast: _Tried, plain: _Tried) -> str:
    if why := doubt(lambda: (fast.losses, plain.losses), _LOSSES):
        return f"of their losses {why}"
    if why := doubt(lambda: (fast.slopes, plain.slopes), _SLOPES):
        return f"of their gradients {why}"
    if fast.seconds >= plain.seconds:
        return f"they take {1e3 * fast.seconds:.0f} ms, and {1e3 * plain.seconds:.0f} ms as they are"
    return ""


def _try(coder: Autoencoder, parts: Sequence[Part], half: bool, alive: Callable[[], None]) -> _Tried:
    """``slopes``: of all that is trained by its size, and of what stands beside the layers whole."""
    device, losses = coder.tags.device, []
    coder.zero_grad(set_to_none=True)
    began = _now(device)
    for part in parts:
        alive()
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            loss = part.loss(coder)
        loss.backward()  # type: ignore[no-untyped-call]
        losses.append(loss.detach().float())
    seconds = _now(device) - began
    slopes = [one.grad.float().norm()[None] for one in coder.trained().values() if one.grad is not None]
    own = [one.grad.float().flatten() for one in (coder.tags, coder.first, coder.map.weight) if one.grad is not None]
    coder.zero_grad(set_to_none=True)
    return _Tried(torch.stack(losses), torch.cat(slopes + own), seconds)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
