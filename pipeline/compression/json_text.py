"""JSON as a context: only string values are compressed, all else comes out byte for byte, so that it stays JSON.

Keys, numbers, literals, brackets and the white space between them are protected. An escape is one character: it is
never parted, and what it says decides where words end. Several values, one a line, are taken too (JSON lines).
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from pipeline.compression.marked import Marked, Own, UnmarkableError, place_of, spans_of
from pipeline.compression.protect import Protection

_TOKEN = re.compile(r'"(?:[^"\\]++|\\.)*+"|[{}\[\],:]')
"""In valid JSON: strings and structure. Numbers, literals and white space need no look."""

_CONSTANT = re.compile(r'"(?:[^"\\]++|\\.)*+"|NaN|-?Infinity')
"""In what Python takes for JSON: strings, and numbers that JSON does not have."""

_ESCAPE = re.compile(r"\\u[dD][89abAB]..\\u[dD][c-fC-F]..|\\u....|\\.")
_FILLER = "\u2060"  # joins the character before it: an escape reads as one character

Path = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class KeyRates:
    """Rates by key or dotted path, ``pairs[n]``: of the keys around a value the innermost that is named decides.

    A path is named by its end ("body", "items.body"), lists left out; of several names the longest decides. All values
    of one name share its rate. ``met`` are the names that decided something.
    """

    pairs: tuple[tuple[str, float], ...] = ()
    met: set[str] = field(default_factory=set, compare=False)

    @property
    def unmet(self) -> list[str]:
        """Names that decided nothing so far: misspelt, perhaps."""
        return [name for name, _ in self.pairs if name not in self.met]

    def find(self, path: Path) -> tuple[float, int] | None:
        """The rate and the region of a value whose keys, from the outermost, are ``path``."""
        names = {name: (rate, region) for region, (name, rate) in enumerate(self.pairs)}
        most = max((name.count(".") + 1 for name in names), default=0)
        for end in range(len(path), 0, -1):
            for begin in range(max(0, end - most), end):
                name = ".".join(path[begin:end])
                if name in names:
                    self.met.add(name)
                    return names[name]
        return None


@dataclass(frozen=True, slots=True)
class _Escape:
    """Characters from ``begin`` to ``end`` of the source that say one: ``char``."""

    begin: int
    end: int
    char: str


def json_marked(source: str, key_rates: KeyRates, protection: Protection) -> Marked:
    """``source`` with everything protected but its string values. Raises ``UnmarkableError`` where it is no JSON."""
    _check(source)
    free, kept, rates, escapes = [0], [], [], []
    known: dict[Path, tuple[float, int] | None] = {}
    for begin, end, path in _values(source):
        own = known[path] if path in known else known.setdefault(path, key_rates.find(path))
        escaped = _escapes(source, begin, end)
        halves = any("\ud800" <= one.char <= "\udfff" for one in escaped)  # one might meet its other half
        if begin == end or (own and own[0] == 1) or halves:
            continue
        free += [begin, end]
        rates += [Own(begin, end, *own)] if own else []
        kept += _kept(source, begin, end, escaped, protection) if protection.active else []
        escapes += escaped
    fixed = np.array([*free, len(source)]).reshape(-1, 2).tolist()
    rates += [Own(begin, end, 1.0, -1) for begin, end in fixed if end > begin]
    return Marked(
        source,
        protected=spans_of(fixed),
        kept=spans_of(kept),
        rates=tuple(sorted(rates, key=lambda own: own.begin)),
        reading=_reading(source, escapes) if escapes else None,
        atoms=np.array([(one.begin, one.end) for one in escapes], dtype=np.int64).reshape(-1, 2),
    )


def _escapes(source: str, begin: int, end: int) -> list[_Escape]:
    """The escapes inside a string."""
    if source.find("\\", begin, end) < 0:
        return []
    return [_Escape(*one.span(), _char(one[0])) for one in _ESCAPE.finditer(source, begin, end)]


@functools.lru_cache(4096)
def _char(escape: str) -> str:
    return str(json.loads(f'"{escape}"'))


def _reading(source: str, escapes: list[_Escape]) -> str:
    """``source`` with every escape read: its character, and fillers up to its length."""
    pieces = []
    done = 0
    for one in escapes:
        pieces += [source[done : one.begin], one.char, _FILLER * (one.end - one.begin - 1)]
        done = one.end
    return "".join([*pieces, source[done:]])


def _kept(source: str, begin: int, end: int, escapes: list[_Escape], protection: Protection) -> list[list[int]]:
    """What must stay of a string's inside: found in what it says, given as places in the source."""
    says, sizes, done = [], [], begin
    for one in [*escapes, _Escape(end, end, "")]:
        says += [source[done : one.begin], one.char]
        sizes += [1] * (one.begin - done) + [one.end - one.begin] * len(one.char)
        done = one.end
    places = begin + np.cumsum([0, *sizes])
    found: list[list[int]] = places[protection.spans("".join(says))].tolist()
    return found


def _check(source: str) -> None:
    """Raises ``UnmarkableError`` unless ``source`` is JSON, or a line of JSON after the other."""
    at, error = 0, _error(source)
    if error and error.msg == "Extra data":
        lines = source.split("\n")
        for line in lines:
            if line.strip() and (error := _error(line)):
                break
            at += len(line) + 1
        else:
            error = None
    if error:
        raise UnmarkableError(
            "not_json",
            f"{place_of(source, at + error.pos)}: this is no JSON ({error.msg}); mend it, or leave out "
            'structure = "json"',
        )


def _error(text: str) -> json.JSONDecodeError | None:
    constants: list[str] = []
    try:
        json.loads(text, parse_int=len, parse_constant=constants.append)  # numbers may have any number of digits
    except json.JSONDecodeError as error:
        return error
    except RecursionError:
        return json.JSONDecodeError("nested too deep", text, 0)
    if not constants:
        return None
    at = next(one.start() for one in _CONSTANT.finditer(text) if one[0] == constants[0])
    return json.JSONDecodeError(f"{constants[0]} is none of its numbers", text, at)


def _values(source: str) -> Iterator[tuple[int, int, Path]]:
    """The inside of every string value (from, to), and the keys it stands under."""
    keys: list[str | None] = []  # of every open bracket the key at hand; None in a list
    key_next = False
    for token in _TOKEN.finditer(source):
        match token[0][0]:
            case "{":
                keys.append("")
                key_next = True
            case "[":
                keys.append(None)
                key_next = False
            case "}" | "]":
                keys.pop()
                key_next = False
            case ",":
                key_next = bool(keys) and keys[-1] is not None
            case ":":
                key_next = False
            case _ if key_next:
                keys[-1] = json.loads(token[0])
            case _:
                yield token.start() + 1, token.end() - 1, tuple(key for key in keys if key is not None)
