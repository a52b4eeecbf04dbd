"""The first layers of a model as a drafter for the whole of it: what they would say if they were all.

Norm and head are the model's own, and so are the weights: such a drafter takes no memory but for its keys and values.
How good it is depends on the model; most were not trained to say anything that early.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

from torch import nn

from pipeline.models import LoadedModel, ModelError
from pipeline.passes.compiling import one_at_a_time


def early_exit(target: LoadedModel, layers: int) -> LoadedModel:
    """The first ``layers`` of ``target``, of which it has more, with its norm and its head. Made once. Raises
    ``ModelError``."""
    made: dict[int, LoadedModel] = vars(target.model).setdefault("contextmill_exits", {})
    if layers not in made:
        made[layers] = _made(target, layers)
    return made[layers]


def _made(target: LoadedModel, layers: int) -> LoadedModel:
    whole: Any = target.model
    trunk = whole.get_decoder() if hasattr(whole, "get_decoder") else whole
    number = whole.config.num_hidden_layers
    lists = [name for name, one in trunk.named_children() if isinstance(one, nn.ModuleList) and len(one) == number]
    if target.start or len(lists) != 1 or whole.base_model_prefix not in dict(whole.named_children()):
        raise ModelError(
            f"layers:{layers} cannot draft for {target.ref.name}: it is no causal LM with all layers in one list"
        )
    first = _view(trunk)
    first.config = copy.deepcopy(trunk.config)
    first.config.num_hidden_layers = layers
    if getattr(first.config, "layer_types", None):
        first.config.layer_types = first.config.layer_types[:layers]
    first._modules[lists[0]] = nn.ModuleList(list(getattr(trunk, lists[0]))[:layers])
    if getattr(trunk, "contextmill_compiled", False):  # its layers are, and these are they
        first.contextmill_compiled = True
        first.forward = one_at_a_time(first.forward)
    model = _view(whole)
    model._modules[whole.base_model_prefix] = first
    ref = replace(target.ref, name=f"layers:{layers}", digest=f"{target.ref.digest}:{layers}")
    return replace(target, ref=ref, model=model)


def _view(module: Any) -> Any:
    """Another module of the same parts, without what was noted of the first one."""
    view = copy.copy(module)
    for name in [name for name in vars(view) if name.startswith("contextmill_") or name == "forward"]:
        del view.__dict__[name]
    view._modules = dict(module._modules)
    return view
