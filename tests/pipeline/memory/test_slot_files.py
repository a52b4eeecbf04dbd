"""Slot files: anybody's safetensors, and nothing is read from them that a row does not vouch for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file

from pipeline.memory import store
from pipeline.memory.packing import Packed, pack, unpack
from pipeline.memory.store import SlotFiles, SlotsError, read_slots, write_slots
from pipeline.storage.filesystem import resolve_path
from schemas.memory import Precision

PRECISIONS: tuple[Precision, ...] = ("float16", "int8", "int4")


def packed(slots: torch.Tensor, precision: Precision) -> Packed:
    return pack(slots, torch.linspace(-1, 1, 96) + torch.tensor([[0.0], [2.0], [3.0]]), precision, 64)


def written(folder: Path, precision: Precision = "int8", keys: int = 3) -> list[dict[str, Any]]:
    """A slot file, and the rows of its documents."""
    torch.manual_seed(0)
    slots: dict[str, Packed] = {f"k{at}": packed(torch.randn(at + 1, 96), precision) for at in range(keys)}
    fs, root = resolve_path(folder)
    write_slots(fs, f"{root}/slots/s.safetensors", slots, "revision")
    return [
        {"slots": len(one.values), "slots_file": "slots/s.safetensors", "slots_key": key,
         "slots_sha256": one.sha256("revision"), "encoder_revision": "revision"}
        for key, one in slots.items()
    ]  # fmt: skip


def file(folder: Path) -> Path:
    return folder / "slots" / "s.safetensors"


@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_was_written_is_read(precision: Precision, tmp_path: Path) -> None:
    rows = written(tmp_path, precision)
    torch.manual_seed(0)
    for at, row in enumerate(rows):
        expected = unpack(packed(torch.randn(at + 1, 96), precision))
        assert torch.equal(read_slots(str(tmp_path), row, "revision"), expected)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_library_reads_them_too(precision: Precision, tmp_path: Path) -> None:
    rows = written(tmp_path, precision)
    tensors, dtype = load_file(file(tmp_path)), {"float16": "float16", "int8": "int8", "int4": "uint8"}[precision]
    assert [str(tensors[row["slots_key"]].dtype) for row in rows] == [dtype] * 3
    assert len(tensors) == 1 + (3 if precision == "float16" else 6)
    with safe_open(file(tmp_path), "numpy") as opened:
        said = opened.metadata()
    assert said == {
        "format": "contextmill.slots", "encoder": "revision", "precision": precision, "group": "64", "size": "96",
    }  # fmt: skip


def test_a_file_is_looked_into_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, read = written(tmp_path), list[int]()
    header = store._header

    def counted(opened: Any) -> Any:
        read.append(1)
        return header(opened)

    monkeypatch.setattr(store, "_header", counted)
    files = SlotFiles(str(tmp_path))
    assert [len(files.packed(row).values) for row in rows] == [1, 2, 3] and len(read) == 1


def test_slots_of_another_encoder_are_refused(tmp_path: Path) -> None:
    (row,) = written(tmp_path, keys=1)
    with pytest.raises(SlotsError, match="slots of encoder revision revision, and another was to be read"):
        read_slots(str(tmp_path), row, "another")
    with pytest.raises(SlotsError, match="k0 are not what was written"):
        read_slots(str(tmp_path), row | {"encoder_revision": "another"}, "another")


@pytest.mark.parametrize("place", range(0, 1200, 29))
def test_no_byte_may_change(tmp_path: Path, place: int) -> None:
    """Wherever it is: refused, unless it says nothing of these slots."""
    rows = written(tmp_path)
    data = bytearray(file(tmp_path).read_bytes())
    data[place % len(data)] ^= 0x55
    file(tmp_path).write_bytes(data)
    refused = 0
    for at, row in enumerate(rows):
        torch.manual_seed(0)
        expected = [unpack(packed(torch.randn(n + 1, 96), "int8")) for n in range(at + 1)][at]
        try:
            assert torch.equal(read_slots(str(tmp_path), row), expected)
        except SlotsError as error:
            refused += 1
            assert "run the job anew" in str(error)
    spared = b'"format":"contextmill.slots","encoder":"revision"'
    begin = file(tmp_path).read_bytes().find(spared[:9])
    assert refused or (begin <= place % len(data) <= begin + len(spared)) or chr(data[place % len(data)] ^ 0x55) == " "


@pytest.mark.parametrize("left", [0, 4, 8, 60, -200, -1])
def test_a_file_that_was_cut_short_is_refused(tmp_path: Path, left: int) -> None:
    rows = written(tmp_path)
    file(tmp_path).write_bytes(file(tmp_path).read_bytes()[:left])
    for row in rows:
        with pytest.raises(SlotsError, match=r"is no slot file, or was cut short .*bring the job's folder back"):
            read_slots(str(tmp_path), row)


def test_a_damaged_file_is_complained_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """However many rows it has, and shards ask for them."""
    rows = written(tmp_path)
    file(tmp_path).write_bytes(file(tmp_path).read_bytes()[:-1])
    for files in (SlotFiles(str(tmp_path)), SlotFiles(str(tmp_path))):
        assert [files.taken(row, "night") for row in rows] == [None] * 3
    (said,) = caplog.messages
    assert (
        f"slots of job night cannot be taken over, and perhaps others of their file: {file(tmp_path)} is no slot file"
        in said
    )


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    (row,) = written(tmp_path, keys=1)
    with pytest.raises(SlotsError, match="there are no slots another in it"):
        read_slots(str(tmp_path), row | {"slots_key": "another"})
    file(tmp_path).unlink()
    with pytest.raises(SlotsError, match=r"s\.safetensors is gone"):
        read_slots(str(tmp_path), row)


def test_other_rows_slots_are_refused(tmp_path: Path) -> None:
    one, two, _ = written(tmp_path)
    with pytest.raises(SlotsError, match="are not what was written"):
        read_slots(str(tmp_path), one | {"slots_key": two["slots_key"]})


def test_a_row_of_no_slots_has_none_to_read(tmp_path: Path) -> None:
    row = {"slots": 0, "slots_file": None, "slots_key": None, "slots_sha256": None, "encoder_revision": "r"}
    with pytest.raises(SlotsError, match="has no slots: all of it is text"):
        read_slots(str(tmp_path), row)
