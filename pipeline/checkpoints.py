"""Where training stands, kept in the job's folder so that any worker can go on: safetensors, never pickle."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow.fs as pafs
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from pipeline.storage.filesystem import resolve_path
from pipeline.storage.parts import delete, write_whole

log = logging.getLogger(__name__)

KEPT = 2  # the one before the last serves where the last turns out to be damaged
SUFFIX = ".safetensors"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """After ``step`` steps, which took ``seconds`` of work: weights and optimiser state by name, on the CPU."""

    step: int
    seconds: float
    tensors: dict[str, torch.Tensor]


class Checkpoints:
    """Files ``step-N.safetensors`` in ``folder`` (local or s3), each there whole or not at all.

    ``key`` says what is trained on what: a checkpoint of anything else is passed over. Equal keys make equal
    checkpoints, so that a worker that lost its shard, and writes one more, does no harm to the one who has it now.
    """

    def __init__(self, folder: str, key: str) -> None:
        self._fs, self._root = resolve_path(folder)
        self._key = key
        self._useless: set[str] = set()  # by their names later than those that are written now, perhaps

    def save(self, checkpoint: Checkpoint, kept: int = KEPT) -> None:
        """Write it, then let go of all but the last ``kept``. Raises ``OSError``."""
        said = {"key": self._key, "step": str(checkpoint.step), "seconds": repr(checkpoint.seconds)}
        said["sha256"] = _sha256(said, checkpoint.tensors)
        path = f"{self._root}/step-{checkpoint.step:08}{SUFFIX}"
        write_whole(self._fs, path, save(checkpoint.tensors, said))
        self._useless.discard(path)
        paths = self._paths()
        last = [one for one in paths if one not in self._useless][:kept]
        for one in paths:
            if one not in last:
                delete(self._fs, one)

    def latest(self) -> Checkpoint | None:
        """The last one that is whole and of this training."""
        paths = self._paths()
        for path in paths:
            try:
                with self._fs.open_input_file(path) as file:
                    data = file.read()
                if (found := self._read(data)) is not None:
                    return found
                self._useless.add(path)
            except (SafetensorError, ValueError, KeyError, OSError) as error:
                next_ = "all is done anew" if path == paths[-1] else "the one before it is taken"
                log.warning("checkpoint %s cannot be read, %s: %s", path, next_, error)
                if not isinstance(error, OSError):  # which may read well another time
                    self._useless.add(path)
        return None

    def _read(self, data: bytes) -> Checkpoint | None:
        tensors = load(data)  # checks that the file is as long as its header says
        said = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        if (written := said.pop("sha256", None)) is None:
            raise ValueError("it is of an earlier release, which did not write what it holds")
        if written != _sha256(said, tensors):
            raise ValueError("it does not hold what was written")
        if said["key"] != self._key:
            return None
        return Checkpoint(int(said["step"]), float(said["seconds"]), tensors)

    def _paths(self) -> list[str]:
        """Latest first."""
        found = self._fs.get_file_info(pafs.FileSelector(self._root, allow_not_found=True))
        return sorted((info.path for info in found if info.base_name.startswith("step-")), reverse=True)


def _sha256(said: Mapping[str, str], tensors: Mapping[str, torch.Tensor]) -> str:
    """Of all that a checkpoint holds, in whatever order its file does: safetensors writes what is said in any."""
    found = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    for name, one in sorted(tensors.items()):
        found.update(f"{name} {one.dtype} {list(one.shape)}".encode())
        found.update(one.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
