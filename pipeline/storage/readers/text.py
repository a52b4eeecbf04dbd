"""A file of text is one document."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.storage.readers.base import BadRow, BadValueError, DamagedError, InputFile, RawDocument, not_utf8
from pipeline.storage.readers.decompress import open_stream
from pipeline.storage.readers.jsonl import BOM, too_large
from pipeline.storage.readers.mapping import RowMapper
from pipeline.storage.readers.sniff import looks_like, wrong_packing
from schemas.document import PromptParts


def check(file: InputFile, mapper: RowMapper) -> None:
    """Nothing to refuse beforehand: a text file that is none is one bad document, not a bad corpus."""
    del file, mapper


def read(file: InputFile, mapper: RowMapper, limit: int) -> Iterator[RawDocument | BadRow]:
    """One document, or the reason why there is none; ``source`` is the file. The text is kept to the last byte."""
    del mapper
    try:
        yield RawDocument(None, PromptParts(contexts=(_text(file, limit),)), None, file.name)
    except BadValueError as error:
        yield BadRow(file.name, error.code, error.reason)


def _text(file: InputFile, limit: int) -> str:
    data = _bytes(file, limit)
    if found := looks_like(data):
        raise BadValueError("not_text", f"expected text, found {found}")
    if len(data) > limit:
        raise too_large(limit)
    try:
        text = data.removeprefix(BOM).decode()
    except UnicodeDecodeError as error:
        raise not_utf8(error, "the file") from None
    if not text.strip():
        raise BadValueError("empty", f"the file holds {'only white space' if text else 'no text'}")
    return text


def _bytes(file: InputFile, limit: int) -> bytes:
    """The file, or just over ``limit`` bytes of it."""
    if not file.bytes:
        return b""
    if found := wrong_packing(file):
        raise BadValueError("not_text", f"the file {found}")
    try:
        with open_stream(file) as stream:
            return stream.read(limit + 1)
    except DamagedError as error:
        raise BadValueError("damaged_file", f"the file is damaged: {error}") from error
