"""What held-out questions are answered from slots, and, as yardsticks, from all of the text and from nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch

from pipeline.batching import run_packed
from pipeline.evaluation.answers import references
from pipeline.evaluation.metrics import token_f1
from pipeline.evaluation.overlap import Bleu
from pipeline.generation.ending import end_tokens
from pipeline.generation.prompts import PromptEncoder
from pipeline.memory.answers import Answer, Measured
from pipeline.memory.asking import asked
from pipeline.memory.autoencoder import Autoencoder
from pipeline.memory.beginning import is_half
from pipeline.memory.examples import Example
from pipeline.memory.measure import NAN, plainly
from pipeline.memory.plan import Numbers, Signs
from pipeline.memory.questions import Question, flat, prompts_of, repeated, slots_of_all
from pipeline.memory.ragged import pass_tokens
from pipeline.memory.saying import nats, written
from pipeline.models import LoadedModel
from pipeline.stages import Refusal
from schemas.memory import FinetuneSpec

Prompts = Callable[[list[int]], list[torch.Tensor]]
"""Numbers of examples -> what the decoder reads of each before it answers."""


class Answering:
    """Of ``held`` examples, cut as in the last lesson; the first ``spec.measured`` are written out, too."""

    def __init__(
        self, coder: Autoencoder, spec: FinetuneSpec, loaded: LoadedModel, encoder: PromptEncoder,
        held: Sequence[Example],
    ) -> None:  # fmt: skip
        self._coder, self._spec, self._loaded, self._held = coder, spec, loaded, held
        self._rows = [Question.of(one, spec.lessons[-1], repeated=True) for one in held]
        self._ends = sorted(end_tokens(loaded.model, loaded.tokenizer, ()))
        self._others = others(held)
        self._none, self._text = ([_run(encoder, one, whole) for one in held] for whole in (False, True))
        self._bleu = Bleu() if find_spec("sacrebleu") else None

    @property
    def work(self) -> tuple[int, int]:
        """Spans are repeated, and what is written out is read as well."""
        slots = sum(self._slotted) + self._reading(self._numbers(), self._slotted)
        texts = sum(self._reading(self._fitting(runs), self._widths(runs)) for runs in (self._none, self._text))
        return slots + texts, slots + sum(self._rows[number].width for number in self._others)

    def before(self, signs: Signs) -> list[Numbers]:
        """With both yardsticks."""
        with self._measuring():
            again, slots = self._from_slots(signs)
            none, text = (self._from_text(runs, signs) for runs in (self._none, self._text))
        unknown = [NAN] * len(self._held)
        return [Measured(*one).numbers() for one in zip(again, unknown, slots, none, text, strict=True)]

    def after(self, signs: Signs) -> list[Numbers]:
        """From slots alone, and from those of another context."""
        with self._measuring():
            again, slots = self._from_slots(signs)
            found = self._packed(
                [*self._others], self._slotted, lambda some: self._nats(self._mixed(some), some), signs
            )
        known = dict(zip(self._others, found, strict=True))
        other = [known.get(number, NAN) for number in self._numbers()]
        return [Measured(*one).numbers() for one in zip(again, other, slots, strict=True)]

    def _from_slots(self, signs: Signs) -> tuple[list[float], list[Answer]]:
        again = self._packed(self._numbers(), self._slotted, self._repeat, signs)
        return again, self._answers(self._numbers(), self._slotted, self._slots, signs)

    def sample(self) -> str:
        """The first of them."""
        with self._measuring():
            (came,) = self._said(self._slots([0]))
        parts, right = self._held[0].document.parts, references(self._held[0].document.answer or "")[0]
        return f"{parts.question or parts.instruction!r} is answered {came!r}; right is {right!r}"

    def _numbers(self) -> list[int]:
        return [*range(len(self._held))]

    @property
    def _slotted(self) -> list[int]:
        return [row.width for row in self._rows]

    def _reading(self, rows: Sequence[int], widths: Sequence[int]) -> int:
        """Tokens of answering these rows; ``widths`` are those of all."""
        out = (widths[number] + self._spec.max_new_tokens for number in self._written(rows))
        return sum(widths[number] for number in rows) + sum(out)

    def _written(self, rows: Sequence[int]) -> list[int]:
        return [number for number in rows if number < self._spec.measured]

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
        found = self._answers(fitting, self._widths(runs), partial(self._prompts, runs), signs)
        known = dict(zip(fitting, found, strict=True))
        return [known.get(number, Answer()) for number in self._numbers()]

    def _answers(self, rows: Sequence[int], widths: Sequence[int], prompts: Prompts, signs: Signs) -> list[Answer]:
        """Of these rows; ``widths`` are those of all."""
        said = self._packed(rows, widths, lambda some: self._nats(prompts(some), some), signs)
        out = self._written(rows)
        wider = [width + self._spec.max_new_tokens for width in widths]
        found = self._packed(out, wider, lambda some: self._scores(self._said(prompts(some)), some), signs)
        known = dict(zip(out, found, strict=True))
        return [Answer(nats, *known.get(number, ())) for number, nats in zip(rows, said, strict=True)]

    def _packed(
        self, rows: Sequence[int], widths: Sequence[int], work: Callable[[list[int]], Sequence[Any]], signs: Signs
    ) -> list[Any]:
        def some(numbers: list[int]) -> Sequence[Any]:
            signs.alive()
            found = work([rows[number] for number in numbers])
            signs.passed(sum(widths[rows[number]] for number in numbers))
            return found

        most = pass_tokens(self._spec.batch_tokens, self._loaded.device)
        return run_packed([widths[number] for number in rows], most, some)

    def _slots(self, numbers: list[int]) -> list[torch.Tensor]:
        some = [self._rows[number] for number in numbers]
        return prompts_of(self._coder, some, slots_of_all(self._coder, some))

    def _mixed(self, numbers: list[int]) -> list[torch.Tensor]:
        """What is asked, behind the slots of another context."""
        slots = slots_of_all(self._coder, [self._rows[self._others[number]] for number in numbers])
        return prompts_of(self._coder, [self._rows[number] for number in numbers], slots)

    def _prompts(self, runs: Sequence[list[int] | None], numbers: list[int]) -> list[torch.Tensor]:
        return [self._coder.prompt([runs[number] or []], []) for number in numbers]

    def _nats(self, prompts: list[torch.Tensor], numbers: list[int]) -> list[float]:
        answers = [self._held[number].answer for number in numbers]
        return [float(one.mean()) for one in nats(self._coder, prompts, answers)]

    def _repeat(self, numbers: list[int]) -> list[float]:
        rows = [self._rows[number] for number in numbers]
        slots = [flat(of) for of in slots_of_all(self._coder, rows)]
        spans = [flat(row.spans) for row in rows]
        found = iter(repeated(self._coder, flat(spans), flat(slots)))
        return [float(torch.cat([next(found) for _ in row]).mean()) for row in spans]

    def _said(self, prompts: list[torch.Tensor]) -> list[str]:
        found = written(self._coder, prompts, self._spec.max_new_tokens, self._ends)
        return [text.strip() for text in self._loaded.tokenizer.batch_decode(found, skip_special_tokens=True)]

    def _scores(self, said: list[str], numbers: list[int]) -> list[tuple[float, float]]:
        right = [references(self._held[number].document.answer or "") for number in numbers]
        return [
            (token_f1(came, known), self._bleu(came, known)[0] if self._bleu else NAN)
            for came, known in zip(said, right, strict=True)
        ]

    def _measuring(self) -> contextlib.AbstractContextManager[None]:
        return plainly(self._loaded.device, is_half(self._spec))


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
