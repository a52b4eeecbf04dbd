"""(prompt, answer) pairs as tokens of the scoring model, and which of them are never trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.compression.tokens import Tokenising
from pipeline.generation.prompts import PromptEncoder
from pipeline.holding_out import held_out
from pipeline.models import LoadedModel, load_tokenizer
from pipeline.models.loading import UNLIMITED
from pipeline.stages import Halt, Refusal
from schemas.document import SEPARATOR, Document
from schemas.stage import GenerateSpec

Ints = NDArray[np.int64]

TOKENISED_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class Pair:
    """``ids``: the prompt, a start token (or its own first one) before it, and from place ``answer`` on the answer's
    tokens."""

    document: Document
    ids: Ints
    answer: int

    @property
    def answer_tokens(self) -> int:
        """Tokens that are learned, or measured."""
        return len(self.ids) - self.answer


def refusal(document: Document) -> Refusal | None:
    """Why a document is no pair; None for one that is."""
    if not document.prompt.strip():
        return Refusal("empty", "the prompt is empty or only whitespace; there is nothing that was answered")
    if not (document.answer or "").strip():
        return Refusal("no_answer", "there is no answer to learn from: name its column in input.columns.answer")
    return None


def tokenise(
    documents: Sequence[Document], loaded: LoadedModel, most: int, each: Callable[[], None] = lambda: None
) -> Iterator[Pair]:
    """The pair of each document, in at most ``most`` tokens: a longer prompt loses its beginning, an answer longer than
    that its end. The text is plain, without a chat template, since that is what a scorer reads.

    No token for the end of the answer: a scorer ends nothing, and answers cut by a limit have no end. ``each`` is
    called now and then, and may raise.
    """
    tokeniser = Tokenising(loaded.tokenizer)
    start = tokeniser.start_id()
    for first in range(0, len(documents), TOKENISED_AT_ONCE):
        each()
        some = documents[first : first + TOKENISED_AT_ONCE]
        found = tokeniser.tokenise([one.prompt + SEPARATOR for one in some] + [one.answer or "" for one in some])
        ids = [tokens.ids for tokens in found]
        for document, prompt, answer in zip(some, ids[: len(some)], ids[len(some) :], strict=True):
            yield _fitting(document, start, prompt, answer, most)


def framed(
    documents: Sequence[Document], target: str, answers: GenerateSpec, most: int,
    each: Callable[[], None] = lambda: None,
) -> Iterator[Pair]:  # fmt: skip
    """As ``tokenise``, but the prompt is what the model called ``target`` is sent by the stage ``answers``: in its own
    chat template, which other models of its vocabulary need not share. The answer ends as its text does: with the end
    token where that stands there. Raises ``Halt`` for a prompt that cannot be sent.
    """
    tokenizer = load_tokenizer(target)
    encoder = PromptEncoder(target, tokenizer, UNLIMITED, answers)
    for first in range(0, len(documents), TOKENISED_AT_ONCE):
        each()
        some = documents[first : first + TOKENISED_AT_ONCE]
        texts = [one.answer or "" for one in some]
        ids: Any = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        for document, prompt, answer in zip(some, encoder.encode([one.prompt for one in some]), ids, strict=True):
            if isinstance(prompt, Refusal):
                raise Halt(f"distill: document {document.id}: {prompt.reason}")
            yield _fitting(document, prompt[0], prompt[1:], answer, most)


def _fitting(
    document: Document, start: int, prompt: Sequence[int] | Ints, answer: Sequence[int] | Ints, most: int
) -> Pair:
    kept = answer[: most - 1]
    room = most - 1 - len(kept)
    before = prompt[len(prompt) - min(room, len(prompt)) :]
    return Pair(document, np.array([start, *before, *kept], dtype=np.int64), 1 + len(before))


def divide(pairs: Sequence[Pair], share: float) -> tuple[list[Pair], list[Pair]]:
    """(trained on, held out), by prompt: the answers of several targets to one prompt stay together."""
    held = held_out({pair.document.content_hash for pair in pairs}, share)
    kept = [pair for pair in pairs if pair.document.content_hash not in held]
    return kept, [pair for pair in pairs if pair.document.content_hash in held]
