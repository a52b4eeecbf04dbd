"""CSV with a header line (RFC 4180), quoted fields over several lines included.

Fields are parted by commas; by semicolons, tabs or bars where the header line has one of those and no comma, as
spreadsheets in many countries write it.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from itertools import chain, islice
from typing import Any, BinaryIO

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
from pipeline.storage.readers.decompress import open_stream
from pipeline.storage.readers.jsonl import damaged, lines, too_large
from pipeline.storage.readers.mapping import RowMapper
from pipeline.storage.readers.sniff import check_text

HEADER = 1 << 20  # most bytes of the header line
SEPARATORS = ",;\t|"  # the first that the header line has


def check(file: InputFile, mapper: RowMapper) -> None:
    """Raise ``InputError`` if the file is plainly not CSV or its header lacks a column the mapping needs."""
    check_text(file)
    with open_stream(file) as stream:
        try:
            header = _header(file, _Records(stream, file, HEADER))
        except DamagedError as error:
            raise InputError(f"{file.name}: the header cannot be read, the file is damaged: {error}") from error
    if reason := mapper.missing(header):
        raise InputError(f"{file.name}: {reason}")
    twice = [name for name in mapper.used(header) if header.count(name) > 1]
    if twice:
        raise InputError(f"{file.name}: column {twice[0]!r} stands twice in the header")


def read(file: InputFile, mapper: RowMapper, limit: int) -> Iterator[RawDocument | BadRow]:
    """One document or bad row per record; ``source`` is ``file:line`` of the record's first line. Blank lines pass."""
    with open_stream(file) as stream:
        records = _Records(stream, file, limit)
        try:
            header = _header(file, records)
            records.limit = limit
            # Names are strings and so are cells; an empty cell holds nothing.
            columns = [(header.index(name), name) for name in mapper.used(header)]
            while (record := _next(records, len(header))) is not None:
                yield _document(record, columns, mapper, records)
        except DamagedError as error:
            yield damaged(file, records.start, error)


def _document(
    record: list[str] | BadValueError, columns: list[tuple[int, str]], mapper: RowMapper, records: _Records
) -> RawDocument | BadRow:
    source = f"{records.file.name}:{records.start}"
    try:
        if isinstance(record, BadValueError):
            raise record
        return mapper.document({name: record[index] or None for index, name in columns}, source)
    except BadValueError as error:
        return BadRow(source, error.code, error.reason, error.doc_id)


def _header(file: InputFile, records: _Records) -> list[str]:
    record = _next(records, None)
    if record is None:
        raise InputError(f"{file.name} is empty: a CSV file begins with a line that names its columns")
    if isinstance(record, BadValueError):
        reason = f"it is longer than {HEADER} bytes" if record.code == "too_large" else record.reason
        raise InputError(f"{file.name}: the header cannot be read: {reason}")
    return [name.strip() for name in record]


def _next(records: _Records, width: int | None) -> list[str] | BadValueError | None:
    """The next record that is not blank, the reason why it is none, or None at the end."""
    try:
        while not (record := records.next()):
            pass
    except StopIteration:
        return None
    except BadValueError as error:
        return error
    except csv.Error as error:
        return BadValueError("invalid_csv", f"{records.place()}: {error}")
    if width is not None and len(record) != width:
        return BadValueError("wrong_width", f"{len(record)} fields, but the header names {width}: {shown(record[0])}")
    return record


class _Records:
    """Records of a CSV stream: where each begins and ends, and none longer than ``limit`` bytes."""

    def __init__(self, stream: BinaryIO, file: InputFile, limit: int) -> None:
        # A limit of the module, not of the reader: lifted once, as the bytes of a record are counted here.
        csv.field_size_limit(2**31 - 1)
        self.file, self.limit = file, HEADER
        self.start = self.line = self.bytes = 0
        self.bad: BadValueError | None = None
        numbered = lines(stream, max(limit, HEADER))
        first = list(islice(numbered, 1))
        self.lines = chain(first, numbered)
        header = (first[0][1] or b"").decode(errors="replace") if first else ""
        tabs = file.path.lower().removesuffix(".gz").removesuffix(".zst").endswith(".tsv")
        separator = "\t" if tabs else next((mark for mark in SEPARATORS if mark in header), ",")
        # strict: a quote that is never closed must not swallow the rows after it in silence.
        self.reader: Any = csv.reader(self, delimiter=separator, strict=True)

    def next(self) -> list[str]:
        """The next record ([] for a blank line). Raises ``BadValueError``, ``csv.Error`` or ``StopIteration``."""
        self.start, self.bytes, self.bad = self.line + 1, 0, None
        record: list[str] = next(self.reader)
        if self.bad:
            raise self.bad
        return record

    def __iter__(self) -> _Records:
        return self

    def __next__(self) -> str:
        """A line for the csv module. Raising in the midst of a record makes it forget the record and go on."""
        self.line, line = next(self.lines)
        if line is None:
            raise self._too_large()
        self.bytes += len(line)
        if self.bytes > self.limit and self.bytes - len(line) + len(line.rstrip(b"\r\n")) > self.limit:
            raise self._too_large()
        try:
            return line.decode()
        except UnicodeDecodeError as error:
            self.bad = not_utf8(error, f"line {self.line}")
            return line.decode(errors="replace")

    def place(self) -> str:
        """The lines of the record, in words."""
        return f"line {self.line}" if self.line == self.start else f"lines {self.start} to {self.line}"

    def _too_large(self) -> BadValueError:
        if self.line == self.start:
            return too_large(self.limit)
        return BadValueError(
            "too_large",
            f"{self.place()} are one record of more than {self.limit} bytes "
            "(input.max_document_bytes) and were not read: is a quote not closed?",
        )
