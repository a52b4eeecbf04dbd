"""A corpus -> documents, as a stream: JSONL, Parquet, CSV and text files, packed or not, local or on s3.

Nothing is skipped in silence: what gives no document gives a ``BadRow`` that says where and why.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from types import ModuleType

from pipeline.storage.readers import csv, jsonl, parquet, text
from pipeline.storage.readers.base import BadRow, InputError, InputFile, RawDocument
from pipeline.storage.readers.decompress import REQUEST, open_raw
from pipeline.storage.readers.listing import Listing, check_unchanged, list_corpus
from pipeline.storage.readers.mapping import RowMapper
from schemas.job import InputSpec

__all__ = ["BadRow", "InputError", "InputFile", "RawDocument", "fingerprint", "list_files", "read_corpus"]

READERS: dict[str, ModuleType] = {"jsonl": jsonl, "parquet": parquet, "csv": csv, "text": text}
"""Format -> its module: ``check(file, mapper)`` refuses a file, ``read(file, mapper, limit)`` reads it."""


def list_files(spec: InputSpec) -> list[InputFile]:
    """The files of the corpus in reading order. Raises ``InputError`` where there is nothing to read."""
    return list_corpus(spec).files


def read_corpus(spec: InputSpec) -> Iterator[RawDocument | BadRow]:
    """All rows of the corpus, in the order of its files.

    Every file's kind and header is looked at before this returns, so that a wrong file fails a job before it begins:
    raises ``InputError`` for a path that does not exist, a folder without files, a file that is not what its name
    says, a CSV or Parquet file without the mapped columns; and while rows are read, for a file that cannot be read on
    or was changed meanwhile, and at the end for a corpus without a row.
    """
    listing = list_corpus(spec)
    mapper = RowMapper(spec.columns)
    for file in listing.files:
        READERS[file.format].check(file, mapper)
    return _rows(spec, listing, mapper)


def _rows(spec: InputSpec, listing: Listing, mapper: RowMapper) -> Iterator[RawDocument | BadRow]:
    rows = itertools.chain.from_iterable(_file_rows(file, mapper, spec.max_document_bytes) for file in listing.files)
    first = next(rows, None)
    if first is None:
        raise InputError(f"the corpus is empty: no row in {', '.join(file.name for file in listing.files[:5])}")
    yield from listing.skipped
    yield first
    yield from rows


def _file_rows(file: InputFile, mapper: RowMapper, limit: int) -> Iterator[RawDocument | BadRow]:
    yield from READERS[file.format].read(file, mapper, limit)
    check_unchanged(file)


def fingerprint(spec: InputSpec) -> str:
    """SHA-256 over the files' names below what the user named, in order, and their raw bytes; read as a stream."""
    whole = hashlib.sha256()
    for file in list_files(spec):
        content = hashlib.sha256()
        with open_raw(file) as stream:
            while piece := stream.read(REQUEST):
                content.update(piece)
        # A digest of fixed length behind a name that ends in NUL: no two corpora write the same bytes here.
        whole.update(file.key.encode() + b"\0" + content.digest())
    return whole.hexdigest()
