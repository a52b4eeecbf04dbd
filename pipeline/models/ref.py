"""What a model's name stands for, and the errors that say how to get one. Light: nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

State = Literal["ready", "missing", "damaged"]


class ModelError(ValueError):
    """A model cannot be used; the message names it and the remedy."""


class ModelNotFound(ModelError):  # noqa: N818
    """No such model on this machine; the message says how to get it."""


class ModelDamaged(ModelError):  # noqa: N818
    """Its files are there, but not whole, or not what they are declared to be."""


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A model ready to load: ``folder`` holds config, safetensors weights and tokenizer.

    ``digest`` is the sha256 over these files (hexadecimal): equal digests mean equal weights, wherever they lie. It
    covers ``adapter`` too, the folder of what is merged into the weights when they are loaded.
    """

    name: str
    folder: Path
    digest: str
    adapter: Path | None = None


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """One line of ``contextmill models``. ``bytes`` are those on disk, or those to fetch while it is missing."""

    name: str
    where: str
    licence: str
    bytes: int
    state: State
    detail: str = ""
