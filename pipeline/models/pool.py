"""Models kept on their device between shards."""

from __future__ import annotations

import gc
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline.models import adapters
from pipeline.models.classifiers import load_classifier
from pipeline.models.folder import window_of
from pipeline.models.gguf import quiet
from pipeline.models.kinds import check_causal, check_classifier, check_target, is_encoder_decoder
from pipeline.models.ref import ModelDamaged, ModelError, ModelRef
from pipeline.models.resolve import resolve
from pipeline.models.soundness import checked
from pipeline.models.tokenizers import load_tokenizer
from schemas.settings import Settings

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

DTYPES = ("float32", "bfloat16", "float16")
UNLIMITED = 2**31 - 1
"""The window of a model whose config states none (recurrent models)."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A causal LM, encoder-decoder or token classifier in eval mode on ``device``, without gradients.

    ``window`` is the most tokens it takes at once; an encoder-decoder's two halves have one each.
    """

    ref: ModelRef
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    device: torch.device
    window: int

    @property
    def parameters(self) -> int:
        """How many numbers its weights hold."""
        return sum(one.numel() for one in self.model.parameters())

    @property
    def start(self) -> list[int]:
        """The token after which an encoder-decoder writes; nothing for any other model, which writes after its text."""
        if not self.model.config.is_encoder_decoder:
            return []
        stated = self.model.generation_config
        return [stated.bos_token_id if stated.decoder_start_token_id is None else stated.decoder_start_token_id]


Kept = TypeVar("Kept")

Load = Callable[["ModelRef", str, str, "PreTrainedTokenizerFast"], LoadedModel]
"""(model, dtype, device, tokenizer) -> the model on the device."""

Check = Callable[["ModelRef"], None]
"""Raises ``ModelError`` for another kind of model, before any weight is read."""


class ModelPool:
    """At most ``limit`` models, the least recently used one leaving first. Shared by the shards of one process."""

    def __init__(self, device: str = "auto", limit: int = 2, settings: Settings | None = None) -> None:
        if limit < 1:
            raise ValueError(f"a pool keeps at least one model, not {limit}")
        self._device, self._limit, self._settings = device, limit, settings
        self._loaded: OrderedDict[tuple[str, ...], Any] = OrderedDict()
        self._lock = threading.Lock()

    def causal_lm(self, name: str, dtype: str = "float32", device: str = "auto") -> LoadedModel:
        """The model called ``name``, loaded unless it is resident. ``auto`` is the pool's own device.

        Raises what ``resolve`` raises, and ``ModelDamaged`` if weights that the config declares are missing.
        """
        return self._resident(load, name, dtype, device, check_causal)

    def target(self, name: str, dtype: str = "float32", device: str = "auto") -> LoadedModel:
        """``causal_lm``, or else an encoder-decoder."""
        return self._resident(load, name, dtype, device, check_target)

    def keep_at_least(self, models: int) -> None:
        """Keep so many from now on, where the limit is lower: what works together would else be loaded in turns."""
        self._limit = max(self._limit, models)

    def token_classifier(self, name: str, dtype: str = "float32", device: str = "auto") -> LoadedModel:
        """The encoder called ``name`` with its head of two labels, loaded unless it is resident.

        ``window`` counts its special tokens too. Raises what ``resolve`` raises, and ``ModelError`` for what is no
        such model.
        """
        return self._resident(load_classifier, name, dtype, device, check_classifier)

    def _resident(self, load: Load, name: str, dtype: str, device: str, check: Check) -> LoadedModel:
        if dtype not in DTYPES:
            raise ValueError(f"dtype {dtype!r}: one of {', '.join(DTYPES)}")
        where = resolve_device(self._device if device == "auto" else device)
        ref = resolve(name, self._settings)
        check(ref)
        key = (load.__name__, ref.digest, dtype, where)
        return self.keep(key, lambda: checked(load(ref, dtype, where, load_tokenizer(name, self._settings))))

    def keep(self, key: tuple[str, ...], make: Callable[[], Kept]) -> Kept:
        """What ``make`` made under ``key``, made now unless it is resident: it counts as a model."""
        with self._lock:
            if key not in self._loaded:
                while len(self._loaded) >= self._limit:  # before loading: there may be room for only so many
                    self._drop()
                _relieve()
                self._loaded[key] = make()
            self._loaded.move_to_end(key)
            found: Kept = self._loaded[key]
            return found

    def own_copy(self, name: str, dtype: str = "float32", device: str = "auto") -> LoadedModel:
        """The model called ``name`` for its caller alone, who may train it. Raises what ``causal_lm`` raises."""
        where = resolve_device(self._device if device == "auto" else device)
        ref = resolve(name, self._settings)
        check_causal(ref)
        _relieve()
        return checked(load(ref, dtype, where, load_tokenizer(name, self._settings)))

    def close(self) -> None:
        """Let go of all models and their memory."""
        with self._lock:
            while self._loaded:
                self._drop()

    def _drop(self) -> None:
        import torch

        _relieve()  # what was kept may hold on to the model's layers
        _, left = self._loaded.popitem(last=False)
        del left
        gc.collect()  # compiled layers refer to themselves
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _relieve() -> None:
    """Another model needs memory."""
    from pipeline.batching import RELIEF

    for relieve in RELIEF:
        relieve()


def resolve_device(device: str = "auto") -> str:
    """``auto`` is the first GPU where there is one, else the CPU. ``ModelError`` for a device that is not there."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto":
        return "cuda:0" if count else "cpu"
    if device == "cpu":
        return device
    kind, _, index = device.partition(":")
    if kind != "cuda" or not (index or "0").isdigit():
        raise ModelError(f"device {device!r}: auto, cpu, cuda or cuda:N")
    if int(index or 0) >= count:
        raise ModelError(f"device {device!r}: this machine shows {count} GPUs; use auto or cpu, or mend the driver")
    return f"cuda:{int(index or 0)}"


def expects_gpu(device: str) -> bool:
    """Whether work on ``device`` will be done on a GPU, guessed without torch: this is asked where jobs are cut."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") != "" and Path("/dev/nvidiactl").exists()
    return device.startswith("cuda") or (device == "auto" and visible)


def load(ref: ModelRef, dtype: str, device: str, tokenizer: PreTrainedTokenizerFast) -> LoadedModel:
    """Read the weights, with the adapter merged in where there is one: it costs nothing afterwards."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    # Of encoder-decoders some know no other attention than one of their own, and are read by ``generate``.
    kind, attention = (AutoModelForSeq2SeqLM, None) if is_encoder_decoder(ref) else (AutoModelForCausalLM, "sdpa")
    options: dict[str, Any] = {"attn_implementation": attention, "trust_remote_code": False}
    options |= {"local_files_only": True, "use_safetensors": True}
    try:
        with quiet():
            model, report = kind.from_pretrained(
                ref.folder, dtype=getattr(torch, dtype), output_loading_info=True, **options
            )
    except Exception as error:  # configs are data from outside: what transformers trips over has no common class
        raise ModelError(
            f"{ref.name}: transformers cannot load {ref.folder} by {kind.__name__} ({type(error).__name__}: "
            f"{_told(error)}); fetch it again, or name another model"
        ) from error
    _check_loaded(ref, report)
    if ref.adapter is not None:
        adapters.merge(model, ref.adapter)
    model = model.eval().requires_grad_(False).to(device)
    return LoadedModel(ref, model, tokenizer, torch.device(device), window_of(ref.folder) or UNLIMITED)


def _told(error: Exception) -> str:
    """What went wrong, in one line, without advice that leads nowhere here."""
    if "ignore_mismatched_sizes" in str(error):
        return "the weights have other shapes than config.json says"
    return " ".join(str(error).partition("\n\n")[0].split())


def _check_loaded(ref: ModelRef, report: dict[str, Any]) -> None:
    """transformers fills what is missing with random numbers and goes on: that would be another model."""
    lost = sorted([*report["missing_keys"], *(str(item) for item in report["mismatched_keys"])])
    if lost:
        raise ModelDamaged(
            f"{ref.name}: {len(lost)} tensors of {ref.folder} are missing or misshapen ({lost[0]}); fetch it again"
        )
