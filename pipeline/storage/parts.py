"""Parquet parts of a job: ``<root>/_input/`` and ``<root>/_parts/`` as they are written, ``<root>/data/`` for users.

A file is there whole or not at all: on a disk it is written under another name, synced and renamed; on s3 an object
appears when its upload is complete. Whether a part counts is the manifest's to say (``schemas.tables.Part``).
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from pyarrow import types

from pipeline.storage.disk import sync
from pipeline.storage.filesystem import is_local

TEMPORARY = ".tmp-"  # a name readers pass over
ROW_GROUP = 1024  # rows a reader of one shard must unpack at least
COPY_BYTES = 8 * 2**20
SLOTS = "slots"
"""A job's folder of slot files (``pipeline.memory.store``), each named after the part whose rows name it."""

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Errors of a write that has no room."""


class PartError(ValueError):
    """Rows that do not fit the schema of their part; the message names the column."""


@dataclass(frozen=True, slots=True)
class PartInfo:
    """A part as it was written; ``bytes`` is the size of the file."""

    path: str
    rows: int
    bytes: int


def table_from_rows(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """The rows as a table of exactly ``schema``, without any conversion that would hide a slip.

    Raises ``PartError`` naming the column for a value of another type, a null where none may be, a column that is
    missing or one too many.
    """
    names = set(schema.names)
    for index, row in enumerate(rows):
        if row.keys() != names:
            wrong = sorted(names ^ row.keys())
            raise PartError(f"row {index}: column {', '.join(wrong)} is missing or not in the schema")
    return pa.Table.from_arrays([_column(field, [row[field.name] for row in rows]) for field in schema], schema=schema)


def _column(field: pa.Field, values: list[Any]) -> Any:
    allowed = _python_types(field.type)
    for kind in set(map(type, values)):
        if not (kind is type(None) and field.nullable) and not issubclass(kind, allowed):
            index = next(i for i, value in enumerate(values) if type(value) is kind)
            raise PartError(f"column {field.name!r}, row {index}: {kind.__name__} is not {field.type}")
    try:
        return pa.array(values, field.type)
    except (pa.ArrowException, UnicodeEncodeError, OverflowError, TypeError) as error:
        raise PartError(f"column {field.name!r} does not hold {field.type}: {error}") from error


def _python_types(arrow: Any) -> tuple[type, ...]:
    if types.is_boolean(arrow):
        return (bool,)
    if types.is_integer(arrow):
        return (_Int,)
    if types.is_floating(arrow):
        return (float, _Int)
    if types.is_decimal(arrow):
        return (Decimal, _Int)
    return (list, tuple) if types.is_list(arrow) else (str,)


class _IntMeta(type):
    def __subclasscheck__(cls, kind: type) -> bool:
        return issubclass(kind, int) and not issubclass(kind, bool)


class _Int(metaclass=_IntMeta):
    """int, but not bool: True is no token count."""


def write_part(fs: pafs.FileSystem, path: str, table: pa.Table, schema: pa.Schema) -> PartInfo:
    """Write ``table`` to ``path``, whole or not at all, over what may be there; missing folders are made.

    Raises ``PartError`` for a table of another schema, ``OSError`` (no space, no permission, no network) after having
    removed what it had begun.
    """
    if not table.schema.equals(schema):
        raise PartError(f"{path}: the table's columns are not those of the schema: {_difference(table.schema, schema)}")
    for field in schema:
        if not field.nullable and table.column(field.name).null_count:
            raise PartError(f"{path}: column {field.name!r} holds nulls, which its schema does not allow")
    sink = pa.BufferOutputStream()
    pq.write_table(table.cast(schema), sink, compression="zstd", row_group_size=ROW_GROUP)
    data = sink.getvalue()
    write_whole(fs, path, data)
    return PartInfo(path, table.num_rows, data.size)


def write_whole(fs: pafs.FileSystem, path: str, data: Any) -> None:
    """Write ``data`` (bytes) to ``path``, whole or not at all, over what may be there; missing folders are made.

    Raises ``OSError`` after having removed what it had begun.
    """
    if is_local(fs):
        with _whole_file(Path(path)) as file:
            file.write(data)
    else:
        # In one piece: a stream that is closed early, by an error, would leave an object that looks whole.
        with fs.open_output_stream(path, compression=None) as out:
            out.write(data)


def slots_path(part: str) -> str:
    """The slot file of ``part`` (``_parts/NAME.parquet``), from the job's folder as that is."""
    return f"{SLOTS}/{part.rpartition('/')[2].removesuffix('.parquet')}.safetensors"


def write_pieces(fs: pafs.FileSystem, path: str, pieces: Iterable[bytes]) -> None:
    """Write ``pieces`` to ``path`` end to end, whole or not at all; memory holds one of them at a time.

    Raises ``OSError``, and what ``pieces`` raises.
    """
    _write_streamed(fs, path, lambda file: file.writelines(pieces))


def write_tables(fs: pafs.FileSystem, path: str, tables: Iterable[pa.Table], schema: pa.Schema) -> None:
    """Write ``tables`` of ``schema`` to ``path`` as one file, whole or not at all; memory holds one table at a time.

    Raises ``OSError``, and what ``tables`` raises.
    """
    _write_streamed(fs, path, lambda file: _write_each(file, tables, schema))


def _write_streamed(fs: pafs.FileSystem, path: str, write: Callable[[IO[bytes]], None]) -> None:
    if is_local(fs):
        with _whole_file(Path(path)) as file:
            write(file)
        return
    with tempfile.TemporaryFile() as spool:
        write(spool)
        spool.seek(0)
        _upload(fs, path, spool)


def copy_whole(fs: pafs.FileSystem, path: str, source: Path) -> None:
    """As ``write_whole``, from a file of this machine; memory holds a piece of it at a time."""
    with source.open("rb") as whole:
        if not is_local(fs):
            _upload(fs, path, whole)
            return
        with _whole_file(Path(path)) as file:
            shutil.copyfileobj(whole, file, COPY_BYTES)


def _upload(fs: pafs.FileSystem, path: str, whole: IO[bytes]) -> None:
    """What is whole before its upload begins, for the reason above."""
    with fs.open_output_stream(path, compression=None) as out:
        shutil.copyfileobj(whole, out, COPY_BYTES)


def _write_each(file: IO[bytes], tables: Iterable[pa.Table], schema: pa.Schema) -> None:
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for table in tables:
            writer.write_table(table, ROW_GROUP)


def _difference(found: pa.Schema, schema: pa.Schema) -> str:
    have, want = ({field.name: str(field) for field in side} for side in (found, schema))
    wrong = [have.get(name) or want[name] for name in have | want if have.get(name) != want.get(name)]
    return ", ".join(wrong) or "their order differs"


@contextlib.contextmanager
def _whole_file(path: Path) -> Iterator[IO[bytes]]:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{TEMPORARY}{uuid.uuid4().hex}-{path.name}")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in FULL and error.filename is None:  # a write names no file
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    sync(path.parent)


def read_part(fs: pafs.FileSystem, path: str, columns: Sequence[str] | None = None) -> pa.Table:
    """The whole part. Raises ``OSError`` if it is not there, ``pa.ArrowInvalid`` if it is damaged."""
    with fs.open_input_file(path) as source:
        return pq.ParquetFile(source).read(columns=list(columns) if columns is not None else None)


def read_rows(fs: pafs.FileSystem, path: str, start: int, stop: int, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows with ``start <= seq < stop``, in the part's order; row groups that hold none are not read."""
    with fs.open_input_file(path) as source:
        parquet = pq.ParquetFile(source)
        wanted = list(columns if columns is not None else parquet.schema_arrow.names)
        groups = [
            index
            for index in range(parquet.num_row_groups)
            if _may_hold(parquet.metadata.row_group(index), start, stop)
        ]
        table = parquet.read_row_groups(groups, columns=list(dict.fromkeys([*wanted, "seq"])))
    seq = table.column("seq")
    return table.filter(pc.and_(pc.greater_equal(seq, start), pc.less(seq, stop))).select(wanted)


def _may_hold(group: Any, start: int, stop: int) -> bool:
    for index in range(group.num_columns):
        column = group.column(index)
        if column.path_in_schema == "seq":
            stats = column.statistics
            return stats is None or not stats.has_min_max or (stats.max >= start and stats.min < stop)
    return True


def list_orphans(fs: pafs.FileSystem, root: str, known: Collection[str], older_than_seconds: float) -> list[str]:
    """Files under ``_parts/``, ``_input/`` and ``slots/``, and unfinished ones in ``root``, that the manifest does not
    know.

    ``known`` holds the manifest's names, with or without their folder, and those of slot files. Young files are left
    out: their commit may be on its way.
    """
    before = time.time() - older_than_seconds
    found = []
    for folder in ("", "_input", "_parts", SLOTS):
        selector = pafs.FileSelector(f"{root}/{folder}".rstrip("/"), allow_not_found=True)
        for info in fs.get_file_info(selector):
            name = info.base_name
            ours = folder or name.startswith(TEMPORARY)
            mine = name not in known and f"{folder}/{name}" not in known
            if info.is_file and ours and mine and info.mtime.timestamp() <= before:
                found.append(info.path)
    return sorted(found)


def delete(fs: pafs.FileSystem, path: str) -> None:
    """Remove a file; one that is gone already is as good."""
    with contextlib.suppress(FileNotFoundError):
        fs.delete_file(path)
