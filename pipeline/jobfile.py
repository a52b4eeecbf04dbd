"""A job file -> JobSpec: TOML, then ``CONTEXTMILL_JOB__*`` of the environment, then flags. Errors name the line."""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from schemas.job import Columns, InputSpec, JobSpec, OutputSpec, TargetSpec
from schemas.stage import CompressSpec, CopySpec, GenerateSpec

ENVIRONMENT = "CONTEXTMILL_JOB__"
MAX_BYTES = 2**20

_TABLES: dict[str, type[BaseModel]] = {
    "input": InputSpec, "columns": Columns, "output": OutputSpec, "target": TargetSpec,
    "compress": CompressSpec, "generate": GenerateSpec, "copy": CopySpec,
}  # fmt: skip


class JobFileError(ValueError):
    """The job file cannot be used; one line for each thing wrong with it, with file and line."""


def load_job(path: Path, overrides: Iterable[str] = (), environment: Mapping[str, str] = os.environ) -> JobSpec:
    """Read ``path``; ``overrides`` are ``dotted.key=value`` and win over the environment, which wins over the file.

    In a dotted key a number counts stages: ``stages.0.rate=0.5``. Values are TOML, or else taken as plain strings.
    Raises ``JobFileError``.
    """
    text = _read(path)
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise JobFileError(f"{path}: not valid TOML: {error}") from error
    for key, value in sorted(environment.items()):
        if key.upper().startswith(ENVIRONMENT):
            _set(raw, key[len(ENVIRONMENT) :].lower().split("__"), value, key)
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise JobFileError(f"--set {override}: write it as key=value, for example stages.0.rate=0.5")
        _set(raw, key.strip().split("."), value, f"--set {override}")
    try:
        return JobSpec.model_validate(raw)
    except ValidationError as error:
        lines = [_explain(path, text, raw, entry) for entry in error.errors(include_url=False, include_context=False)]
        raise JobFileError("\n".join(lines)) from None


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise JobFileError(f"{path}: {error.strerror}") from error
    if len(data) > MAX_BYTES:
        raise JobFileError(f"{path}: over {MAX_BYTES} bytes; is this a job file?")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise JobFileError(f"{path}: not UTF-8 text (byte {error.start}); is this a job file?") from error


def _set(raw: dict[str, Any], keys: list[str], value: str, said: str) -> None:
    place: Any = raw
    try:
        for key in keys[:-1]:
            place = place[int(key)] if isinstance(place, list) else place.setdefault(key, {})
        last = keys[-1]
        if isinstance(place, list):
            place[int(last)] = _value(value)
        else:
            place[last] = _value(value)
    except (ValueError, IndexError, AttributeError, TypeError) as error:
        raise JobFileError(f"{said}: the job file has no such place") from error


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _explain(path: Path, text: str, raw: dict[str, Any], error: Any) -> str:
    keys = [key for key in error["loc"] if not (isinstance(key, str) and key in ("compress", "generate", "copy"))]
    name = ".".join(map(str, keys)) or "job"
    where = f"{path}:{_line(text, str(keys[-1]))}" if keys and _line(text, str(keys[-1])) else str(path)
    if error["type"] == "extra_forbidden":
        return f"{where}: unknown key {name}{_nearest(error['loc'])}"
    if error["type"] == "missing":
        return f"{path}: {name} is missing"
    message = error["msg"].removeprefix("Value error, ")
    given = error.get("input")
    secret = "url" in name  # may hold a password
    shown = f", not {given!r}" if isinstance(given, str | int | float) and not secret else ""
    return f"{where}: {name}: {message}{shown}"


def _line(text: str, key: str) -> int | None:
    pattern = re.compile(rf"^\s*(\[+.*\b)?{re.escape(key)}\b")
    return next((number for number, line in enumerate(text.splitlines(), 1) if pattern.match(line)), None)


def _nearest(place: tuple[Any, ...]) -> str:
    tables = [_TABLES[key] for key in place[:-1] if key in _TABLES]
    known = list((tables[-1] if tables else JobSpec).model_fields)
    close = difflib.get_close_matches(str(place[-1]), known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else f"; known here: {', '.join(known)}"
