"""The documents of a fine-tuning as tokens: contexts, what is asked about them, and what is to be answered."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.compression.tokens import Tokenising
from pipeline.evaluation.answers import references
from pipeline.generation.prompts import PromptEncoder
from pipeline.holding_out import held_out
from pipeline.memory.asking import SLOTS, answered, asked, end_of_turn
from pipeline.memory.spans import Ints, spans_of
from pipeline.models import LoadedModel
from pipeline.stages import Halt, Refusal
from schemas.document import Document, PromptParts
from schemas.memory import FinetuneSpec, Lesson, slots_of
from schemas.stage import GenerateSpec

TOKENISED_AT_ONCE = 64

_NOT_ASKED = (
    "nothing is asked about the context: name a column in [input.columns] question (a text alone, without an "
    "answer, is learned where the stage has a table rehearsal)"
)


@dataclass(frozen=True, slots=True)
class Example:
    """A document: the tokens of its ``contexts``, the ``runs`` around their slots, its ``answer`` and turn's end."""

    document: Document
    contexts: tuple[Ints, ...]
    runs: tuple[tuple[int, ...], ...]
    answer: tuple[int, ...]

    @property
    def context_hash(self) -> str:
        """Of what is encoded: all that is asked about a context is learned from, or none of it."""
        return PromptParts(contexts=self.document.parts.contexts).content_hash()

    @property
    def tokens(self) -> int:
        """Of the contexts."""
        return sum(map(len, self.contexts))

    def spans(self, lesson: Lesson, more: int = 0) -> list[list[Ints]]:
        """Of each context, as long as the lesson's at most; ``more`` of each than are needed."""
        return [spans_of(ids, lesson.tokens, more) for ids in self.contexts]

    def places(self, lesson: Lesson, more: int, room: int) -> int:
        """Those that the decoder takes: prompt, slots, tag, and the answer with this much ``room`` at least."""
        slots = sum(slots_of(len(one), lesson.ratio) for block in self.spans(lesson, more) for one in block)
        return sum(map(len, self.runs)) + slots + 1 + max(len(self.answer), room)


def encoder_of(spec: FinetuneSpec, loaded: LoadedModel) -> PromptEncoder:
    """What frames questions as a ``generate`` stage does."""
    asking = GenerateSpec(kind="generate", chat=spec.chat, system=spec.system, max_new_tokens=spec.max_new_tokens)
    return PromptEncoder(loaded.ref.name, loaded.tokenizer, loaded.window, asking)


def examples(
    documents: Sequence[Document], spec: FinetuneSpec, loaded: LoadedModel, each: Callable[[], None]
) -> Iterator[Example | Refusal]:
    """In their order, or why nothing can be learned from one; ``each`` is called now and then, and may raise."""
    reading = _Reading(spec, encoder_of(spec, loaded))
    for at, document in enumerate(documents):
        if at % TOKENISED_AT_ONCE == 0:
            each()
        yield _lacking(document) or reading.example(document)


def _lacking(document: Document) -> Refusal | None:
    parts = document.parts
    if not any(one.strip() for one in (parts.instruction, *parts.contexts, parts.question)):
        return Refusal("empty", "the row is empty or only whitespace; there is nothing to be learned from it")
    if not any(one.strip() for one in parts.contexts):
        return Refusal("no_context", "the row has no context to encode: name its column in [input.columns] contexts")
    if not (parts.question.strip() or parts.instruction.strip()):
        return Refusal("no_question", _NOT_ASKED)
    if document.answer is None or not references(document.answer)[0].strip():
        return Refusal("no_reference", "the row has no answer to learn: name its column in [input.columns] answer")
    return None


class _Reading:
    """What many rows share is made once: the end of a turn, and the tokens of a context, as encoding reads it."""

    def __init__(self, spec: FinetuneSpec, encoder: PromptEncoder) -> None:
        self._spec, self._encoder, self._end = spec, encoder, end_of_turn(encoder)
        self._contexts: dict[str, Ints] = {}
        self._tokeniser = Tokenising(encoder.tokenizer)

    def example(self, document: Document) -> Example | Refusal:
        """Of a document that lacks nothing."""
        parts, answer = document.parts, references(document.answer or "")[0]
        texts = [one for one in parts.contexts if one.strip()]
        runs = asked(self._encoder, [parts.instruction, *[SLOTS] * len(texts), parts.question])
        if isinstance(runs, Refusal):
            return runs
        contexts = tuple(map(self._ids, texts))
        if not all(map(len, contexts)):
            return Refusal("empty", f"the tokenizer of {self._encoder.name} makes no token of a context")
        said = tuple(answered(self._encoder, answer, self._end))
        found = Example(document, contexts, tuple(map(tuple, runs)), said)
        return _too_long(found, self._spec, self._encoder) or found

    def _ids(self, text: str) -> Ints:
        if text not in self._contexts:
            (tokens,) = self._tokeniser.tokenise([text])
            self._contexts[text] = tokens.ids.astype(np.int64)
        return self._contexts[text]


def _too_long(one: Example, spec: FinetuneSpec, encoder: PromptEncoder) -> Refusal | None:
    for lesson in spec.lessons:
        spans = sum(map(len, one.spans(lesson)))
        if spans > spec.most_spans:
            return Refusal(
                "too_long",
                f"the contexts have {one.tokens} tokens, {spans} spans of {lesson.tokens}, and {spec.most_spans} are "
                "read at most: raise most_spans, or cut them",
            )
        if (places := one.places(lesson, 1 if spec.multi_span else 0, spec.max_new_tokens)) > encoder.window:
            return Refusal(
                "too_long",
                f"{one.tokens} tokens of context take {places} places with question and answer, and {encoder.name} "
                f"reads {encoder.window} at most: cut them, or raise the ratio",
            )
    return None


def divide(found: Sequence[Example], spec: FinetuneSpec) -> tuple[list[Example], list[Example]]:
    """(trained on, held out), by contexts. Raises ``Halt`` where one side would be empty."""
    held = held_out({one.context_hash for one in found}, spec.held_out)
    measured = [one for one in found if one.context_hash in held]
    trained = [one for one in found if one.context_hash not in held]
    if not measured or not trained:
        raise Halt(
            "finetune: at least two different contexts are needed, one to learn from and one to measure by: give more"
        )
    return trained, measured
