"""Parts: strict rows, written whole or not at all, read by ranges, orphans found."""

from __future__ import annotations

import filecmp
import random
import resource
import subprocess
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.storage.filesystem import resolve_path
from pipeline.storage.parts import (
    COPY_BYTES,
    PartError,
    copy_whole,
    delete,
    list_orphans,
    read_part,
    read_rows,
    table_from_rows,
    write_part,
)
from schemas.records import DOCUMENT, INPUT, part_schema

SCHEMA = part_schema(["compress", "generate"], {"job": "j1", "config_hash": "c1"})
LOCAL, _ = resolve_path("/")


def row(seq: int, **changed: Any) -> dict[str, Any]:
    whole = {
        "seq": seq, "doc_id": f"d{seq}", "content_hash": "h", "text": f"text {seq}", "answer": None,
        "compressed": "t", "compress_method": "llmlingua", "kept": [0, 1], "listed": None, "rate_asked": 0.5,
        "tokens_original": 10, "tokens_asked": 5, "tokens_compressed": 5, "copied": False, "compress_seconds": 0.5,
        "compress_reused_from": None,
        "generated": "g", "generate_model": "m", "finish_reason": "stop", "tokens_prompt": 6, "tokens_generated": 2,
        "tokens_cached": None, "target_passes": 2, "tokens_drafted": 0, "tokens_accepted": 0, "drafts": None,
        "generate_seconds": 1, "latency_seconds": 1.5, "cost_usd": Decimal("0.000123"),
        "generate_reused_from": "j0",
    }  # fmt: skip
    return {**whole, **changed}


def test_rows_come_back_as_they_were_with_types_and_metadata(tmp_path: Path) -> None:
    path = str(tmp_path / "run" / "_parts" / "a.parquet")
    rows = [row(seq, answer="a" if seq % 2 else None) for seq in range(5)]
    info = write_part(LOCAL, path, table_from_rows(rows, SCHEMA), SCHEMA)
    assert (info.path, info.rows, info.bytes) == (path, 5, Path(path).stat().st_size)
    table = read_part(LOCAL, path)
    assert table.to_pylist() == rows
    assert table.schema.equals(SCHEMA, check_metadata=True)
    assert pq.read_metadata(path).metadata[b"contextmill.job"] == b"j1"
    assert pq.read_metadata(path).row_group(0).column(0).compression == "ZSTD"
    assert read_part(LOCAL, path, columns=["generated"]).column_names == ["generated"]


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"tokens_asked": "5"}, r"'tokens_asked', row 1: str is not int64"),
        ({"tokens_asked": 5.0}, r"'tokens_asked', row 1: float is not int64"),
        ({"tokens_asked": True}, r"'tokens_asked', row 1: bool is not int64"),
        ({"tokens_asked": 2**63}, r"'tokens_asked'"),
        ({"copied": 0}, r"'copied', row 1: int is not bool"),
        ({"text": None}, r"'text', row 1: NoneType"),
        ({"text": b"bytes"}, r"'text', row 1: bytes is not string"),
        ({"text": "half \ud800"}, r"'text' does not hold string"),
        ({"cost_usd": 0.1}, r"'cost_usd', row 1: float is not decimal"),
        ({"cost_usd": Decimal("0.00000001")}, r"'cost_usd'"),
        ({"compress_seconds": "1"}, r"'compress_seconds', row 1: str is not double"),
        ({"surprise": 1}, r"row 1: column surprise is missing or not in the schema"),
    ],
)
def test_a_wrong_value_names_its_column(changed: dict[str, Any], says: str) -> None:
    with pytest.raises(PartError, match=says):
        table_from_rows([row(0), row(1, **changed)], SCHEMA)


def test_a_missing_column_and_a_list_of_wrong_things() -> None:
    short = row(0)
    del short["generated"]
    with pytest.raises(PartError, match="column generated is missing"):
        table_from_rows([short], SCHEMA)
    whole = {
        "seq": 0,
        "doc_id": "d",
        "content_hash": "h",
        "source": "s",
        "instruction": "",
        "question": "",
        "answer": None,
        "rate": None,
    }
    assert table_from_rows([{**whole, "contexts": ("a", "b")}], INPUT)["contexts"].to_pylist() == [["a", "b"]]
    for wrong in ("a string", [1]):
        with pytest.raises(PartError, match="'contexts'"):
            table_from_rows([{**whole, "contexts": wrong}], INPUT)


def test_no_rows_are_a_part_too(tmp_path: Path) -> None:
    path = str(tmp_path / "a.parquet")
    assert write_part(LOCAL, path, table_from_rows([], SCHEMA), SCHEMA).rows == 0
    assert read_part(LOCAL, path).schema.equals(SCHEMA)
    assert read_rows(LOCAL, path, 0, 10).num_rows == 0


def test_a_table_of_another_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    with pytest.raises(PartError, match="compressed: string not null"):
        write_part(LOCAL, str(path), DOCUMENT.empty_table(), SCHEMA)
    nulls = pa.table([pa.nulls(1, field.type) for field in DOCUMENT], schema=DOCUMENT)
    with pytest.raises(PartError, match="'seq' holds nulls"):
        write_part(LOCAL, str(path), nulls, DOCUMENT)
    assert list(tmp_path.iterdir()) == []


def big_table(rows: int, first: int = 0) -> pa.Table:
    columns = [
        pa.array(range(first, first + rows)),
        *[pa.array([f"{name} {seq}" for seq in range(rows)]) for name in DOCUMENT.names[1:]],
    ]
    return pa.Table.from_arrays(columns, schema=DOCUMENT)


def test_a_range_reads_its_row_groups_only(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_part(LOCAL, str(path), big_table(5000, first=100), DOCUMENT)
    assert pq.ParquetFile(path).num_row_groups == 5

    def seqs(start: int, stop: int) -> list[int]:
        found: list[int] = read_rows(LOCAL, str(path), start, stop)["seq"].to_pylist()
        return found

    assert seqs(1120, 1130) == list(range(1120, 1130))  # over the edge of two groups
    assert seqs(0, 102) == [100, 101]
    assert seqs(5099, 9000) == [5099]
    assert seqs(0, 100) == seqs(5100, 6000) == seqs(300, 300) == []
    assert read_rows(LOCAL, str(path), 100, 101, columns=["text"]).to_pydict() == {"text": ["text 0"]}
    # Bytes of the first group overwritten: a range that lies in the others does not touch them.
    data = bytearray(path.read_bytes())
    begin = pq.read_metadata(path).row_group(1).column(0).data_page_offset - 64
    data[4:begin] = b"\xff" * (begin - 4)
    path.write_bytes(data)
    assert seqs(2500, 2502) == [2500, 2501]
    with pytest.raises((OSError, pa.ArrowInvalid)):
        seqs(100, 102)


def test_writing_again_replaces_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_part(LOCAL, str(path), big_table(10), DOCUMENT)
    write_part(LOCAL, str(path), big_table(3), DOCUMENT)
    assert read_part(LOCAL, str(path)).num_rows == 3
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.parquet"]


@contextmanager
def tiny_disk(folder: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], check=True, capture_output=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@contextmanager
def small_files(folder: Path) -> Iterator[Path]:
    """No file may grow beyond 64 KiB; what the kernel refuses to write is refused as on a full disk."""
    folder.mkdir()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65_536, hard))
    try:
        yield folder
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def may_mount(folder: Path) -> bool:
    try:
        with tiny_disk(folder):
            return True
    except (subprocess.CalledProcessError, FileNotFoundError):
        return False


def test_a_large_file_is_copied_piece_by_piece(tmp_path: Path) -> None:
    source, path = tmp_path / "weights", tmp_path / "made" / "weights"
    source.write_bytes(random.Random(0).randbytes(8 * COPY_BYTES + 1))
    tracemalloc.start()
    copy_whole(LOCAL, str(path), source)
    assert tracemalloc.get_traced_memory()[1] < 3 * COPY_BYTES
    tracemalloc.stop()
    assert filecmp.cmp(source, path, shallow=False)
    with pytest.raises(FileNotFoundError):
        copy_whole(LOCAL, str(path), tmp_path / "missing")
    assert filecmp.cmp(source, path, shallow=False)


def test_no_space_leaves_nothing_and_what_was_there(tmp_path: Path) -> None:
    small: Callable[[Path], AbstractContextManager[Path]] = tiny_disk if may_mount(tmp_path / "try") else small_files
    with small(tmp_path / "disk") as folder:
        before = write_part(LOCAL, str(folder / "a.parquet"), big_table(50), DOCUMENT)
        for name in ("a.parquet", "b.parquet"):
            with pytest.raises(OSError, match=rf"(No space left on device|File too large): '{folder / name}'"):
                write_part(LOCAL, str(folder / name), big_table(50_000), DOCUMENT)
        assert [entry.name for entry in folder.iterdir()] == ["a.parquet"]
        assert read_part(LOCAL, before.path).num_rows == 50


def test_a_limit_on_file_size_leaves_nothing_either(tmp_path: Path) -> None:
    with small_files(tmp_path / "disk") as folder:
        with pytest.raises(OSError, match="File too large"):
            write_part(LOCAL, str(folder / "a.parquet"), big_table(50_000), DOCUMENT)
        assert list(folder.iterdir()) == []


def test_orphans_are_what_the_manifest_does_not_know(tmp_path: Path) -> None:
    root = str(tmp_path)
    for name in ("_parts/s1-a1.parquet", "_parts/s1-a2.parquet", "_input/0-9.parquet", "rejections.parquet"):
        write_part(LOCAL, f"{root}/{name}", big_table(1), DOCUMENT)
    (tmp_path / "_parts" / ".tmp-0-s9.parquet").write_bytes(b"cut")
    (tmp_path / ".tmp-0-rejections.parquet").write_bytes(b"cut")
    known = {"s1-a2.parquet", "_input/0-9.parquet"}
    assert list_orphans(LOCAL, root, known, older_than_seconds=3600) == []
    orphans = list_orphans(LOCAL, root, known, older_than_seconds=0)
    names = [".tmp-0-rejections.parquet", "_parts/.tmp-0-s9.parquet", "_parts/s1-a1.parquet"]
    assert orphans == [f"{root}/{name}" for name in names]
    for path in [*orphans, *orphans]:  # gone already is as good
        delete(LOCAL, path)
    assert list_orphans(LOCAL, root, known, older_than_seconds=0) == []
    assert list_orphans(LOCAL, f"{root}/no/such", set(), older_than_seconds=0) == []
