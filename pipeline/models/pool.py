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

from pipeline.accounting.wording import counted
from pipeline.models.classifiers import load_classifier
from pipeline.models.kinds import check_causal, check_classifier, check_target
from pipeline.models.loading import LoadedModel, attends_by_itself, load
from pipeline.models.ref import ModelError, ModelRef
from pipeline.models.resolve import resolve
from pipeline.models.soundness import checked
from pipeline.models.tokenizers import load_tokenizer
from schemas.settings import Settings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

DTYPES = ("float32", "bfloat16", "float16")

Kept = TypeVar("Kept")

Key = tuple[str, ...]

Load = Callable[["ModelRef", str, str, "PreTrainedTokenizerFast"], LoadedModel]
"""(model, dtype, device, tokenizer) -> the model on the device."""

Check = Callable[["ModelRef"], None]
"""Raises ``ModelError`` for another kind of model, before any weight is read."""


@dataclass(frozen=True, slots=True)
class Beside:
    """What works with ``model`` in a ``role`` (it drafts, it encodes): kept as long as that, ``most`` of the role.

    The pool's limit does not count it: whoever made room for a model would else load what belongs to it in turns.
    """

    model: LoadedModel
    role: str
    most: int = 1


class ModelPool:
    """At most ``limit`` models, the least recently used one leaving first, and with it what works beside it. Shared by
    the shards of one process."""

    def __init__(self, device: str = "auto", limit: int = 2, settings: Settings | None = None) -> None:
        if limit < 1:
            raise ValueError(f"a pool keeps at least one model, not {limit}")
        self._device, self._limit, self._settings = device, limit, settings
        self._loaded: OrderedDict[Key, Any] = OrderedDict()
        self._beside: dict[Key, tuple[Key, str]] = {}  # of some: whom they work with, and in which role
        self._lock = threading.Lock()

    def causal_lm(
        self, name: str, dtype: str = "float32", device: str = "auto", beside: Beside | None = None
    ) -> LoadedModel:
        """The model called ``name``, loaded unless it is resident. ``auto`` is the pool's own device.

        Raises what ``resolve`` raises, ``ModelDamaged`` if weights that the config declares are missing, and
        ``ModelError`` for one that only transformers can read.
        """
        return _readable(self._resident(load, name, dtype, device, check_causal, beside))

    def target(
        self, name: str, dtype: str = "float32", device: str = "auto", beside: Beside | None = None
    ) -> LoadedModel:
        """``causal_lm``, or else an encoder-decoder, or what only transformers can read."""
        return self._resident(load, name, dtype, device, check_target, beside)

    def token_classifier(self, name: str, dtype: str = "float32", device: str = "auto") -> LoadedModel:
        """The encoder called ``name`` with its head of two labels, loaded unless it is resident.

        ``window`` counts its special tokens too. Raises what ``resolve`` raises, and ``ModelError`` for what is no
        such model.
        """
        return self._resident(load_classifier, name, dtype, device, check_classifier, None)

    def _resident(
        self, load: Load, name: str, dtype: str, device: str, check: Check, beside: Beside | None
    ) -> LoadedModel:
        if dtype not in DTYPES:
            raise ValueError(f"dtype {dtype!r}: one of {', '.join(DTYPES)}")
        where = resolve_device(self._device if device == "auto" else device)
        ref = resolve(name, self._settings)
        check(ref)
        key = (load.__name__, ref.digest, dtype, where)
        return self.keep(key, lambda: checked(load(ref, dtype, where, load_tokenizer(name, self._settings))), beside)

    def keep(self, key: Key, make: Callable[[], Kept], beside: Beside | None = None) -> Kept:
        """What ``make`` made under ``key``, made now unless it is resident. Without ``beside`` it counts as a model."""
        with self._lock:
            leader = self._key_of(beside.model) if beside else None
            if beside is None or leader is None:
                self._beside.pop(key, None)  # it is worked with alone, from now on
                # Before loading: there may be room for only so many.
                self._leave([one for one in self._loaded if one not in self._beside and one != key], self._limit - 1)
            elif key not in self._loaded:
                place = (leader, beside.role)
                self._leave([one for one in self._loaded if self._beside.get(one) == place], beside.most - 1)
            if key not in self._loaded:
                _relieve()
                self._loaded[key] = self._made(make, {key, leader})
                if beside and leader:
                    self._beside[key] = (leader, beside.role)
            self._loaded.move_to_end(key)
            found: Kept = self._loaded[key]
            return found

    def _made(self, make: Callable[[], Kept], needed: set[Key | None]) -> Kept:
        """Where memory runs out, made once more without the models that are not ``needed`` for it."""
        from pipeline.batching import out_of_memory

        try:
            return make()
        except Exception as error:
            others = [one for one in self._loaded if one not in self._beside and one not in needed]
            if not others or not out_of_memory(error):
                raise
        self._leave(others, 0)  # not before the error is gone, whose frames hold what was loaded of it
        return make()

    def own_copy(self, name: str, dtype: str = "float32", device: str = "auto") -> LoadedModel:
        """The model called ``name`` for its caller alone, who may train it. Raises what ``causal_lm`` raises."""
        where = resolve_device(self._device if device == "auto" else device)
        ref = resolve(name, self._settings)
        check_causal(ref)
        _relieve()
        return _readable(checked(load(ref, dtype, where, load_tokenizer(name, self._settings))))

    def close(self) -> None:
        """Let go of all models and their memory."""
        with self._lock:
            self._leave([one for one in self._loaded if one not in self._beside], 0)

    def _key_of(self, model: LoadedModel) -> Key | None:
        """None for one that is not kept here."""
        return next((key for key, one in self._loaded.items() if one is model), None)

    def _leave(self, keys: list[Key], most: int) -> None:
        """Of ``keys``, the longest unused first, only ``most`` stay."""
        for key in keys[: max(0, len(keys) - most)]:
            self._drop(key)

    def _drop(self, key: Key) -> None:
        import torch

        for other in [one for one, (leader, _) in self._beside.items() if leader == key]:
            self._drop(other)
        _relieve()  # what was kept may hold on to the model's layers
        self._beside.pop(key, None)
        del self._loaded[key]
        gc.collect()  # compiled layers refer to themselves
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _readable(loaded: LoadedModel) -> LoadedModel:
    if attends_by_itself(loaded):
        raise ModelError(
            f"{loaded.ref.name}: transformers reads {loaded.model.config.model_type} by an attention of its own, or by "
            "none: it can answer as a job's target, and neither score nor draft nor be trained; name another model"
        )
    return loaded


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
        raise ModelError(
            f"device {device!r}: this machine shows {counted(count, 'GPU')}; use auto or cpu, or mend the driver"
        )
    return f"cuda:{int(index or 0)}"


def expects_gpu(device: str) -> bool:
    """Whether work on ``device`` will be done on a GPU, guessed without torch: this is asked where jobs are cut."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") != "" and Path("/dev/nvidiactl").exists()
    return device.startswith("cuda") or (device == "auto" and visible)
