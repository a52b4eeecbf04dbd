"""JSON as a context: only string values are compressed, all else comes out byte for byte, so that it stays JSON.

Keys, numbers, literals, brackets and the white space between them are protected. An escape is one character: it is
never parted, and what it says decides where words end. Several values, one a line, are taken too (JSON lines).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pipeline.compression.marked import Ints, Marked, Own, UnmarkableError, place_of, spans_of
from pipeline.compression.protect import Protection

_TOKEN = re.compile(r'"(?:[^"\\]++|\\.)*+"|[{}\[\],:]')
"""In valid JSON: strings and structure. Numbers, literals and white space need no look."""

_ESCAPE = re.compile(r"\\u[dD][89abAB]..\\u[dD][c-fC-F]..|\\u....|\\.")
_FILLER = "\u2060"  # joins the character before it: an escape reads as one character
_LONE = re.compile("[\ud800-\udfff]")

Path = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class KeyRates:
    """Rates by key or dotted path, ``pairs[n]``: of the keys around a value the innermost that is named decides.

    A path is named by its end ("body", "items.body"), lists left out; of several names the longest decides. All values
    of one name share its rate.
    """

    pairs: tuple[tuple[str, float], ...] = ()

    def find(self, path: Path) -> tuple[float, int] | None:
        """The rate and the region of a value whose keys, from the outermost, are ``path``."""
        names = {name: (rate, region) for region, (name, rate) in enumerate(self.pairs)}
        most = max((name.count(".") + 1 for name in names), default=0)
        for end in range(len(path), 0, -1):
            for begin in range(max(0, end - most), end):
                if found := names.get(".".join(path[begin:end])):
                    return found
        return None


def json_marked(source: str, key_rates: KeyRates, protection: Protection) -> Marked:
    """``source`` with everything protected but its string values. Raises ``UnmarkableError`` where it is no JSON."""
    _check(source)
    free: list[tuple[int, int]] = []
    kept: list[list[int]] = []
    rates: list[Own] = []
    atoms: list[tuple[int, int]] = []
    reading: list[str] = []
    known: dict[Path, tuple[float, int] | None] = {}
    done = 0
    for begin, end, path in _values(source):
        says = source[begin:end]
        places = None
        if "\\" in says:
            says, places = _decoded(says, begin)
            if _LONE.search(says):  # half a surrogate pair might meet its other half
                continue
        if path not in known:
            known[path] = key_rates.find(path)
        own = known[path]
        if begin == end or (own and own[0] == 1):
            continue
        free.append((begin, end))
        if own:
            rates.append(Own(begin, end, *own))
        inner = protection.spans(says)
        kept += (inner + begin if places is None else places[inner]).tolist()
        if places is not None:
            sizes = np.diff(places)
            atoms += [
                (at, at + size) for at, size in zip(places[:-1].tolist(), sizes.tolist(), strict=True) if size > 1
            ]
            fillers = (char + _FILLER * (size - 1) for char, size in zip(says, sizes.tolist(), strict=True))
            reading += [source[done:begin], "".join(fillers)]
            done = end
    reading.append(source[done:])
    fixed = np.array([0, *(edge for span in free for edge in span), len(source)]).reshape(-1, 2)
    rates += [Own(begin, end, 1.0, -1) for begin, end in fixed.tolist() if end > begin]
    return Marked(
        source,
        protected=spans_of(fixed.tolist()),
        kept=spans_of(kept),
        rates=tuple(sorted(rates, key=lambda own: own.begin)),
        reading="".join(reading) if atoms else None,
        atoms=np.array(atoms, dtype=np.int64).reshape(-1, 2),
    )


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
    try:
        json.loads(text, parse_int=len)  # numbers may have any number of digits
    except json.JSONDecodeError as error:
        return error
    except RecursionError:
        return json.JSONDecodeError("nested too deep", text, 0)
    return None


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


def _decoded(raw: str, begin: int) -> tuple[str, Ints]:
    """What the inside of a string says, and where each of its characters begins in the source, and the last ends.

    ``begin``: where ``raw`` begins there.
    """
    says: list[str] = []
    sizes: list[int] = []
    done = 0
    for found in [*_ESCAPE.finditer(raw), None]:
        plain = raw[done : found.start() if found else len(raw)]
        says.append(plain)
        sizes += [1] * len(plain)
        if found:
            says.append(json.loads(f'"{found[0]}"'))
            sizes.append(len(found[0]))
            done = found.end()
    return "".join(says), begin + np.cumsum([0, *sizes])
