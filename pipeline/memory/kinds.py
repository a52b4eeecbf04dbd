"""Kinds of text that an encoder is tried on: files of the user's own, and three that no text is like."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.accounting.wording import counted
from pipeline.compression.tokens import Tokenising
from pipeline.memory.corpus import Corpus
from pipeline.memory.spans import Ints
from pipeline.storage.readers import BadRow, InputError, read_corpus
from schemas.job import InputSpec

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

    def spans(self, rows: int, size: int, seed: int) -> Ints:
        """``rows`` spans ``[rows, size]``, the same for the same seed. Raises ``ValueError`` where no text is so
        long."""
        return (self.corpus.windows(np.random.default_rng([seed, size]), rows, size) + self.shift) % self.vocabulary


def kinds(files: Mapping[str, Sequence[str]], tokenizer: Any, vocabulary: int, seed: int) -> list[Kind]:
    """Those of ``files`` (name -> paths), then the generated ones. Raises ``InputError``."""
    tokeniser = Tokenising(tokenizer)

    def of(texts: Iterable[str]) -> Corpus:
        return Corpus.of(one.ids.astype(np.int32) for one in tokeniser.tokenise(list(texts)))

    found = [Kind(name, of(_texts(name, paths)), vocabulary) for name, paths in files.items()]
    random = np.random.default_rng(seed)
    numbers = " ".join(f"{one:.{places}f}" for one, places in zip(*_numbers(random), strict=True))
    ordinary = np.setdiff1d(np.arange(min(vocabulary, len(tokenizer))), tokenizer.all_special_ids)
    found.append(Kind("numbers", of([numbers]), vocabulary))
    if files:
        found.append(Kind("patterned", found[0].corpus, vocabulary, shift=1))
    return [*found, Kind("random", Corpus.of([random.choice(ordinary, NUMBERS)]), vocabulary)]


def _numbers(random: np.random.Generator) -> tuple[Any, Any]:
    """Of one to six digits before the point, and none to three behind it."""
    return 10 ** random.uniform(0, 6, NUMBERS), random.integers(0, 4, NUMBERS)


def _texts(name: str, paths: Sequence[str]) -> list[str]:
    rows = list(read_corpus(InputSpec(path=tuple(paths))))
    bad = [row for row in rows if isinstance(row, BadRow)]
    texts = [row.parts.render() for row in rows if not isinstance(row, BadRow)]
    if not texts:
        raise InputError(f"{name}: no row of {', '.join(paths)} is a text, the first: {bad[0].source}: {bad[0].reason}")
    if bad:
        which = f"{counted(len(bad), 'row')} of {len(rows):,}"
        log.warning("%s: %s left out, the first: %s: %s", name, which, bad[0].source, bad[0].reason)
    return texts
