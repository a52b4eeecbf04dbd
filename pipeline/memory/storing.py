"""Slots as a model reads them that were stored: packed, written into a slot file, and read from it."""

from __future__ import annotations

import tempfile
from typing import Any

import numpy as np
import torch

from pipeline.memory.autoencoder import Autoencoder
from pipeline.memory.form import Form
from pipeline.memory.packing import Packed, measuring, unpack
from pipeline.memory.store import SlotFiles, write_slots
from pipeline.storage.filesystem import resolve_path

_REVISION, _FILE = "evaluated", "slots.safetensors"


class Storing:
    """Slots ``[rows, k, d]`` -> what comes back of them, in their dtype and on their device. Adds up what that took."""

    def __init__(self, coder: Autoencoder, form: Form) -> None:
        self._common, self.form = coder.common, form
        self._slots = self._bytes = 0
        self._sums = np.zeros(2)

    @property
    def bytes(self) -> float:
        """Of a slot in its file."""
        return self._bytes / self._slots

    @property
    def loss(self) -> float:
        """Size of what packing lost, over the size of the slots: ``slots_loss`` of an ``encode`` stage."""
        lost, whole = self._sums
        return float(np.sqrt(lost / whole)) if whole else 0.0

    def __call__(self, slots: torch.Tensor) -> torch.Tensor:
        """Raises ``OSError`` where there is no room for temporary files."""
        made = {str(number): self._packed(one) for number, one in enumerate(slots)}
        with tempfile.TemporaryDirectory(prefix="contextmill-slots-") as folder:
            fs, root = resolve_path(folder)
            write_slots(fs, f"{root}/{_FILE}", made, _REVISION)
            files = SlotFiles(folder)
            found = [unpack(files.packed(_row(key, one), _REVISION)) for key, one in made.items()]
        return torch.stack(found).to(slots)

    def _packed(self, slots: torch.Tensor) -> Packed:
        packed, sums = measuring(slots, self._common, *self.form)()
        self._slots, self._bytes = self._slots + len(slots), self._bytes + packed.bytes
        self._sums += sums.sum(0)
        return packed


def _row(key: str, packed: Packed) -> dict[str, Any]:
    """What an ``encode`` stage says of such slots."""
    return {
        "slots": len(packed.values), "slots_file": _FILE, "slots_key": key,
        "slots_sha256": packed.sha256(_REVISION), "encoder_revision": _REVISION,
    }  # fmt: skip
