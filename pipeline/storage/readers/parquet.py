"""Parquet: the mapped columns only, in batches sized by what the row groups say they hold."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import types

from pipeline.storage.readers.base import (
    BadRow,
    BadValueError,
    DamagedError,
    InputError,
    InputFile,
    RawDocument,
    not_utf8,
    shown,
)
from pipeline.storage.readers.decompress import Watched, open_raw, open_stream, reason_of
from pipeline.storage.readers.jsonl import too_large
from pipeline.storage.readers.mapping import RowMapper
from pipeline.storage.readers.sniff import check_packing, looks_like

BATCH_BYTES = 16 << 20
BATCH_ROWS = 32  # dictionary encoding hides how large rows are, so few at a time; more are no faster
PAGE_BUFFER = 1 << 20


def check(file: InputFile, mapper: RowMapper) -> None:
    """Raise ``InputError`` if the file is no Parquet, or its columns are not there or of another type."""
    check_packing(file)
    if file.compression is None:
        with open_raw(file) as stream:
            head = stream.read(16)
        if looks_like(head) != "Parquet":
            found = (looks_like(head) or f"text or data that begins with {shown(head)}") if head else "an empty file"
            raise InputError(f"{file.name} is not what its name says: expected Parquet, found {found}")
    with _open(file) as (parquet, _):
        schema = parquet.schema_arrow
    if reason := mapper.missing(schema.names):
        raise InputError(f"{file.name}: {reason}")
    for name in mapper.used(schema.names):
        _check_type(file, mapper, name, schema)


def read(file: InputFile, mapper: RowMapper, limit: int) -> Iterator[RawDocument | BadRow]:
    """One document or bad row per row; ``source`` is ``file:row``, from 1. A damaged row group costs its own rows."""
    with _open(file) as (parquet, watched):
        columns, start = mapper.used(parquet.schema_arrow.names), 0
        for index in range(parquet.num_row_groups):
            group = parquet.metadata.row_group(index)
            row, stop = start, start + group.num_rows
            try:
                for values in _rows(parquet, index, columns, _batch_rows(group, columns)):
                    row += 1
                    yield _document(dict(zip(columns, values, strict=True)), f"{file.name}:{row}", mapper, limit)
                if row != stop:  # a file cut short while it is read looks to pyarrow like one that has ended
                    raise OSError("they are not there")
            except (OSError, pa.ArrowException) as error:
                if watched.error:
                    raise watched.error from error
                reason = f"the file is damaged: rows {row + 1} to {stop} were not read: {str(error).splitlines()[0]}"
                yield BadRow(f"{file.name}:{row + 1}", "damaged_file", reason)
            start = stop


def _rows(parquet: Any, group: int, columns: list[str], size: int) -> Iterator[tuple[Any, ...]]:
    for batch in parquet.iter_batches(size, row_groups=[group], columns=columns, use_threads=False):
        yield from zip(*(_values(batch.column(name)) for name in columns), strict=True)


def _document(row: dict[str, Any], source: str, mapper: RowMapper, limit: int) -> RawDocument | BadRow:
    try:
        for value in row.values():
            if isinstance(value, BadValueError):
                raise value
        document = mapper.document(row, source)
        text = document.parts.render()
        if len(text) * 4 > limit and len(text.encode()) > limit:
            return BadRow(source, "too_large", too_large(limit).reason, document.id)
        return document
    except BadValueError as error:
        return BadRow(source, error.code, error.reason, error.doc_id)


def _values(column: Any) -> list[Any]:
    """The column as Python values; one that is no UTF-8 becomes the ``BadValueError`` its row is refused with."""
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        return [_value(cell) for cell in column]


def _value(cell: Any) -> Any:
    try:
        return cell.as_py()
    except UnicodeDecodeError as error:
        return not_utf8(error, "a string")


def _batch_rows(group: Any, columns: list[str]) -> int:
    """Rows at a time, so that a batch of these columns of the row group is about ``BATCH_BYTES``."""
    chunks = [group.column(index) for index in range(group.num_columns)]
    # A list is a chunk named "contexts.list.element"; the dot at the end tells it from a column "contexts2".
    below = tuple(f"{name}." for name in columns)
    size = sum(chunk.total_uncompressed_size for chunk in chunks if f"{chunk.path_in_schema}.".startswith(below))
    return int(max(1, min(BATCH_ROWS, BATCH_BYTES * group.num_rows / max(size, 1))))


def _check_type(file: InputFile, mapper: RowMapper, name: str, schema: Any) -> None:
    if schema.names.count(name) > 1:
        raise InputError(f"{file.name}: there are {schema.names.count(name)} columns {name!r}")
    found = schema.field(name).type
    if _is_text(found):
        return
    if name in (mapper.id, mapper.answer) and types.is_integer(found):
        return
    if name in (mapper.parts[1], mapper.answer) and _is_list(found) and _is_text(found.value_type):
        return
    wanted = "strings or whole numbers" if name in (mapper.id, mapper.answer) else "strings"
    raise InputError(f"{file.name}: column {name!r} holds {found}, not {wanted}; map another column or convert it")


def _is_text(found: Any) -> bool:
    if types.is_dictionary(found):
        found = found.value_type
    return bool(
        types.is_string(found) or types.is_large_string(found) or types.is_string_view(found) or types.is_null(found)
    )


def _is_list(found: Any) -> bool:
    return bool(types.is_list(found) or types.is_large_list(found) or types.is_fixed_size_list(found))


@contextlib.contextmanager
def _open(file: InputFile) -> Iterator[tuple[Any, Watched]]:
    """The Parquet file, read in pieces, and the stream under it. A packed one is unpacked to a temporary file first:
    Parquet begins at its end."""
    with contextlib.ExitStack() as stack:
        try:
            if file.compression:
                source: Any = stack.enter_context(_unpacked(file))
            else:
                source = stack.enter_context(file.fs.open_input_file(file.path))
            watched = Watched(source, file.name)
            yield stack.enter_context(pq.ParquetFile(watched, buffer_size=PAGE_BUFFER, pre_buffer=False)), watched
        except (pa.ArrowException, OSError) as error:
            reason = reason_of(error) if isinstance(error, OSError) else str(error).splitlines()[0]
            raise InputError(f"{file.name} cannot be read as Parquet: {reason}") from error


@contextlib.contextmanager
def _unpacked(file: InputFile) -> Iterator[Any]:
    with tempfile.TemporaryDirectory(prefix="contextmill-") as folder:
        path = Path(folder, "unpacked.parquet")
        room = shutil.disk_usage(folder).free // 2  # a bomb must not fill the disk
        try:
            with open_stream(file) as stream, path.open("wb") as out:
                while piece := stream.read(1 << 20):
                    room -= out.write(piece)
                    if room < 0:
                        raise InputError(f"{file.name} unpacks to more than half of the free space of {folder}")
        except DamagedError as error:
            raise InputError(f"{file.name} cannot be read: the file is damaged: {error}") from error
        with pa.OSFile(str(path)) as source:
            yield source
