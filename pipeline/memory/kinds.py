"""Kinds of text that an encoder is tried on: files of the user's own, and three that no text is like."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from pipeline.accounting.wording import counted
from pipeline.compression.tokens import Tokenising
from pipeline.memory.corpus import Corpus
from pipeline.memory.spans import Ints
from pipeline.storage.readers import BadRow, InputError, read_corpus
from schemas.job import Columns, InputSpec

log = logging.getLogger(__name__)

GENERATED = ("numbers", "patterned", "random")
"""Decimal numbers; the tokens of a text, each the one after it in the vocabulary (the paper, table 3); any tokens."""

NUMBERS = 20_000


@dataclass(frozen=True, slots=True)
class Kind:
    """``corpus`` holds the tokens of its texts; each is ``shift`` further in a vocabulary of ``vocabulary``."""

    name: str
    corpus: Corpus
    vocabulary: int
    shift: int = 0

    def holds(self, size: int) -> bool:
        """Whether a text of it has so many tokens."""
        return bool(self.corpus.lengths.max(initial=0) >= size)

    def spans(self, rows: int, size: int, seed: int, starts: bool = False) -> Ints:
        """``rows`` spans ``[rows, size]``, the same for the same seed, from anywhere in its texts; or ``starts`` of
        texts, as many as are so long at most. Raises ``ValueError`` where none is."""
        random, starts = np.random.default_rng([seed, size]), starts and self.name not in GENERATED
        if starts:
            rows = min(rows, max(1, int((self.corpus.lengths >= size).sum())))
        return (self.corpus.windows(random, rows, size, float(starts)) + self.shift) % self.vocabulary


def names(files: Iterable[str]) -> list[str]:
    """Of all kinds that there are with ``files``, in their order: these, then the generated ones; patterned needs a
    text."""
    found = [*files]
    return [*found, *(name for name in GENERATED if found or name != "patterned")]


def kinds(
    files: Mapping[str, Sequence[str]],
    tokenizer: Any,
    vocabulary: int,
    seed: int,
    asked: Collection[str] | None = None,
    column: str | None = None,
) -> list[Kind]:
    """Those of ``files`` (name -> paths; texts are in ``column``), then the generated ones; of all these the ``asked``
    ones alone, where some are. A kind is the same whichever others are asked for. Raises ``InputError``."""
    tokeniser = Tokenising(tokenizer)
    random = np.random.default_rng(seed)
    numbers = _numbers(random)  # in any case: random tokens are drawn behind them

    def of(texts: Iterable[str]) -> Corpus:
        return Corpus.of(one.ids.astype(np.int32) for one in tokeniser.tokenise(list(texts)))

    @cache  # patterned tokens are those of the first file
    def corpus(name: str) -> Corpus:
        if name == "numbers":
            return of([" ".join(f"{one:.{places}f}" for one, places in zip(*numbers, strict=True))])
        if name == "patterned":
            return corpus(next(iter(files)))
        if name == "random":
            ordinary = np.setdiff1d(np.arange(min(vocabulary, len(tokenizer))), tokenizer.all_special_ids)
            return Corpus.of([random.choice(ordinary, NUMBERS)])
        return of(_texts(name, files[name], column))

    wanted = [name for name in names(files) if asked is None or name in asked]
    return [Kind(name, corpus(name), vocabulary, shift=int(name == "patterned")) for name in wanted]


def _numbers(random: np.random.Generator) -> tuple[Any, Any]:
    """Of one to six digits before the point, and none to three behind it."""
    return 10 ** random.uniform(0, 6, NUMBERS), random.integers(0, 4, NUMBERS)


def _texts(name: str, paths: Sequence[str], column: str | None) -> list[str]:
    rows = list(read_corpus(InputSpec(path=tuple(paths), columns=Columns(text=column))))
    bad = [row for row in rows if isinstance(row, BadRow)]
    texts = [row.parts.render() for row in rows if not isinstance(row, BadRow)]
    if not texts:
        raise InputError(f"{name}: no row of {', '.join(paths)} is a text, the first: {bad[0].source}: {bad[0].reason}")
    if bad:
        which = f"{counted(len(bad), 'row')} of {len(rows):,}"
        log.warning("%s: %s left out, the first: %s: %s", name, which, bad[0].source, bad[0].reason)
    return texts
