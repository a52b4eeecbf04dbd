"""sha256 of model files, remembered so that the second time costs a stat."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

REMEMBER_FROM = 16 * 2**20
"""Files below this many bytes are hashed each time: that takes milliseconds."""

VOLATILE = frozenset({"transformers_version", "_name_or_path", "is_local", "local_files_only"})
"""Keys of config files that tell who saved the model last, not what the model is."""


def file_sha256(path: Path, cache: Path, *, fresh: bool = False) -> str:
    """The file's sha256. ``fresh`` reads it even if it is remembered."""
    status = path.stat()
    if status.st_size < REMEMBER_FROM:
        return _read_sha256(path)
    note = _note(status, cache)
    if not fresh:
        with contextlib.suppress(OSError):
            known = note.read_text()
            if len(known) == 64:
                return known
    known = _read_sha256(path)
    _remember(note, known)
    return known


def files_digest(folder: Path, names: Iterable[str], cache: Path) -> str:
    """One sha256 over names and contents of a folder's files, in order of their names.

    Config files count as JSON values without ``VOLATILE``: a model saved again by another release is the same model.
    """
    whole = hashlib.sha256()
    for name in sorted(names):
        path = folder / name
        content = _config_sha256(path) if name.endswith("config.json") else file_sha256(path, cache)
        whole.update(f"{name}\0{content}\n".encode())
    return whole.hexdigest()


def _read_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _config_sha256(path: Path) -> str:
    config = json.loads(path.read_text(encoding="utf-8"))
    kept = {key: value for key, value in config.items() if key not in VOLATILE}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def _note(status: os.stat_result, cache: Path) -> Path:
    # The change time is part of it because copying tools restore the modification time of what they overwrite.
    identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return cache / "digests" / hashlib.sha256(repr(identity).encode()).hexdigest()


def _remember(note: Path, digest: str) -> None:
    # A cache that cannot be written (shared, read-only) costs time, nothing else.
    with contextlib.suppress(OSError):
        note.parent.mkdir(parents=True, exist_ok=True)
        partial = note.with_suffix(f".{os.getpid()}")
        partial.write_text(digest)
        partial.replace(note)
