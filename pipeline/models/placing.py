"""Small folders of the model store: each appears whole, or not at all."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path

from pipeline.models.ref import ModelError
from pipeline.storage.disk import sync

MANIFEST = "contextmill.json"


def place(source: Path, files: Sequence[str], manifest: str, folder: Path) -> None:
    """Copy these ``files`` of ``source`` and the text ``manifest`` into ``folder``, in the place of what it held.

    Raises ``ModelError`` where it cannot be written.
    """
    partial = folder.with_name(f".partial-{folder.name}-{uuid.uuid4().hex[:8]}")
    try:
        partial.mkdir(parents=True)
        for file in files:
            shutil.copyfile(source / file, partial / file)
        (partial / MANIFEST).write_text(manifest)
        for file in (*files, MANIFEST):
            sync(partial / file)
        _swap(folder, partial)
    except OSError as error:
        raise ModelError(
            f"cannot write the model store {folder.parent}: {error.strerror or error}; make room, or set "
            f"CONTEXTMILL_CACHE_DIR to a folder that can be written. What was trained is safe in {source}"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _swap(folder: Path, partial: Path) -> None:
    old = folder.with_name(f".partial-{folder.name}-{uuid.uuid4().hex[:8]}")
    if folder.exists():
        folder.rename(old)
    os.rename(partial, folder)  # noqa: PTH104  Path.rename reads as if the target were another file
    sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)
