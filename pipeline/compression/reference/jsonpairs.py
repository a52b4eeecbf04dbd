"""compress_json: an object becomes tagged contexts, one a pair, and what is left of them an object again."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from pipeline.compression.reference.crash import Crash
from schemas.reference import JsonKey

_NEXT = "</llmlingua><llmlingua, compress=False>"
_WHOLE = "<llmlingua, compress=False>"
_TRUE, _FALSE = ("True", "true", "TRUE", True), ("False", "false", "FALSE", False)


def load(text: str, keys: Mapping[str, JsonKey]) -> dict[str, Any]:
    """The object in ``text``, whose keys are those of the configuration. Raises ``Crash`` for anything else."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise Crash(f"no valid JSON ({error})") from None
    if not isinstance(value, dict) or not value or set(value) != set(keys):
        raise Crash("the object's keys are not those of json_config")
    return value


def tagged(value: Mapping[str, Any], keys: Mapping[str, JsonKey]) -> tuple[list[str], tuple[int, ...]]:
    """The contexts: the opening brace, one pair each, the closing brace; and which of them must stay."""
    pairs = [_pair(name, one, keys[name]) for name, one in value.items()]
    pairs[-1] = pairs[-1].removesuffix(", </llmlingua>") + "</llmlingua>"
    forced = [place + 1 for place, name in enumerate(value) if not keys[name].pair_remove]
    whole = [f"{_WHOLE}{brace}</llmlingua>" for brace in "{}"]
    return [whole[0], *pairs, whole[1]], (0, *forced, len(pairs) + 1)


def restored(text: str) -> dict[str, Any]:
    """The object that compressed contexts make up; white space and repetition go after every comma, in values, too."""
    try:
        value = json.loads(re.sub(",+", ",", re.sub(r",\s*", ",", text)))
    except ValueError as error:
        raise Crash(f"what is left is no JSON ({error})") from None
    if not isinstance(value, dict):
        raise Crash("what is left is no JSON object")
    return value


def _pair(name: str, value: Any, key: JsonKey) -> str:
    rate = key.rate if key.compress else 1
    if rate == 1:
        return f"{_WHOLE}{_inner(name, value)}, </llmlingua>"
    try:
        return f"{_WHOLE}{_body(name, value, key.value_type, rate)}, </llmlingua>"
    except (TypeError, ValueError, AttributeError) as error:
        raise Crash(f"{name}: no {key.value_type} ({error})") from None


def _body(name: str, value: Any, kind: str, rate: float) -> str:
    if kind in ("str", "string"):
        return _inner(name, _open(value, rate))
    if kind in ("bool", "boolean"):
        if value not in _TRUE and value not in _FALSE:
            raise ValueError("neither true nor false")
        return _inner(name, _open("true" if value in _TRUE else "false", rate))
    if kind in ("int", "integer", "float", "number"):
        return f'"{name}": {_open(int(value) if kind.startswith("int") else float(value), rate)}'
    if kind in ("dict", "dictionary"):
        items = [f"{inner}: {one}" for inner, one in value.items()]
    else:
        items = [str(one) for one in value]
    begin, end = "()" if kind == "tuple" else "[]"
    return f'"{name}": {begin}"' + '", "'.join(_open(item, rate) for item in items) + f'"{end}'


def _open(value: object, rate: float) -> str:
    """A value that may be compressed, in the middle of text that may not."""
    return f"</llmlingua><llmlingua, rate={rate}>{value}{_NEXT}"


def _inner(name: str, value: object) -> str:
    """The pair as JSON writes it, without braces."""
    return json.dumps({name: value})[1:-1]
