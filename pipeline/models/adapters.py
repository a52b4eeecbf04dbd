"""Adapters by name: ``BASE+ADAPTER`` is the model BASE with the low-rank weights of ADAPTER merged in.

An adapter is a folder in peft's layout (``adapter_config.json``, ``adapter_model.safetensors``) with a manifest that
names the model it was trained on by digest. It lies in the store under its name, or anywhere else under its path.
"""

from __future__ import annotations

import contextlib
import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.models import placing
from pipeline.models.digest import file_sha256
from pipeline.models.folder import check_whole, read_json
from pipeline.models.ref import ModelDamaged, ModelError, ModelNotFound

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CONFIG, WEIGHTS, MANIFEST = "adapter_config.json", "adapter_model.safetensors", placing.MANIFEST
FILES = CONFIG, WEIGHTS, MANIFEST
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
PREFIX = "base_model.model."
"""What peft puts before a module's name in ``adapter_model.safetensors``."""


@dataclass(frozen=True, slots=True)
class AdapterManifest:
    """What an adapter was trained on, how well it did on answers it never saw (nats a token), and its files' sha256.

    ``agreement``: the share of these answers' tokens that were the model's most likely ones, before and after.
    ``recipe`` says what made the one that got a name in the store: the same command again must not find it taken.
    """

    base: str
    base_digest: str
    nll_before: float
    nll_after: float
    files: dict[str, str]
    recipe: str = ""
    agreement: Sequence[float] = ()

    def to_json(self) -> str:
        """As it lies in the folder."""
        return json.dumps(asdict(self), indent=1, sort_keys=True)


def split(name: str) -> tuple[str, str] | None:
    """(base, adapter) of ``BASE+ADAPTER``; None for a model without one. A path that exists is only a path."""
    base, plus, adapter = name.rpartition("+")
    if not plus or not base or not adapter or Path(name).expanduser().exists():
        return None
    return base, adapter


def find(name: str, cache: Path) -> Path:
    """The folder of an adapter: a name in the store, or a path (with a slash in it). ``ModelNotFound`` if not there."""
    folder = store_folder(name, cache) if NAME.fullmatch(name) else Path(name).expanduser()
    if (folder / MANIFEST).is_file():
        return folder.resolve()
    raise ModelNotFound(
        f"no adapter {name!r} (no {folder / MANIFEST}): after the + stands a name of this machine's store "
        f"({STORE.known(cache)}) or the path of an adapter's folder; `contextmill align` makes one"
    )


def read_manifest(folder: Path) -> AdapterManifest:
    """Raises ``ModelDamaged`` for a manifest that is none."""
    try:
        return AdapterManifest(**read_json(folder / MANIFEST))
    except TypeError:
        raise ModelDamaged(
            f"{folder / MANIFEST}: not an adapter's manifest; make it again (`contextmill align --replace`)"
        ) from None


STORE = placing.Named("adapter", lambda folder: read_manifest(folder).recipe)
store_folder, stored, check_name = STORE.folder, STORE.stored, STORE.check_name


def check(folder: Path, base: str, base_digest: str, cache: Path) -> str:
    """The sha256 over the adapter's files, after a look whether they are whole and made for this very base."""
    manifest = read_manifest(folder)
    for name in (CONFIG, WEIGHTS):
        path = folder / name
        if not path.is_file():
            raise ModelDamaged(f"{folder}: {name} is missing; make the adapter again")
        if file_sha256(path, cache) != manifest.files.get(name):
            raise ModelDamaged(f"{path} is not what was written (its sha256 differs); make the adapter again")
    check_whole(folder / WEIGHTS)
    if manifest.base_digest != base_digest:
        raise ModelError(
            f"adapter {folder.name} was made for {manifest.base} (digest {manifest.base_digest[:12]}), and {base} has "
            f"digest {base_digest[:12]}: name that model before the +, or align {base} itself"
        )
    # Not over the manifest: what was measured, or what the base was called, changes no score.
    return manifest.files[CONFIG] + manifest.files[WEIGHTS]


def install(source: Path, name: str, cache: Path, manifest: AdapterManifest, *, replace: bool = False) -> Path:
    """Copy the adapter in ``source`` into the store as ``name``, under ``manifest``; it appears whole or not at all.

    Raises ``ModelError`` where another adapter has that name, unless ``replace``.
    """
    folder = store_folder(name, cache)
    check_name(name, cache, manifest.recipe, replace=replace)
    with contextlib.suppress(ModelDamaged):  # what is damaged is made again
        if (folder / MANIFEST).is_file() and read_manifest(folder) == manifest:
            return folder
    placing.place(source, (CONFIG, WEIGHTS), manifest.to_json(), folder)
    return folder


@contextlib.contextmanager
def at_hand(folder: str) -> Iterator[Path]:
    """A folder of files, local or ``s3://``, as a path on this machine for the length of the block."""
    from pyarrow import fs as pafs

    from pipeline.storage.filesystem import is_local, resolve_path

    filesystem, root = resolve_path(folder)
    if is_local(filesystem):
        yield Path(root)
        return
    with tempfile.TemporaryDirectory() as copy:
        pafs.copy_files(root, copy, filesystem, pafs.LocalFileSystem())
        yield Path(copy)


def merge(model: PreTrainedModel, folder: Path) -> None:
    """Add the adapter to ``model``'s weights, in place: W + (alpha / r) B A, computed in float32 (Hu et al. 2021).

    Here rather than by peft, so that a machine that only scores needs no peft. Raises ``ModelError`` for what is not
    plain LoRA over linear layers, or does not fit the model.
    """
    import torch
    from safetensors.torch import load_file

    config = read_json(folder / CONFIG)
    _check_plain(folder, config)
    scale = config["lora_alpha"] / config["r"]
    tensors = load_file(folder / WEIGHTS)
    modules = dict(model.named_modules())
    for down in [name for name in tensors if name.endswith(".lora_A.weight")]:
        name = down.removeprefix(PREFIX).removesuffix(".lora_A.weight")
        a, b = tensors[down].float(), tensors[down.replace(".lora_A.", ".lora_B.")].float()
        weight, change = getattr(modules.get(name), "weight", None), scale * (b @ a)
        if type(modules.get(name)).__name__ == "Conv1D":  # GPT-2's linear layer: its weight lies the other way round
            change = change.T
        if weight is None or weight.shape != change.shape:
            raise ModelError(f"{folder}: does not fit the model: {name} is missing or has another shape")
        with torch.no_grad():
            weight.copy_(weight.float() + change.to(weight.device))


def _check_plain(folder: Path, config: dict[str, Any]) -> None:
    beyond = "use_dora", "use_rslora", "lora_bias", "modules_to_save", "rank_pattern", "alpha_pattern"
    other = [key for key in beyond if config.get(key)]
    if config.get("peft_type") != "LORA" or config.get("bias", "none") != "none" or other:
        raise ModelError(f"{folder}: only plain LoRA is merged, not {', '.join(other) or config.get('peft_type')}")
