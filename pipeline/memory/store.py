"""The slot store: for each part of an ``encode`` stage a safetensors file of the slots of its documents.

A file is written before the part whose rows name it, and counts when that counts. A row says what its slots are by
sha256 and revision: nothing else is handed to a model.
"""

from __future__ import annotations

import json
import logging
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import torch
from numpy.typing import NDArray

from pipeline.memory.packing import Packed, unpack
from pipeline.models.ref import ModelError
from pipeline.storage.filesystem import resolve_path
from pipeline.storage.parts import write_pieces

log = logging.getLogger(__name__)

SCALES, COMMON = ".scales", ".common"
"""Behind a key: the scales of what lies under it. By itself: what all slots of the file have in common."""

MOST_HEADER = 100 * 2**20
"""Bytes, as the safetensors library has it."""

_DTYPES: dict[str, np.dtype[Any]] = {"F16": np.dtype("<f2"), "I8": np.dtype("i1"), "U8": np.dtype("u1")}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_AGAIN = "bring the job's folder back as it was, or run the job anew with another output folder and database"
_told: set[tuple[str, type]] = set()  # what was complained of in the log, once per process: a file has many rows' slots


class SlotsError(ModelError):
    """Slots that must not be read: not there, not whole, not what was written, or another encoder's."""


def write_slots(fs: pafs.FileSystem, path: str, slots: Mapping[str, Packed], revision: str) -> None:
    """Write slots by key, whole or not at all. Raises ``OSError``."""
    one = next(iter(slots.values()))
    arrays = {name: array for key, each in slots.items() for name, array in _arrays(key, each).items()}
    said = {"encoder": revision, "precision": one.precision, "group": str(one.group), "size": str(one.size)}
    write_pieces(fs, path, _pieces({**arrays, COMMON: one.common}, {"format": "contextmill.slots", **said}))


def _arrays(key: str, packed: Packed) -> dict[str, NDArray[Any]]:
    scaled = {key + SCALES: packed.scales} if packed.scales.size else {}
    return {key: packed.values, **scaled}


def _pieces(arrays: Mapping[str, NDArray[Any]], said: dict[str, str]) -> Iterator[bytes]:
    """A safetensors file: the length of its header, the header, and what that names, end to end."""
    header: dict[str, Any] = {"__metadata__": said}
    end = 0
    for name, array in arrays.items():
        begin, end = end, end + array.nbytes
        dtype = _NAMES[array.dtype.newbyteorder("<")]
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield struct.pack("<Q", len(text)) + text
    for array in arrays.values():
        yield array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


@dataclass(frozen=True, slots=True)
class _Header:
    said: Mapping[str, str]
    tensors: Mapping[str, Any]
    begin: int  # of what the tensors hold, in the file


class SlotFiles:
    """The slot files of the job in the folder ``output`` (local or s3), each looked into once."""

    def __init__(self, output: str) -> None:
        self._fs, self._root = resolve_path(output)
        self._headers: dict[str, _Header] = {}

    def packed(self, row: Mapping[str, Any], revision: str | None = None) -> Packed:
        """The slots of a document by its ``row`` of ``encode``, as they are stored.

        Raises ``SlotsError`` for any that are not what the row says, or not of the encoder ``revision``, where one is
        named; ``OSError`` where they cannot be read for now.
        """
        if not row["slots"]:
            raise SlotsError("the document has no slots: all of it is text")
        made_by, path = row["encoder_revision"], f"{self._root}/{row['slots_file']}"
        if revision is not None and made_by != revision:
            raise SlotsError(
                f"{path}: these are slots of encoder revision {made_by[:12]}, and {revision[:12]} was to be read: "
                "slots are read by the very model they were made for; encode the documents anew"
            )
        try:
            found = self._read(path, row["slots_key"])
        except FileNotFoundError:
            raise SlotsError(f"{path} is gone, and with it the slots of its documents: {_AGAIN}") from None
        except (ValueError, LookupError, TypeError, AttributeError, struct.error, pa.ArrowInvalid) as error:
            raise SlotsError(f"{path} is no slot file, or was cut short ({error}): {_AGAIN}") from error
        if found.sha256(made_by) != row["slots_sha256"] or len(found.values) != row["slots"]:
            raise SlotsError(f"{path}: the slots {row['slots_key']} are not what was written: {_AGAIN}")
        return found

    def taken(self, row: Mapping[str, Any], job: str) -> Packed | None:
        """``packed`` of a row of ``job``; where that raises None, and a warning for the first such row of a file."""
        try:
            return self.packed(row)
        except (SlotsError, OSError) as error:
            why = f"{self._root}/{row['slots_file']}", type(error)
            if why not in _told:
                _told.add(why)
                log.warning("slots of job %s cannot be taken over, and perhaps others of their file: %s", job, error)
            return None

    def _read(self, path: str, key: str) -> Packed:
        with self._fs.open_input_file(path) as file:
            header = self._headers.get(path) or _header(file)
            self._headers[path] = header
            said = header.said
            values, scales, common = (_array(file, header, name) for name in (key, key + SCALES, COMMON))
        if values is None or common is None:
            raise LookupError(f"there are no slots {key} in it")
        if scales is None:
            scales = np.zeros((len(values), 0), np.float16)
        precision: Any = said["precision"]
        return Packed(precision, int(said["group"]), int(said["size"]), values, scales, common)


def _header(file: pa.NativeFile) -> _Header:
    (length,) = struct.unpack("<Q", file.read_at(8, 0))
    if length > min(MOST_HEADER, file.size()):
        raise ValueError(f"a header of {length} bytes")
    tensors = json.loads(file.read_at(length, 8))
    said = tensors.pop("__metadata__")
    end = max((one["data_offsets"][1] for one in tensors.values()), default=0)
    if file.size() != 8 + length + end:
        raise ValueError(f"{file.size()} bytes of {8 + length + end}")
    return _Header(said, tensors, 8 + length)


def _array(file: pa.NativeFile, header: _Header, name: str) -> NDArray[Any] | None:
    if name not in header.tensors:
        return None
    one = header.tensors[name]
    begin, end = one["data_offsets"]
    data = file.read_at(end - begin, header.begin + begin)
    found: NDArray[Any] = np.frombuffer(bytes(data), _DTYPES[one["dtype"]]).reshape(one["shape"])
    return found


def read_slots(output: str, row: Mapping[str, Any], revision: str | None = None) -> torch.Tensor:
    """The slots ``[k, d]`` of a document, float32, by its ``row`` in ``data/`` of the job in the folder ``output``.
    Raises as ``SlotFiles.packed`` does."""
    return unpack(SlotFiles(output).packed(row, revision))
