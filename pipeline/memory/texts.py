"""The documents of a pretraining as tokens: which are long enough, and which are never trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.compression.tokens import Tokenising
from pipeline.holding_out import held_out
from pipeline.memory.windows import windows_of
from pipeline.models import LoadedModel
from pipeline.stages import Halt, Refusal
from schemas.document import Document
from schemas.memory import PretrainSpec

TOKENISED_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class Text:
    """A document, its tokens without special ones around them."""

    document: Document
    ids: NDArray[np.int32]


def tokenised(documents: Sequence[Document], loaded: LoadedModel, each: Callable[[], None]) -> Iterator[Text]:
    """In their order; ``each`` is called now and then, and may raise."""
    tokeniser = Tokenising(loaded.tokenizer)
    for first in range(0, len(documents), TOKENISED_AT_ONCE):
        each()
        some = documents[first : first + TOKENISED_AT_ONCE]
        found = tokeniser.tokenise([one.prompt for one in some])
        for document, tokens in zip(some, found, strict=True):
            yield Text(document, np.asarray(tokens.ids, np.int32))


def least_of(spec: PretrainSpec) -> int:
    """Tokens of the shortest text that some lesson can be learned from."""
    return min(min(windows_of(spec, one)) for one in spec.lessons)


def longest_of(spec: PretrainSpec) -> int:
    """Tokens in a row of the longest window that some lesson takes."""
    return max(max(windows_of(spec, one)) for one in spec.lessons)


def refusal(text: Text, spec: PretrainSpec) -> Refusal | None:
    """Why nothing can be learned from a text; None where something can."""
    if not text.document.prompt.strip():
        return Refusal("empty", "the text is empty or only whitespace; there is nothing to be learned from it")
    if len(text.ids) < (least := least_of(spec)):
        return Refusal(
            "too_short",
            f"the text has {len(text.ids)} tokens, and a lesson takes {least} that follow each other: give longer "
            "texts, or shorter lessons",
        )
    return None


def divide(texts: Sequence[Text], spec: PretrainSpec) -> tuple[list[Text], list[Text]]:
    """(trained on, held out). Held out are texts, by their hash, that have a whole span of the last lesson.

    Raises ``Halt`` where one side would be empty, or no text is left that is long enough for a lesson.
    """
    size = spec.lessons[-1].tokens
    held = held_out({one.document.content_hash for one in texts if len(one.ids) >= size}, spec.held_out)
    measured = [one for one in texts if one.document.content_hash in held and len(one.ids) >= size]
    trained = [one for one in texts if one.document.content_hash not in held]
    if not measured or not trained:
        raise Halt(
            f"pretrain: at least two different texts of {size} tokens are needed, one to learn from and one to measure "
            "by: give more or longer texts, or shorter lessons"
        )
    longest = max(len(one.ids) for one in trained)
    for one in spec.lessons:
        if (least := max(windows_of(spec, one))) > longest:
            raise Halt(
                f"pretrain: no text is long enough for a lesson of {one.tokens} tokens, which takes {least} in a row; "
                f"the longest that is not held out has {longest}: give longer texts, or shorter lessons"
            )
    return trained, measured
