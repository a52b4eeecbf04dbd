"""A row of the input -> a document, by the job's column mapping."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from pipeline.storage.readers.base import BadValueError, RawDocument, shown
from schemas.document import PromptParts
from schemas.job import Columns

PARTS = ("instruction", "contexts", "question")
_NOTHING: tuple[Any, ...] = (None, "", [])
MAX_ID = 512
"""Characters of an id: every database indexes it, and PostgreSQL's index takes 2,704 bytes."""


class RowMapper:
    """Makes documents of rows. One per corpus; holds no state between rows."""

    def __init__(self, columns: Columns) -> None:
        self.id, self.answer = columns.id or "id", columns.answer or "answer"
        parts = tuple(getattr(columns, part) for part in PARTS)
        self.named, self.both = bool(columns.text or any(parts)), bool(columns.text and any(parts))
        self.text = columns.text if self.named else "text"
        self.parts: tuple[str | None, ...] = parts if self.named else PARTS
        of_text = columns.id, columns.text, (None if self.both else columns.answer)
        of_parts = columns.id, *parts, columns.answer
        self._of_text, self._of_parts = (tuple(filter(None, some)) for some in (of_text, of_parts))

    def required(self, names: Collection[str]) -> tuple[str, ...]:
        """The columns that a row which has something in these must have: those of a text, or those of parts."""
        if not self.named or (self.both and self.text not in names):
            return self._of_parts
        return self._of_text if self.text else self._of_parts

    def used(self, names: Collection[str]) -> list[str]:
        """The columns to read of those there are, each once."""
        prompt = [self.text] if self.text in names and not self.both else [self.text, *self.parts]
        wanted = dict.fromkeys([self.id, *prompt, self.answer])
        return [name for name in wanted if name is not None and name in names]

    def missing(self, names: Collection[str]) -> str | None:
        """Why rows of these columns cannot be read, or None."""
        lost = [name for name in self.required(names) if name not in names]
        if lost and self.both and self.text is not None and self.text not in names:
            lost.insert(0, self.text)
        there = ", ".join(shown(name)[1:-1] for name in sorted(names)[:20]) or "none"
        if lost:
            return f"no column {' and no column '.join(map(repr, lost))}; there are: {there}"
        if not self.named and self.text not in names and not any(part in names for part in PARTS):
            return (
                f"no column 'text', 'instruction', 'contexts' or 'question'; there are: {there}. "
                "Name the columns under [input.columns] of a job file, or by --column where a command has it"
            )
        return None

    def document(self, row: Mapping[str, Any], source: str) -> RawDocument:
        """The row as a document. Raises ``BadValueError`` (missing_column, text_and_parts, wrong_type, bad_id,
        invalid_text, empty)."""
        there = [name for name in row if row[name] not in _NOTHING] if self.both else row
        if any(name not in row for name in self.required(there)):
            raise BadValueError("missing_column", self.missing(there) or "")
        doc_id = _id(row.get(self.id), self.id)
        try:
            return RawDocument(doc_id, self._parts(row), _answer(row.get(self.answer), self.answer), source)
        except BadValueError as error:
            error.doc_id = doc_id
            raise

    def _parts(self, row: Mapping[str, Any]) -> PromptParts:
        if self.text is not None and self.text in row and not (self.both and row[self.text] in _NOTHING):
            if more := [name for name in self.parts if self.both and row.get(name or "") not in _NOTHING]:
                raise BadValueError(
                    "text_and_parts", f"columns {self.text!r} and {more[0]!r} both hold something: which is the prompt?"
                )
            text = _string(row[self.text], self.text)
            if text and not text.isspace():
                return PromptParts(contexts=(text,))
            raise BadValueError("empty", f"column {self.text!r} holds {'only white space' if text else 'no text'}")
        instruction, contexts, question = self.parts
        parts = PromptParts(
            "" if instruction is None else _string(row.get(instruction), instruction),
            () if contexts is None else _strings(row.get(contexts), contexts),
            "" if question is None else _string(row.get(question), question),
        )
        if not parts.render().strip():
            if reason := self.missing(row):
                raise BadValueError("missing_column", reason)
            raise BadValueError("empty", "instruction, contexts and question hold no text")
        return parts


def _string(value: Any, column: str) -> str:
    if type(value) is str:
        if value.isascii() or _encodes(value):
            return value
        raise BadValueError("invalid_text", f"column {column!r} holds half a surrogate pair, which is no text")
    if value is None:
        return ""
    raise BadValueError("wrong_type", f"column {column!r} is {_kind(value)} ({shown(value)}), not a string")


def _encodes(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _strings(value: Any, column: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        if value is None or type(value) is str:
            text = _string(value, column)
            return (text,) if text else ()
        raise BadValueError("wrong_type", f"column {column!r} is {_kind(value)} ({shown(value)}), not strings")
    for index, item in enumerate(value):
        if type(item) is not str:
            raise BadValueError("wrong_type", f"column {column!r}, item {index}: {_kind(item)}, not a string")
    return tuple(_string(item, column) for item in value)


def _id(value: Any, column: str) -> str | None:
    if value is None or value == "":
        return None
    if type(value) is int:
        value = str(value)
    if type(value) is not str:
        raise BadValueError(
            "wrong_type", f"id column {column!r} is {_kind(value)} ({shown(value)}), not a string or a whole number"
        )
    if len(value) > MAX_ID:
        raise BadValueError("bad_id", f"id column {column!r} has {len(value)} characters; at most {MAX_ID} are allowed")
    if "\0" in value or not _encodes(value):
        raise BadValueError("bad_id", f"id column {column!r} holds a character no database stores: {shown(value)}")
    return value


def _answer(value: Any, column: str) -> str | None:
    """One answer, or several right ones as a JSON list (``pipeline.evaluation.answers.references``)."""
    if value is None or value == []:
        return None
    if isinstance(value, list):
        return json.dumps(_strings(value, column), ensure_ascii=False)
    return str(value) if type(value) is int else _string(value, column)


def _kind(value: Any) -> str:
    """The JSON name of a value's type, as its author would call it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, int | float):
        return "a number"
    names = {"str": "a string", "list": "a list", "dict": "an object"}
    name = type(value).__name__
    return names.get(name, name)
