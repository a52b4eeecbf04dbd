"""A GGUF file dequantised once to float32 safetensors, so that it loads in a second ever after."""

from __future__ import annotations

import contextlib
import copy
import io
import os
import stat
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.models.gguf_tokenizer import Metadata, build_tokenizer
from pipeline.models.ref import ModelDamaged, ModelError

MAGIC = b"GGUF"
TRIES = 2
"""transformers now and then reports mismatched sizes for a sound file; the second try never did."""


def is_gguf(path: Path) -> bool:
    """Whether the file begins as GGUF files do."""
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def convert(gguf: Path, folder: Path) -> str:
    """Write the model in ``gguf`` to ``folder``: config, float32 safetensors, tokenizer. Returns its stated licence.

    Needs memory for two float32 copies of the weights. Raises ``ModelDamaged`` for a file that cannot be read whole.
    """
    from safetensors import SafetensorError

    try:
        metadata = Metadata.of(gguf)
        with quiet(), contextlib.redirect_stderr(io.StringIO()):  # the reader draws a bar of its own
            model = _load(gguf)
            _save_model(model, folder)
            window = getattr(model.config, "max_position_embeddings", None)
            build_tokenizer(gguf, metadata, window).save_pretrained(folder)
    except (ModelError, OSError, MemoryError):
        raise
    except SafetensorError as error:
        raise OSError(f"writing the weights failed: {error}") from error
    except Exception as error:  # the parsers of a damaged file raise whatever they stumble over
        raise ModelDamaged(
            f"{gguf.name} cannot be read as a GGUF model ({type(error).__name__}: {error}); fetch the file again, or "
            "use a model of an architecture that transformers reads from GGUF"
        ) from error
    for path in folder.glob("*.safetensors"):  # safetensors writes them for the owner alone; a cache may be shared
        path.chmod(path.stat().st_mode | (stat.S_IRGRP | stat.S_IROTH) & ~_umask())
    return str(metadata.get("general.license", ""))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no advice from transformers on the user's terminal."""
    from transformers.utils import logging

    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _load(gguf: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    for left in reversed(range(TRIES)):
        try:
            model, report = AutoModelForCausalLM.from_pretrained(
                gguf.parent, gguf_file=gguf.name, dtype=torch.float32, local_files_only=True, trust_remote_code=False,
                output_loading_info=True,
            )  # fmt: skip
            break
        except RuntimeError:
            if not left:
                raise
    if lost := sorted(report["missing_keys"]):  # transformers would fill them with random numbers
        raise ModelDamaged(f"{gguf.name}: {len(lost)} tensors are missing ({lost[0]}); fetch the file again")
    return model


def _save_model(model: Any, folder: Path) -> None:
    """``save_pretrained`` refuses a model loaded from GGUF, so its weights are put into one that was not."""
    import torch

    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        fresh = type(model)(config)
    fresh.load_state_dict(model.state_dict(), assign=True)
    fresh.tie_weights()
    fresh.generation_config = model.generation_config
    fresh.save_pretrained(folder)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
