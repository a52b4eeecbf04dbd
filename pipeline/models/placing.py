"""Small folders of the model store: each appears whole, or not at all."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.models.ref import ModelError
from pipeline.storage.disk import sync

MANIFEST = "contextmill.json"


@dataclass(frozen=True, slots=True)
class Named:
    """Folders of one ``kind`` in the store, by name. ``recipe_of`` says what made the one that lies there; None where
    it may be made again."""

    kind: str
    recipe_of: Callable[[Path], str | None]

    def folder(self, name: str, cache: Path) -> Path:
        """Where the one called ``name`` is kept."""
        return cache / "models" / f"{self.kind}s" / name

    def stored(self, cache: Path) -> list[Path]:
        """The folders of all that are there, by name."""
        return sorted(path.parent for path in self.folder("*", cache).parent.glob(f"[!.]*/{MANIFEST}"))

    def known(self, cache: Path) -> str:
        """Their names, to be told."""
        return ", ".join(path.name for path in self.stored(cache)) or "none yet"

    def check_name(self, name: str, cache: Path, recipe: str, *, replace: bool) -> None:
        """Raise ``ModelError`` unless what ``recipe`` makes may be called ``name``."""
        folder = self.folder(name, cache)
        if replace or not (folder / MANIFEST).is_file() or self.recipe_of(folder) in (None, recipe):
            return
        raise ModelError(
            f"another {self.kind} is called {name} already ({folder}): choose another name, or replace it with "
            "--replace"
        )


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
