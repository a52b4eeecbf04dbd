"""Compiled layers on a GPU in half precision: twice the tokens a second, after a few seconds once.

Eager layers of small models spend more time between their matrix products than in them. float32 stays eager: there
results are to be the same on every machine.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from pipeline.passes.joined import join
from pipeline.passes.unstored import Unstored

log = logging.getLogger(__name__)

LAUNCHING = threading.RLock()
"""Held while compiled code is called, hence while it is compiled anew: what torch traces in one thread, no other thread
may call. What a GPU is given to do does not wait for it to be done, so lanes lose next to nothing."""

_GRAPHS = 64
"""Most programs of one layer's code, which models of a kind share; torch would go back to eager beyond eight."""


_BESIDE = "norm", "rotary_emb"
"""What transformers runs before and after the layers of a causal model: a dozen kernels each, as small as can be."""


def one_at_a_time(call: Any) -> Any:
    """``call`` under ``LAUNCHING``."""

    @functools.wraps(call)
    def alone(*args: Any, **kwargs: Any) -> Any:
        with LAUNCHING:
            return call(*args, **kwargs)

    return alone


def hasten(model: Any, layers: Sequence[Any], try_out: Callable[[], None]) -> bool:
    """Compile the ``layers`` of ``model`` where they read without a cache; False where this machine cannot.

    ``try_out`` makes the model read something: the first model of a kind takes a few seconds to compile. Afterwards
    one thread at a time calls ``model``.
    """
    with LAUNCHING:
        if not hasattr(model, "contextmill_compiled"):
            model.contextmill_compiled = _compiles(model, layers, try_out)
        return bool(model.contextmill_compiled)


def _compiles(model: Any, layers: Sequence[Any], try_out: Callable[[], None]) -> bool:
    settings: Any = torch._dynamo.config
    settings.recompile_limit = max(settings.recompile_limit, _GRAPHS)
    beside = [getattr(model, name) for name in _BESIDE if hasattr(model, name)]
    plain = {layer: layer.forward for layer in [model, *beside, *layers]}
    model.forward = one_at_a_time(model.forward)
    for one in beside:
        one.forward = torch.compile(one.forward, dynamic=True)
    for number, layer in enumerate(layers):
        join(layer)
        layer.forward = _dispatching(layer.forward, number)
    try:
        try_out()
    except Exception as error:  # noqa: BLE001  compilers, drivers and caches fail in ways of their own
        for layer, forward in plain.items():
            layer.forward = forward
        why = " ".join(str(error).split())[:300]
        log.warning("the model runs uncompiled, at about half the speed: %s", why)
        return False
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # what held the weights that were joined
    return True


def _dispatching(forward: Any, number: int) -> Any:
    """Compiled but where there is a cache of transformers' kind, which is written to layer by layer, each its own
    program. A packed pass (``packed.Pack``) tells every layer its own share."""
    compiled: Any = torch.compile(forward, dynamic=True)

    @functools.wraps(forward)
    def choose(*args: Any, packed: Any = None, **kwargs: Any) -> Any:
        if isinstance(kwargs.get("past_key_values"), Unstored):
            kwargs["past_key_values"] = None
        if kwargs.get("past_key_values") is not None:
            return forward(*args, **kwargs)
        return compiled(*args, **kwargs, **(packed.layer(number) if packed else {}))

    return choose


def uncompiled(device: torch.device) -> AbstractContextManager[Any]:
    """In here what is compiled runs as it is: for shapes that come but a few times, or in passes that are recorded."""
    return torch.compiler.set_stance("force_eager") if device.type == "cuda" else nullcontext()


@torch.inference_mode()
def read_once(trunk: Any) -> None:
    """Try out compiled layers of a causal LM."""
    ids = torch.ones(2, 24, dtype=torch.int64, device=next(trunk.parameters()).device)
    trunk(input_ids=ids, use_cache=False)
