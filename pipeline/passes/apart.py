"""A model once more, over its very weights: modules of its own, as they were before the model was made ready for fast
passes. They may be given what the model is not to have (low-rank weights), and take no memory but for that.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import nn
from transformers import PreTrainedConfig

from pipeline.passes.joined import Share
from pipeline.passes.packed import ATTENTION

_NOTED = "contextmill_"
"""How names of what is noted of a model begin: what it was tried for, in which passes it is read, what these take."""

_LOADED = "contextmill_window"
"""What was noted when it was loaded: it holds for both."""


def apart(model: Any) -> Any:
    """``model`` as it was loaded. Nothing of what either is noted to be later, or given, holds for the other."""
    return _apart(model, {})


def _apart(module: Any, known: dict[int, Any]) -> Any:
    """``known``: what modules and configs became, by their identity, as they may be met again."""
    if id(module) not in known:
        known[id(module)] = module.plain() if isinstance(module, Share) else _own(module, known)
    return known[id(module)]


def _own(module: nn.Module, known: dict[int, Any]) -> nn.Module:
    made = copy.copy(module)
    said = vars(made)
    for name, one in list(said.items()):
        noted = name.startswith(_NOTED) and name != _LOADED
        if noted or name == "forward":  # the class has what it was before it was compiled
            del said[name]
        elif isinstance(one, PreTrainedConfig):
            said[name] = known.setdefault(id(one), _eager(one))
        elif isinstance(one, dict):  # which buffers and parts it has; the tensors are shared
            said[name] = copy.copy(one)
    for name, part in made._modules.items():
        made._modules[name] = None if part is None else _apart(part, known)
    return made


def _eager(config: PreTrainedConfig) -> PreTrainedConfig:
    made = copy.deepcopy(config)
    if made._attn_implementation == ATTENTION:  # which ``packable`` lets none but torch's become
        made._attn_implementation = "sdpa"
    return made
