"""A job file -> JobSpec: TOML, then ``CONTEXTMILL_JOB__*`` of the environment, then flags. Errors name the line."""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from schemas.align_file import AnsweringTarget
from schemas.compress import CompressSpec, Keep, compress_tag
from schemas.job import Columns, InputSpec, JobSpec, OutputSpec, TargetSpec
from schemas.memory import EncoderSpec, Lesson, Rehearsal
from schemas.reference import JsonKey, ReferenceOptions, ReferenceSpec
from schemas.stage import SPECS, GenerateSpec

ENVIRONMENT = "CONTEXTMILL_JOB__"
MAX_BYTES = 2**20

Places = dict[tuple[str, ...], str]
"""Keys -> the environment variable or flag that set what stands there."""

_TABLES: dict[str, type[BaseModel]] = {
    "input": InputSpec, "columns": Columns, "output": OutputSpec, "target": TargetSpec, "keep": Keep, **SPECS,
    "encoder": EncoderSpec, "lessons": Lesson, "rehearsal": Rehearsal,
    "targets": AnsweringTarget, "answers": GenerateSpec, "options": ReferenceOptions, "json_config": JsonKey,
}  # fmt: skip

Spec = TypeVar("Spec", bound=BaseModel)


class JobFileError(ValueError):
    """The job file cannot be used; one line for each thing wrong with it, with file and line."""


def load_job(path: Path, overrides: Iterable[str] = (), environment: Mapping[str, str] = os.environ) -> JobSpec:
    """Read ``path``; ``overrides`` are ``dotted.key=value`` and win over the environment, which wins over the file.

    In a dotted key a number counts stages: ``stages.0.rate=0.5``. Values are TOML, or else taken as plain strings; with
    nothing after the equals sign the key is taken away.
    Raises ``JobFileError``.
    """
    return load(path, JobSpec, overrides, environment)


def load(
    path: Path, spec: type[Spec], overrides: Iterable[str] = (), environment: Mapping[str, str] = os.environ
) -> Spec:
    """``load_job`` for a file of another kind."""
    text = _read(path)
    raw = _parse(path, text)
    said: Places = {}
    for name, value in sorted(environment.items()):
        if name.upper().startswith(ENVIRONMENT):
            _set(raw, said, name[len(ENVIRONMENT) :].lower().split("__"), value, name)
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise JobFileError(f"--set {override}: write it as key=value, for example stages.0.rate=0.5")
        _set(raw, said, key.strip().split("."), value, f"--set {key.strip()}")
    try:
        return spec.model_validate(raw)
    except ValidationError as error:
        entries = error.errors(include_url=False, include_context=False)
        places = [entry["loc"] for entry in entries]
        # A stage that is refused is also missing from the list of stages: the second complaint would mislead.
        told = [e for e in entries if e["type"] != "too_short" or not any(_within(p, e["loc"]) for p in places)]
        raise JobFileError("\n".join(_explain(path, text, said, entry, spec) for entry in told)) from None


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise JobFileError(f"{path}: {error.strerror}; give the path of a job file (TOML)") from error
    if len(data) > MAX_BYTES:
        raise JobFileError(f"{path}: over {MAX_BYTES} bytes; is this a job file?")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise JobFileError(f"{path}: not UTF-8 text (byte {error.start}); is this a job file?") from error


def _parse(path: Path, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits, and tables without end
        raise JobFileError(f"{path}: not valid TOML: {error}") from error


def _set(raw: dict[str, Any], said: Places, keys: list[str], value: str, who: str) -> None:
    """Set the value at ``keys``, and note in ``said`` who did: an error must not point at the file."""
    place: Any = raw
    try:
        for key in keys[:-1]:
            place = place[int(key)] if isinstance(place, list) else place.setdefault(key, {})
        last: Any = int(keys[-1]) if isinstance(place, list) else keys[-1]
        if value.strip():
            place[last] = _value(value)
        else:
            place.pop(last)
        said[tuple(keys)] = who
    except (ValueError, LookupError, AttributeError, TypeError) as error:
        raise JobFileError(f"{who}: the job file has no such place") from error


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text


def _within(place: tuple[Any, ...], outer: tuple[Any, ...]) -> bool:
    return len(place) > len(outer) and place[: len(outer)] == outer


_KINDS = sorted({get_args(spec.model_fields["kind"].annotation)[0] for spec in SPECS.values()})
_METHODS = sorted(tag for tag, spec in SPECS.items() if "method" in spec.model_fields and ":" not in tag)

PLAIN_WORDS = {
    "tuple_type": "must be a list",
    "model_type": "must be a table",
    "model_attributes_type": "must be a table",
    "union_tag_not_found": f"a stage says what it is: kind = one of {', '.join(_KINDS)}",
    "too_short": "must not be empty",
    "string_too_short": "must not be empty",
    "string_type": "must be text in quotes",
    "float_type": "must be a number, without quotes",
    "int_type": "must be a whole number, without quotes",
    "bool_type": "must be true or false, without quotes",
}


def _explain(path: Path, text: str, said: Places, error: Any, spec: type[BaseModel]) -> str:
    keys = [key for number, key in enumerate(error["loc"]) if not (number == 2 and key in SPECS)]
    unknown = error["type"] == "extra_forbidden"
    given = error.get("input")
    words = PLAIN_WORDS.get(error["type"])
    if error["loc"][2:] == ("llmlingua", "fidelity"):  # the other one has a spec of its own
        words = "must be 'paper' or 'reference'"
    if error["type"] == "union_tag_invalid":
        key, words = _unknown_kind(given)
        keys, given = [*keys, key], given[key]
    name = ".".join(map(str, keys)) or "job"
    where = _overridden(said, [str(key) for key in keys], unknown)
    if where is None:
        line = _line(text, keys)
        where = f"{path}:{line}" if line else str(path)
    named = where == f"--set {name}"
    if unknown:
        return f"{where}: unknown key{'' if named else f' {name}'}{_nearest(error['loc'], spec)}"
    if error["type"] == "missing":
        return f"{where}: {'it' if named else name} is missing"
    message = words or error["msg"].removeprefix("Value error, ")
    place = where if named else f"{where}: {name}"
    return f"{place}: {message.replace('Input should', 'must', 1)}{_not(name, given)}"


def _unknown_kind(stage: Mapping[str, Any]) -> tuple[str, str]:
    """Which key of a stage makes it one that nobody knows, and what it may be."""
    if stage["kind"] != "compress":
        return "kind", f"must be one of {', '.join(_KINDS)}"
    if compress_tag({"method": stage.get("method", "llmlingua")}) in SPECS:
        return "fidelity", 'must be "paper" with this method'
    return "method", f"must be one of {', '.join(_METHODS)}"


def _overridden(said: Places, keys: list[str], unknown: bool) -> str | None:
    """Who set the value at ``keys``, or made the table of that unknown name; None where it was the file."""
    for place, who in reversed(said.items()):  # the last one won
        if list(place) == keys[: len(place)] or (unknown and list(place[: len(keys)]) == keys):
            return who
    return None


def _not(name: str, given: Any) -> str:
    """What was given instead, as the job file writes it."""
    if not isinstance(given, str | int | float) or "url" in name:  # which may hold a password
        return ""
    shown = str(given).lower() if isinstance(given, bool) else repr(given)
    return f", not {shown}" if len(shown) <= 80 else ""


def _line(text: str, keys: list[Any]) -> int | None:
    """Where the file says ``keys``, or else the innermost table around them."""
    best, best_line = 0, None
    for line, place in _places(text):
        if len(place) > best and place == keys[: len(place)]:
            best, best_line = len(place), line
    return best_line


def _places(text: str) -> Iterator[tuple[int, list[Any]]]:
    """(line, key path) of each header and each key. A reader's view of TOML: good enough to point at a line."""
    table: list[Any] = []
    counts: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*(\[\[?)\s*([^\[\]]+?)\s*\]", line):
            name = header[2]
            if header[1] == "[[":
                counts[name] = counts.get(name, -1) + 1
            table = list(_numbered(name, counts))
            yield number, table
        elif key := re.match(r"\s*([\w.\"-]+)\s*=", line):
            yield number, [*table, *key[1].replace('"', "").split(".")]


def _numbered(name: str, counts: Mapping[str, int]) -> Iterator[Any]:
    """The keys of a table's header, with the number of the last table of each list on the way: ``stages.0.keep``."""
    parts = name.split(".")
    for end, part in enumerate(parts, 1):
        yield part
        if (outer := ".".join(parts[:end])) in counts:
            yield counts[outer]


def _nearest(place: tuple[Any, ...], spec: type[BaseModel]) -> str:
    tables = [_TABLES[key] for key in place[:-1] if key in _TABLES]
    known = list((tables[-1] if tables else spec).model_fields)
    if elsewhere := _elsewhere(place):
        return elsewhere
    close = difflib.get_close_matches(str(place[-1]), known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else f"; known here: {', '.join(known)}"


def _elsewhere(place: tuple[Any, ...]) -> str:
    """Where the unknown key of a compress stage is known: at another method, or under [stages.options]."""
    if len(place) != 4 or place[2] not in SPECS:
        return ""
    key, spec = str(place[3]), SPECS[place[2]]
    if issubclass(spec, ReferenceSpec):
        close = difflib.get_close_matches(key, ReferenceOptions.model_fields, n=1, cutoff=0.7)
        return f"; with fidelity = 'reference' it is {close[0]} under [stages.options]" if close else ""
    owners = [tag for tag, one in SPECS.items() if issubclass(one, CompressSpec) and key in one.model_fields]
    return f"; it is an option of {', '.join(owners)}" if owners and issubclass(spec, CompressSpec) else ""
