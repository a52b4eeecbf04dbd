"""JSON Lines: one object a line, read as a stream of lines of bounded length."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, BinaryIO

from pipeline.storage.readers.base import BadRow, BadValueError, DamagedError, InputFile, RawDocument, not_utf8, shown
from pipeline.storage.readers.decompress import open_stream
from pipeline.storage.readers.mapping import RowMapper
from pipeline.storage.readers.sniff import check_text

BOM = b"\xef\xbb\xbf"
SKIP = 1 << 20  # bytes thrown away at a time while looking for the end of a line that is too long


def check(file: InputFile, mapper: RowMapper) -> None:
    """Raise ``InputError`` if the file is plainly not JSON Lines. Columns may differ from row to row."""
    del mapper
    check_text(file)


def read(file: InputFile, mapper: RowMapper, limit: int) -> Iterator[RawDocument | BadRow]:
    """One document or bad row per line that is not blank; ``source`` is ``file:line``, from 1."""
    with open_stream(file) as stream:
        number = 0
        try:
            for number, line in lines(stream, limit):
                source = f"{file.name}:{number}"
                try:
                    if line is None:
                        raise too_large(limit)
                    if not line.isspace():
                        yield mapper.document(parse(line), source)
                except BadValueError as error:
                    yield BadRow(source, error.code, error.reason, error.doc_id)
        except DamagedError as error:
            yield damaged(file, number + 1, error)


def lines(stream: BinaryIO, limit: int) -> Iterator[tuple[int, bytes | None]]:
    """Numbered lines with their ends, without a byte order mark; None for one of more than ``limit`` bytes."""
    number = 0
    while line := stream.readline(limit + 2):
        number += 1
        if number == 1:
            line = line.removeprefix(BOM)
        if len(line) > limit and (not line.endswith(b"\n") or len(line.rstrip(b"\r\n")) > limit):
            while line and not line.endswith(b"\n"):
                line = stream.readline(SKIP)
            yield number, None
        elif line:
            yield number, line


def too_large(limit: int) -> BadValueError:
    """The refusal of a row of more than ``limit`` bytes."""
    return BadValueError("too_large", f"longer than {limit} bytes (input.max_document_bytes)")


def damaged(file: InputFile, place: int, error: DamagedError) -> BadRow:
    """The end of a file that could not be read on: what came before it was, what comes after is lost and said to be."""
    return BadRow(
        f"{file.name}:{place}", "damaged_file", f"the file is damaged and was not read from line {place} on: {error}"
    )


class _Twice(dict[str, Any]):
    """An object in which a key stood twice: which value was meant nobody knows."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    return row if len(row) == len(pairs) else _Twice(pairs)


_decode = json.JSONDecoder(object_pairs_hook=_object).decode


def parse(line: bytes) -> dict[str, Any]:
    """The object on a line. Raises ``BadValueError`` (invalid_utf8, invalid_json, not_an_object, duplicate_key)."""
    try:
        row = _decode(line.rstrip().decode())
    except UnicodeDecodeError as error:
        raise not_utf8(error, "the line") from None
    except json.JSONDecodeError as error:
        found = shown(error.doc[error.pos : error.pos + 20])
        raise BadValueError("invalid_json", f"column {error.colno}, {found}: {error.msg.removesuffix(' at')}") from None
    except RecursionError:
        raise BadValueError("invalid_json", "nested too deeply") from None
    except ValueError as error:  # a number of more than 4,300 digits
        raise BadValueError("invalid_json", str(error)) from None
    if not isinstance(row, dict):
        raise BadValueError("not_an_object", f"expected an object, found {shown(row)}")
    if type(row) is _Twice:
        raise BadValueError("duplicate_key", "a key stands twice in the object")
    return row
