"""A trained adapter as files: peft's layout, so that peft loads it too, and the manifest that says what it is for."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from safetensors.torch import save

from pipeline.alignment.measure import Measure
from pipeline.models.adapters import CONFIG, MANIFEST, WEIGHTS, AdapterManifest
from pipeline.storage.filesystem import resolve_path
from pipeline.storage.parts import write_whole


def write_adapter(adapted: Any, base: str, base_digest: str, before: Measure, after: Measure, folder: str) -> None:
    """Write the adapter of the peft model ``adapted`` into ``folder`` (local or s3), its manifest last.

    ``before`` and ``after`` are over all tokens of the held-out answers.
    """
    from peft import get_peft_model_state_dict

    # Told that no embeddings are to be kept, peft does not ask the hub whether they were changed.
    found = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    tensors = {name: value.detach().cpu().contiguous() for name, value in found.items()}
    config = {**adapted.peft_config["default"].to_dict(), "inference_mode": True}
    files = {
        CONFIG: json.dumps(config, indent=1, sort_keys=True, default=sorted).encode(),  # default: sets of names
        WEIGHTS: save(tensors, {"format": "pt"}),
    }
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    agreement = before.agreement, after.agreement
    manifest = AdapterManifest(base, base_digest, before.nats, after.nats, digests, agreement=agreement)
    fs, root = resolve_path(folder)
    for name, data in {**files, MANIFEST: manifest.to_json().encode()}.items():
        write_whole(fs, f"{root}/{name}", data)
