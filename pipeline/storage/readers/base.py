"""What every reader takes and gives: input files, documents as they were read, and rows that were not to be read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pyarrow import fs

from schemas.document import PromptParts

Format = Literal["jsonl", "parquet", "csv", "text"]
Compression = Literal["gzip", "zstd"]


class InputError(ValueError):
    """The corpus as a whole cannot be read; the message names the file and what would help. A bad row is a BadRow."""


class BadValueError(Exception):
    """Inside a reader: this row gives no document. Becomes a ``BadRow`` where the row's place is known."""

    def __init__(self, code: str, reason: str, doc_id: str | None = None) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason
        self.doc_id = doc_id


class DamagedError(Exception):
    """Inside a reader: a compressed file that ends too early or cannot be unpacked any further."""


@dataclass(frozen=True, slots=True)
class RawDocument:
    """A row as it was read. ``id`` is None where the row gave none; ``source`` is unique: ``file:line`` or ``file``."""

    id: str | None
    parts: PromptParts
    answer: str | None
    source: str


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that gave no document: ``code`` is short and stable (docs/input.md lists them), ``reason`` a sentence."""

    source: str
    code: str
    reason: str
    doc_id: str | None = None


@dataclass(frozen=True, slots=True)
class InputFile:
    """One file of the corpus.

    ``path`` is for ``fs``; ``name`` is what the user would call it and begins every ``source``; ``key`` is its path
    below what the user named, the same wherever the corpus lies. ``bytes`` and ``modified`` (nanoseconds since the
    epoch) are those of the moment when the corpus was listed.
    """

    fs: fs.FileSystem
    path: str
    name: str
    key: str
    format: Format
    compression: Compression | None
    bytes: int
    modified: int


def shown(value: object) -> str:
    """``value`` for an error text: on one line, printable, no longer than 60 characters."""
    text = repr(value)  # escapes control characters and half surrogates, keeps every script readable
    return text if len(text) <= 60 else f"{text[:57]}..."


def not_utf8(error: UnicodeDecodeError, where: str) -> BadValueError:
    """The refusal of bytes that are no UTF-8."""
    what = f"byte {error.start + 1} of {where} is not UTF-8 ({error.reason})"
    return BadValueError("invalid_utf8", f"{what}: convert the file, for example with iconv -f CP1252 -t UTF-8")
