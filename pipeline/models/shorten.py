"""A shallow copy of a model: some of its layers, evenly spread, with all that stands before and behind them.

Such a copy is a drafter to be taught (`contextmill distill`): by itself it says little that makes sense.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from pipeline.models.folder import INDEX, LAYER_COUNTS, WEIGHTS, layers_in, model_files, read_json
from pipeline.models.ref import ModelError

_LAYER = re.compile(r"^(.*\b(?:layers|h|blocks|layer)\.)(\d+)(\..*)$")
"""How transformers names the weights of a layer."""


def kept_layers(there: int, layers: int) -> list[int]:
    """Which of them: the first, the last, and as evenly as can be in between."""
    if layers == 1:
        return [0]
    return [round(place * (there - 1) / (layers - 1)) for place in range(layers)]


def shorten(source: Path, target: Path, layers: int) -> None:
    """Write the model in ``source`` with ``layers`` of its layers to the folder ``target``, which appears when it is
    whole. Raises ``ModelError``."""
    names = model_files(source)
    there = layers_in(source) or 0
    if not 0 < layers < there:
        raise ModelError(f"{source} has {there} layers: a shorter copy has 1 to {max(1, there - 1)}")
    if target.exists():
        raise ModelError(f"{target} is there already: name another folder, or remove it")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
        made = Path(folder) / target.name
        made.mkdir()
        for name in names:
            if not name.endswith(".safetensors") and name not in (INDEX, "config.json"):
                shutil.copy(source / name, made / name)
        config = _config(read_json(source / "config.json"), kept_layers(there, layers))
        (made / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
        _weights(source, [name for name in names if name.endswith(".safetensors")], made, kept_layers(there, layers))
        made.replace(target)


def _config(config: dict[str, Any], kept: list[int]) -> dict[str, Any]:
    if "text_config" in config:
        raise ModelError("only models of text alone can be shortened")
    found = {**config, **{name: len(kept) for name in LAYER_COUNTS if name in config}}
    if isinstance(config.get("layer_types"), list):
        found["layer_types"] = [config["layer_types"][layer] for layer in kept]
    return found


def _weights(source: Path, names: list[str], target: Path, kept: list[int]) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    places = {layer: place for place, layer in enumerate(kept)}
    tensors, seen = {}, set()
    for name in names:
        with safe_open(source / name, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118
                found = _LAYER.match(key)
                if found is None:
                    tensors[key] = file.get_tensor(key)
                elif (layer := int(found[2])) in places:
                    seen.add(layer)
                    tensors[f"{found[1]}{places[layer]}{found[3]}"] = file.get_tensor(key)
    if seen != set(kept):
        raise ModelError(f"{source}: its weights do not say which layer they are of, so it cannot be shortened")
    save_file(tensors, target / WEIGHTS, metadata={"format": "pt"})
    shutil.copymode(source / names[0], target / WEIGHTS)  # or nobody else could read it
