"""Models by hub id, in the hub client's own cache: safetensors, JSON and tokenizer files, never code or pickles."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pipeline.models.fetch import Progress
from pipeline.models.folder import model_files
from pipeline.models.ref import ModelError, ModelNotFound

ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w][\w.-]*(@[\w][\w./-]*)?")
TEXTS = ["*.json", "*.jinja", "*.txt", "tokenizer.model", "spiece.model"]
WEIGHTS = ["*.safetensors"]
NOT_LOADED = ["*/*", "consolidated*"]
"""Other formats' folders, and the second copy of the weights that some makers add."""


def is_id(name: str) -> bool:
    """Whether ``name`` has the form ``owner/name`` or ``owner/name@revision``."""
    return ID.fullmatch(name) is not None


def find(name: str, *, weights: bool = True) -> Path | None:
    """The model's folder in the hub's cache, if everything needed is there. Uses no network."""
    try:
        folder = _snapshot(name, weights, local_files_only=True)
        model_files(folder, weights=weights)
    except (OSError, ModelError):
        return None
    return folder


def fetch(name: str, progress: Progress | None = None, *, weights: bool = True) -> Path:
    """Download what is missing and return the folder. ``ModelNotFound`` if the hub cannot be reached or lacks it."""
    try:
        folder = _snapshot(name, weights, tqdm_class=_bar(progress))
    except Exception as error:  # the client lets the errors of its HTTP library through, which differ by release
        raise ModelNotFound(
            f"model {name} is not whole in this machine's hub cache, and the hub did not give it "
            f"({type(error).__name__}: {_first_line(error)}). Check the id and the network (HF_TOKEN for a gated "
            f"model), or fetch it elsewhere and name its folder; with the hub in reach, "
            f"`contextmill models pull {name}` gets it"
        ) from error
    if weights and not any(folder.glob("*.safetensors")):
        raise ModelError(f"model {name} has no safetensors weights on the hub; pickled ones are never loaded")
    return folder


def _snapshot(name: str, weights: bool, **options: Any) -> Path:
    from huggingface_hub import snapshot_download

    repository, _, revision = name.partition("@")
    patterns = TEXTS + (WEIGHTS if weights else [])
    return Path(
        snapshot_download(
            repository, revision=revision or None, allow_patterns=patterns, ignore_patterns=NOT_LOADED, **options
        )
    )


def _bar(progress: Progress | None) -> type[Any]:
    """A progress bar class that draws nothing and tells ``progress`` the bytes."""
    from tqdm.auto import tqdm  # type: ignore[import-untyped]

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "disable": True})
            self.counts_bytes = options.get("unit") == "B"

        def update(self, n: float | None = 1) -> bool | None:
            self.n += n or 0  # a disabled bar does not count
            if progress and self.counts_bytes and self.total:
                progress(int(self.n), int(self.total))
            return None

    return Bar


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "no reason given")
