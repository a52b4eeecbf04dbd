"""What held-out questions are answered from slots, and, as yardsticks, from all of the text and from nothing."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from pipeline.evaluation.answers import references
from pipeline.generation.prompts import PromptEncoder
from pipeline.memory.answers import Answer, Measured
from pipeline.memory.asking import asked
from pipeline.memory.autoencoder import Autoencoder
from pipeline.memory.examples import Example
from pipeline.memory.measure import NAN
from pipeline.memory.plan import Numbers, Signs
from pipeline.memory.questions import Question, flat, prompts_of, repeated, slots_of_all
from pipeline.memory.replies import Replies
from pipeline.models import LoadedModel
from pipeline.stages import Refusal
from schemas.memory import FinetuneSpec


class Answering:
    """Of ``held`` examples, cut as in the last lesson; the first ``spec.measured`` are written out, too."""

    def __init__(
        self, coder: Autoencoder, spec: FinetuneSpec, loaded: LoadedModel, encoder: PromptEncoder,
        held: Sequence[Example],
    ) -> None:  # fmt: skip
        self._coder, self._spec, self._loaded, self._held = coder, spec, loaded, held
        self._rows = [Question.of(one, spec.lessons[-1], repeated=True) for one in held]
        self._replies = Replies(coder, spec, loaded, held)
        self._others = others(held)
        self._none, self._text = ([_run(encoder, one, whole) for one in held] for whole in (False, True))

    @property
    def work(self) -> tuple[int, int]:
        """Spans are repeated, and what is written out is read as well."""
        slots = sum(self._slotted) + self._replies.reading(self._numbers(), self._slotted)
        texts = sum(self._replies.reading(self._fitting(runs), self._widths(runs)) for runs in (self._none, self._text))
        return slots + texts, slots + sum(self._rows[number].width for number in self._others)

    def before(self, signs: Signs) -> list[Numbers]:
        """With both yardsticks."""
        with self._replies.measuring():
            again, slots = self._from_slots(signs)
            none, text = (self._from_text(runs, signs) for runs in (self._none, self._text))
        unknown = [NAN] * len(self._held)
        return [Measured(*one).numbers() for one in zip(again, unknown, slots, none, text, strict=True)]

    def after(self, signs: Signs) -> list[Numbers]:
        """From slots alone, and from those of another context."""
        with self._replies.measuring():
            again, slots = self._from_slots(signs)
            found = self._replies.packed(
                [*self._others], self._slotted, lambda some: self._replies.nats(self._mixed(some), some), signs
            )
        known = dict(zip(self._others, found, strict=True))
        other = [known.get(number, NAN) for number in self._numbers()]
        return [Measured(*one).numbers() for one in zip(again, other, slots, strict=True)]

    def _from_slots(self, signs: Signs) -> tuple[list[float], list[Answer]]:
        again = self._replies.packed(self._numbers(), self._slotted, self._repeat, signs)
        return again, self._replies.answers(self._numbers(), self._slotted, self._slots, signs)

    def sample(self) -> str:
        """The first of them."""
        with self._replies.measuring():
            (came,) = self._replies.said(self._slots([0]))
        parts, right = self._held[0].document.parts, references(self._held[0].document.answer or "")[0]
        return f"{parts.question or parts.instruction!r} is answered {came!r}; right is {right!r}"

    def _numbers(self) -> list[int]:
        return [*range(len(self._held))]

    @property
    def _slotted(self) -> list[int]:
        return [row.width for row in self._rows]

    def _widths(self, runs: Sequence[list[int] | None]) -> list[int]:
        return [len(run) + len(one.answer) if run else 0 for run, one in zip(runs, self._held, strict=True)]

    def _fitting(self, runs: Sequence[list[int] | None]) -> list[int]:
        """Rows whose prompt and answer the model takes."""
        rooms = [max(len(one.answer), self._spec.max_new_tokens) for one in self._held]
        return [
            number
            for number, (run, room) in enumerate(zip(runs, rooms, strict=True))
            if run and len(run) + room <= self._loaded.window
        ]

    def _from_text(self, runs: Sequence[list[int] | None], signs: Signs) -> list[Answer]:
        """Where the prompt fits."""
        fitting = self._fitting(runs)
        found = self._replies.answers(fitting, self._widths(runs), partial(self._prompts, runs), signs)
        known = dict(zip(fitting, found, strict=True))
        return [known.get(number, Answer()) for number in self._numbers()]

    def _slots(self, numbers: list[int]) -> list[torch.Tensor]:
        some = [self._rows[number] for number in numbers]
        return prompts_of(self._coder, some, slots_of_all(self._coder, some))

    def _mixed(self, numbers: list[int]) -> list[torch.Tensor]:
        """What is asked, behind the slots of another context."""
        slots = slots_of_all(self._coder, [self._rows[self._others[number]] for number in numbers])
        return prompts_of(self._coder, [self._rows[number] for number in numbers], slots)

    def _prompts(self, runs: Sequence[list[int] | None], numbers: list[int]) -> list[torch.Tensor]:
        return [self._coder.prompt([runs[number] or []], []) for number in numbers]

    def _repeat(self, numbers: list[int]) -> list[float]:
        rows = [self._rows[number] for number in numbers]
        slots = [flat(of) for of in slots_of_all(self._coder, rows)]
        spans = [flat(row.spans) for row in rows]
        found = iter(repeated(self._coder, flat(spans), flat(slots)))
        return [float(torch.cat([next(found) for _ in row]).mean()) for row in spans]


def others(held: Sequence[Example]) -> dict[int, int]:
    """The number of each example -> that of the next with as many contexts, and others; none where there is none."""
    found = {}
    for number, one in enumerate(held):
        later = (at % len(held) for at in range(number + 1, number + len(held)))
        alike = (at for at in later if len(held[at].contexts) == len(one.contexts))
        if (other := next((at for at in alike if held[at].context_hash != one.context_hash), None)) is not None:
            found[number] = other
    return found


def _run(encoder: PromptEncoder, one: Example, whole: bool) -> list[int] | None:
    """The question as a text's is asked, behind the ``whole`` text or without it; None where it cannot be."""
    parts = one.document.parts
    found = asked(encoder, [parts.instruction, *(parts.contexts if whole else ()), parts.question])
    return None if isinstance(found, Refusal) else found[0]
