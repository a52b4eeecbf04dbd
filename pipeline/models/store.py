"""Folders of converted models in the cache: each appears whole, once, or not at all.

A model is made in ``.partial-NAME`` and renamed when everything is on the disk; a manifest, written last, says what
belongs to it. A kill in the middle leaves a partial folder, which the next one to hold the lock removes.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.models.digest import file_sha256
from pipeline.models.folder import model_files, read_json
from pipeline.models.placing import MANIFEST
from pipeline.models.ref import ModelDamaged, ModelError
from pipeline.storage.disk import sync

CONVERSION = 2
"""Raised when conversion changes what it writes: folders of an older one are made again."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a converted folder holds: the digest of its ``source`` (a file's sha256; of a distilled drafter, of its
    recipe), and bytes and sha256 of each of its files."""

    name: str
    source: str
    licence: str
    files: dict[str, tuple[int, str]]
    conversion: int = CONVERSION


def read_manifest(folder: Path) -> Manifest | None:
    """The folder's manifest; None if there is none, or an older conversion made it."""
    if not (folder / MANIFEST).is_file():
        return None
    stated = read_json(folder / MANIFEST)
    if stated.get("conversion") != CONVERSION:
        return None
    if (source := stated.pop("gguf_sha256", None)) is not None:  # what it was called while all came from GGUF files
        stated["source"] = source
    try:
        return Manifest(**stated)
    except TypeError:
        raise ModelDamaged(f"{folder / MANIFEST}: not a manifest; delete the folder and pull the model again") from None


def damage(folder: Path, manifest: Manifest, sha256_of: Callable[[Path], str] | None = None) -> str | None:
    """What is wrong with a converted folder, or None: by the files' lengths, and by their hashes with ``sha256_of``."""
    for name, (size, sha256) in manifest.files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
        if sha256_of and sha256_of(path) != sha256:
            return f"{name} is not what was written (its sha256 differs)"
    return None


def publish(
    folder: Path,
    cache: Path,
    make: Callable[[Path], tuple[str, str, str]],
    ready: Callable[[], bool],
) -> None:
    """Let ``make`` fill a new folder and put it in the place of ``folder``, unless another process just did.

    ``make(partial)`` returns the manifest's name, source and licence. ``ready`` is asked under the lock.
    """
    try:
        with _locked(folder):
            if ready():
                return
            partial = folder.with_name(f".partial-{folder.name}")
            shutil.rmtree(partial, ignore_errors=True)
            try:
                partial.mkdir()
                _seal(partial, cache, *make(partial))
                _replace(folder, partial)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise ModelError(
            f"cannot write the model cache {folder.parent}: {error.strerror or error}; make room or set "
            "CONTEXTMILL_CACHE_DIR to a folder that can be written"
        ) from error


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock. The kernel frees it when the process dies, however it dies."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f".{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _seal(partial: Path, cache: Path, name: str, source: str, licence: str) -> None:
    """Write the manifest, with everything on the disk before the folder gets its name."""
    files = {
        file: ((partial / file).stat().st_size, file_sha256(partial / file, cache)) for file in model_files(partial)
    }
    manifest = Manifest(name, source, licence, files)
    (partial / MANIFEST).write_text(json.dumps(asdict(manifest), indent=1))
    for path in (*(partial / file for file in files), partial / MANIFEST, partial):
        sync(path)


def _replace(folder: Path, partial: Path) -> None:
    if folder.exists():  # damaged, or of an older conversion; processes that have it open keep what they read
        shutil.rmtree(folder)
    partial.rename(folder)
    sync(folder.parent)
