"""Outputs of the llmlingua library, and whether a text of ours is one."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from schemas.document import PromptParts
from schemas.reference import ReferenceOptions


@dataclass(frozen=True, slots=True)
class Case:
    """One call of the library: its prompt and options, and the text or object it returned, or that text's sha256.

    Neither: the library raised. ``refused``: why our options cannot say what the call's are.
    """

    id: str
    family: str
    parts: PromptParts
    options: ReferenceOptions
    expected: str | dict[str, Any] | None
    sha256: str | None
    refused: str = ""

    @property
    def crashed(self) -> bool:
        """Whether there is no output to compare with."""
        return self.expected is None and self.sha256 is None


def read_cases(path: Path) -> list[Case]:
    """The cases of a file; ends the program where it cannot be read, with the number of the line that cannot."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise SystemExit(f"error: {path} cannot be read: {error}") from None
    return [_case_of(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]


def _case_of(path: Path, number: int, line: str) -> Case:
    try:
        return _case(json.loads(line))
    except KeyError as error:
        raise SystemExit(f"error: {path}, line {number}: a case needs {error}") from None
    except (ValueError, TypeError, AttributeError, ValidationError) as error:
        raise SystemExit(f"error: {path}, line {number}: {type(error).__name__}: {error}") from None


def _case(row: dict[str, Any]) -> Case:
    expected = row.get("expected")
    said = expected if isinstance(expected, dict) else {}
    context = row["context"]
    contexts = (context,) if isinstance(context, str) else tuple(context)
    options, refused = _options(row.get("kwargs") or {})
    return Case(
        str(row["id"]), str(row["family"]),
        PromptParts(row.get("instruction") or "", contexts, row.get("question") or ""),
        options,
        said.get("compressed_prompt", row.get("compressed_prompt")),
        said.get("compressed_prompt_sha256", row.get("compressed_prompt_sha256")), refused,
    )  # fmt: skip


def _options(said: dict[str, Any]) -> tuple[ReferenceOptions, str]:
    """Those of a call; where they are none of ours, the default ones and why."""
    try:
        return ReferenceOptions.model_validate(said), ""
    except ValidationError as error:
        wrong = error.errors()[0]
        return ReferenceOptions(), f"{'.'.join(map(str, wrong['loc'])) or 'options'}: {wrong['msg']}"


def same(case: Case, text: str) -> bool:
    """Whether ``text`` is the library's output. An object of compress_json is compared as one, however written."""
    if case.options.json_config is None:
        return text == case.expected if case.expected is not None else _digest(text) == case.sha256
    try:
        value = json.loads(text)
    except ValueError:
        return False
    if case.expected is not None:
        return bool(value == (json.loads(case.expected) if isinstance(case.expected, str) else case.expected))
    return case.sha256 in {_digest(written) for written in _written(value)}


def _written(value: Any) -> list[str]:
    """The ways in which an object is usually put down."""
    flags = [(plain, ordered) for plain in (True, False) for ordered in (True, False)]
    ways: list[tuple[tuple[str, str] | None, int | None]] = [(None, None), ((",", ":"), None), (None, 2)]
    return [str(value)] + [
        json.dumps(value, ensure_ascii=plain, sort_keys=ordered, separators=separators, indent=indent)
        for plain, ordered in flags
        for separators, indent in ways
    ]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
