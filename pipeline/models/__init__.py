"""Models by name: a bundled default, a local folder, a GGUF file, or a hub id. Importing this loads no torch.

``resolve`` turns a name into a folder ready to load, ``pull`` fetches what is missing, ``ModelPool`` keeps loaded
models between shards. Weights are safetensors or GGUF only: nothing is unpickled, no remote code runs.
"""

from __future__ import annotations

from pipeline.models.catalogue import catalogue, verify
from pipeline.models.kinds import check_causal, check_classifier, check_target, is_encoder_decoder
from pipeline.models.loading import LoadedModel
from pipeline.models.pool import Beside, ModelPool, expects_gpu, resolve_device
from pipeline.models.ref import ModelDamaged, ModelError, ModelNotFound, ModelRef, ModelStatus
from pipeline.models.resolve import digest_of, pull, resolve
from pipeline.models.tokenizers import load_tokenizer

__all__ = [
    "Beside",
    "LoadedModel",
    "ModelDamaged",
    "ModelError",
    "ModelNotFound",
    "ModelPool",
    "ModelRef",
    "ModelStatus",
    "catalogue",
    "check_causal",
    "check_classifier",
    "check_target",
    "digest_of",
    "expects_gpu",
    "is_encoder_decoder",
    "load_tokenizer",
    "pull",
    "resolve",
    "resolve_device",
    "verify",
]
