"""What models this machine has, and whether they are still what they were."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from pipeline.models import adapters, distilled, encoders, punkt, store
from pipeline.models.bundled import BUNDLED
from pipeline.models.digest import file_sha256
from pipeline.models.folder import model_files
from pipeline.models.placing import MANIFEST
from pipeline.models.ref import ModelError, ModelNotFound, ModelStatus
from pipeline.models.resolve import bundled_folder, resolve
from schemas.settings import Settings

Sha256 = Callable[[Path], str]


def catalogue(settings: Settings | None = None) -> list[ModelStatus]:
    """The bundled models, the sentence data, the GGUF files converted so far, drafters, adapters and encoders (those
    that come along, too).

    Of models it looks at names and sizes only.
    """
    cache = (settings or Settings()).cache
    others = sorted(path for path in (cache / "models").glob("gguf-*") if path.is_dir())
    models = [*(_bundled(name, cache) for name in BUNDLED), punkt.status(cache)]
    models += [_converted(str(path), path) for path in others]  # the file's own name may stand for another by now
    models += [_drafter(folder) for folder in distilled.stored(cache)]
    models += [_adapter(folder) for folder in adapters.stored(cache)]
    return models + [_encoder(folder) for folder in encoders.named(cache)]


def verify(name: str, settings: Settings | None = None) -> ModelStatus:
    """Read every byte of the model called ``name`` again. Raises nothing for a model that is missing or damaged.

    Bytes are compared with what was declared when the model was converted or downloaded; a folder of the user's own
    declares nothing but its files' lengths.
    """
    cache = (settings or Settings()).cache
    sha256 = partial(file_sha256, cache=cache, fresh=True)
    if name in BUNDLED:
        return _bundled(name, cache, sha256)
    if name == punkt.NAME:
        return punkt.status(cache)
    try:
        ref = resolve(name, settings)
        folder = ref.folder
    except ModelNotFound as error:
        if (encoder := encoders.by_name(name, cache)) is not None:
            return _encoder(encoder, sha256)
        return ModelStatus(name, "", "", 0, "missing", str(error))
    except ModelError as error:
        return ModelStatus(name, name, "", 0, "damaged", str(error))
    if ref.adapter is not None:  # small enough to be read whole each time it is resolved
        return replace(verify(name.rpartition("+")[0], settings), name=name, where=str(ref.adapter))
    declared = (folder / MANIFEST).is_file()
    return _converted(name, folder, sha256) if declared else _undeclared(name, folder, sha256)


def _bundled(name: str, cache: Path, sha256: Sha256 | None = None) -> ModelStatus:
    model, folder = BUNDLED[name], bundled_folder(BUNDLED[name], cache)
    if folder.is_dir():
        return _converted(name, folder, sha256)
    where = f"package {model.package} {model.version}"
    return ModelStatus(name, where, model.licence, model.wheel_bytes, "missing", f"`contextmill models pull {name}`")


def _converted(name: str, folder: Path, sha256: Sha256 | None = None) -> ModelStatus:
    licence = ""
    try:
        manifest = store.read_manifest(folder)
        detail = store.damage(folder, manifest, sha256) if manifest else "made by another release; pull it again"
        licence = manifest.licence if manifest else ""
    except ModelError as error:
        detail = str(error)
    return ModelStatus(name, str(folder), licence, _size(folder), "damaged" if detail else "ready", detail or "")


def _drafter(folder: Path) -> ModelStatus:
    status = _converted(folder.name, folder)
    if status.state != "ready":
        return status
    try:
        figures = distilled.read_figures(folder)
    except ModelError as error:
        return replace(status, state="damaged", detail=str(error))
    return replace(status, detail=f"drafts for {figures.target}: {figures.gain}")


def _adapter(folder: Path) -> ModelStatus:
    try:
        manifest = adapters.read_manifest(folder)
    except ModelError as error:
        return ModelStatus(f"?+{folder.name}", str(folder), "", _size(folder), "damaged", str(error))
    detail = f"held-out answers: {manifest.nll_before:.3f} nats a token before, {manifest.nll_after:.3f} after"
    return ModelStatus(f"{manifest.base}+{folder.name}", str(folder), "", _size(folder), "ready", detail)


def _encoder(folder: Path, sha256: Sha256 | None = None) -> ModelStatus:
    licence = encoders.LICENCE if encoders.comes_along(folder) else ""
    status = ModelStatus(folder.name, str(folder), licence, _size(folder), "damaged", "")
    try:
        manifest = encoders.read_manifest(folder)
    except ModelError as error:
        return replace(status, detail=str(error))
    weights = folder / encoders.WEIGHTS
    if not weights.is_file() or (sha256 and sha256(weights) != manifest.sha256):
        return replace(status, detail=f"{weights} is not what was written; {encoders.again(folder)}")
    worth = [manifest.figures.told(), *([f"answers {manifest.answers.told()}"] if manifest.answers else [])]
    return replace(status, state="ready", detail=f"memory slots for {manifest.base}: {'; '.join(worth)}")


def _undeclared(name: str, folder: Path, sha256: Sha256) -> ModelStatus:
    """A folder without manifest: the hub's cache names large files by their sha256."""
    declared = {file: (folder / file).resolve().name for file in model_files(folder)}
    wrong = [
        file for file, blob in declared.items() if re.fullmatch(r"[0-9a-f]{64}", blob) and sha256(folder / file) != blob
    ]
    detail = f"{wrong[0]} is not what the hub gave (its sha256 differs); delete it and pull again" if wrong else ""
    return ModelStatus(name, str(folder), "", _size(folder), "damaged" if wrong else "ready", detail)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
