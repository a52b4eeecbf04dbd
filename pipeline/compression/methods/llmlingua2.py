"""LLMLingua-2 (Pan et al., Findings of ACL 2024, arXiv 2403.12968) under a hard budget: keep what a classifier would.

An encoder trained on compressions that only delete says of each token how likely it is kept; a unit's score is the mean
over its tokens (the paper's word probability). The fit keeps the best units of the whole prompt, so there is one
threshold per document, where the authors' code has one per chunk. Parts are read one by one, as the paper's chunks are:
a context's scores do not depend on what stands beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipeline.compression.classifier import Classifier
from pipeline.compression.prompt import Part, Prompt
from pipeline.compression.registry import Passed, Ranking
from pipeline.compression.tokens import Tokenising
from pipeline.compression.widths import Tokens
from pipeline.models import ModelPool
from schemas.compress import LLMLingua2Spec

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]

LONG_TOKEN, PIECE = 64, 4
"""A token that names more characters than the first is taken as several of as many as the second, as words have."""

SHORT_TEXT = 2**13
"""Characters of texts that may well come again (demonstrations): their scores are remembered."""

REMEMBERED = 2**22
"""Tokens whose scores are remembered: 16 MiB."""


@dataclass(frozen=True, slots=True)
class ShortTokens(Tokenising):
    """Where WordPiece meets a word it does not know it gives one [UNK] for it, were it a megabyte long: cut up here.

    Units are runs of tokens, and one that long could only be kept or removed whole.
    """

    def tokenise(self, texts: Sequence[str]) -> list[Tokens]:
        """As in ``Tokenising``, but that no token names more than ``LONG_TOKEN`` characters."""
        return [self.scored(tokens) for tokens in Tokenising.tokenise(self, texts)]

    def scored(self, tokens: Tokens) -> Tokens:
        """The tokens, the long ones cut up."""
        return _shortened(tokens)


@dataclass(frozen=True, slots=True)
class LLMLingua2:
    """``known``: p(keep) of the tokens of short texts that were read before; few-shot corpora repeat them.

    Threads share it: a batch looks up what is known before it reads, as another may clear it meanwhile.
    """

    classifier: Classifier
    tokenising: Tokenising
    known: dict[str, Floats] = field(default_factory=dict)

    @classmethod
    def build(cls, spec: LLMLingua2Spec, models: ModelPool, target: Tokenising) -> LLMLingua2:
        """The method over its classifier."""
        del target
        loaded = models.token_classifier(spec.model, spec.dtype, spec.device)
        return cls(Classifier(loaded, spec.batch_tokens), ShortTokens(loaded.tokenizer))

    @property
    def abreast(self) -> int:
        """Enough to keep the device busy with short prompts, few enough for many batches: an encoder is so fast that
        most of the time is tokenising and fitting, and only batches overlap."""
        return max(64, self.classifier.batch_tokens // 512)

    def score(self, prompts: Sequence[Prompt], passed: Passed) -> list[Ranking]:
        """Mean p(keep) of every unit. A text that comes several times (documents at several rates) is read once."""
        texts = {part.text: part.ids for prompt in prompts for part in prompt.parts if not part.verbatim}
        found = {text: known for text in texts if (known := self.known.get(text)) is not None}
        new = {text: ids for text, ids in texts.items() if text not in found}
        found.update(zip(new, self.classifier.keep(list(new.values()), passed), strict=True))
        self._remember({text: found[text] for text in new if len(text) <= SHORT_TEXT})
        return [Ranking(np.concatenate([_margins(part, found) for part in prompt.parts])) for prompt in prompts]

    def _remember(self, found: dict[str, Floats]) -> None:
        if sum(map(len, self.known.copy().values())) + sum(map(len, found.values())) > REMEMBERED:
            self.known.clear()
        self.known.update(found)


def _margins(part: Part, found: dict[str, Floats]) -> NDArray[np.float64]:
    """The mean over the tokens of each unit."""
    if part.verbatim:
        return np.full(len(part.places), np.inf)
    scores = found[part.text].astype(np.float64)
    return np.add.reduceat(scores, part.first) / part.counts


def _shortened(tokens: Tokens) -> Tokens:
    lengths = tokens.spans[:, 1] - tokens.spans[:, 0]
    if not (lengths > LONG_TOKEN).any():
        return tokens
    counts = np.where(lengths > LONG_TOKEN, -(-lengths // PIECE), 1)
    number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    begins, ends = (np.repeat(tokens.spans[:, side], counts) for side in (0, 1))
    whole = np.repeat(counts == 1, counts)
    first = begins + number * PIECE
    spans = np.stack([first, np.where(whole, ends, np.minimum(first + PIECE, ends))], 1).astype(np.int32)
    return Tokens(np.repeat(tokens.ids, counts), spans)
