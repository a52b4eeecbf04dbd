"""Instruction fine-tuning: questions are answered from the slots of their contexts (the paper, section 2.3)."""

from __future__ import annotations

import itertools
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch

from pipeline.memory.answering import Answering
from pipeline.memory.answers import Answer, Measured
from pipeline.memory.autoencoder import Autoencoder
from pipeline.memory.beginning import is_half
from pipeline.memory.examples import Example, divide, encoder_of, examples
from pipeline.memory.lessons import lesson
from pipeline.memory.plan import Numbers, known
from pipeline.memory.questions import Question, questions, share, slots_of_all, weights_of
from pipeline.memory.quickening import quicken
from pipeline.memory.rehearsing import Learned, Rehearsing, is_text
from pipeline.memory.replaying import RECORDERS
from pipeline.memory.sheets import Sheet, Sizes, packed, roomy, rounded, sheet, sizes_of
from pipeline.memory.windows import Batch
from pipeline.models import LoadedModel
from pipeline.models.encoders import Answers, Figures, Four
from pipeline.stages import Halt, Outcome, Refusal, Result
from schemas.document import Document
from schemas.job import digest
from schemas.memory import FinetuneSpec, Lesson

log = logging.getLogger(__name__)

SHOWN = 32
"""Examples whose slots show what an encoder's are like."""

LOOKED_AT = 400
"""Steps that tell how much room a step is given: half a second's work."""

TRIED = 4
"""Passes that are compiled, and set beside what they are without."""


class Finetuning:
    """On ``documents``; raises ``Halt`` where there are too few of use."""

    def __init__(
        self, spec: FinetuneSpec, documents: Sequence[Document], loaded: LoadedModel, alive: Callable[[], None]
    ) -> None:
        texts = spec.rehearsed
        self._again = Rehearsing(texts, spec.weight_of_texts, documents, loaded, alive) if texts else None
        rows = [one for one in documents if not (self._again and is_text(one))]
        found = [*zip(rows, examples(rows, spec, loaded, alive), strict=True)]
        self.examples = [one for _, one in found if isinstance(one, Example)]
        self.refused = {document.seq: one for document, one in found if isinstance(one, Refusal)}
        if not self.examples:
            raise Halt(f"finetune: {_nothing(list(self.refused.values()))}")
        if self._again:
            self.refused.update(self._again.refused)
        if self.refused:
            why = _counted(self.refused.values())
            log.info("finetune: %d of %d rows are left out (%s)", len(self.refused), len(documents), why)
        self.trained, self.held = divide(self.examples, spec)
        self._spec, self._loaded, self._alive = spec, loaded, alive
        self._rooms: dict[tuple[int, int], dict[Lesson, Sizes]] = {}
        # Of contexts, on average: asked for in every step.
        self._each = sum(one.tokens for one in self.trained) // len(self.trained)

    @property
    def corpus(self) -> list[str]:
        """Of contexts, questions and answers, then of texts."""
        texts = [one.document.content_hash for one in self._again.texts] if self._again else []
        return [digest([one.document.content_hash, one.document.answer]) for one in self.examples] + texts

    @property
    def less(self) -> str:
        """The remedy where memory ran out."""
        more = f", or rehearsal.tokens_per_step, {self._spec.rehearsal.tokens_per_step}" if self._spec.rehearsal else ""
        return f"batch_tokens is {self._spec.batch_tokens}: halve it{more}, or take shorter lessons"

    def slots(self, coder: Autoencoder) -> torch.Tensor:
        """Of the first examples, one by one: together they may be more than ``batch_tokens``."""
        rows = [Question.of(one, self._spec.lessons[0]) for one in self.trained[:SHOWN]]
        return torch.cat([one for row in rows for each in slots_of_all(coder, [row])[0] for one in each])

    def hasten(self, coder: Autoencoder) -> None:
        """Hardly two passes are of one shape: for any, then, as the first steps' longest and shortest are read."""
        ends = (one for step in range(TRIED) for one in _ends(self.sheets(step)))
        quicken(coder, list(itertools.islice(ends, TRIED)), is_half(self._spec), self._alive)

    def parts(self, step: int, rank: int = 0, world: int = 1) -> Sequence[Sheet | Batch]:
        """The step's questions, or a share of them, and of its texts."""
        batch = self._again.part(step, rank, world) if self._again else None
        return [*self.sheets(step, rank, world), *([batch] if batch else [])]

    def sheets(self, step: int, rank: int = 0, world: int = 1) -> list[Sheet]:
        """The questions alone, in as many passes of at most ``batch_tokens`` as they take."""
        rows = questions(self.trained, self._spec, step)
        mine, weights = share(rows, rank, world), weights_of(rows, self._spec)
        passes, encoder, device = packed(mine, self._spec.batch_tokens), self._spec.encoder, self._loaded.device
        sizes = [sizes_of(some) for some in passes]
        if len(passes) == 1 and device.type in RECORDERS:
            up = rounded(sizes[0], encoder, self._loaded.window)
            room = self._room(rank, world).get(lesson(self._spec, step), up)
            most = Sizes(*map(max, zip(up, room, strict=True)))
            sizes = [next((one for one in (most, up) if one.places <= self._spec.batch_tokens), sizes[0])]
        return [sheet(some, weights, size, encoder, device) for some, size in zip(passes, sizes, strict=True)]

    def _room(self, rank: int, world: int) -> dict[Lesson, Sizes]:
        """Of every lesson, for a share of a step: few shapes come up then. By ``LOOKED_AT`` steps of all."""
        if (rank, world) not in self._rooms:
            found: dict[Lesson, list[Sizes]] = {}
            for step in np.unique(np.linspace(0, self._spec.steps - 1, LOOKED_AT).astype(int)).tolist():
                rows = share(questions(self.trained, self._spec, step), rank, world)
                if len(packed(rows, self._spec.batch_tokens)) == 1:
                    found.setdefault(lesson(self._spec, step), []).append(sizes_of(rows))
            made = {one: roomy(some, self._spec.encoder, self._loaded.window) for one, some in found.items()}
            self._rooms[rank, world] = made
        return self._rooms[rank, world]

    def tokens(self, step: int) -> int:
        """As many in each step, about."""
        texts = self._spec.rehearsal.tokens_per_step if self._spec.rehearsal else 0
        return self._spec.rows_per_step * self._each + texts

    def measurer(self, coder: Autoencoder) -> Answering:
        """On what is asked about contexts that are held out."""
        return Answering(coder, self._spec, self._loaded, encoder_of(self._spec, self._loaded), self.held)

    def figures(self, before: Sequence[Numbers], after: Sequence[Numbers]) -> tuple[Figures, Answers]:
        """Means: nats over tokens, scores over what was written out."""
        was, now = ([Measured.of(one) for one in rows] for rows in (before, after))
        tokens = [one.tokens for one in self.held]
        repeat = tuple(_mean([one.repeat for one in rows], tokens) for rows in (was, now))
        last, nothing = self._spec.lessons[-1], (None, None)
        cut = last.tokens, last.slots, last.ratio
        spans = Figures(len(self.held), 0, *cut, (repeat[0], repeat[1]), nothing, nothing, nothing)
        four = [[one.none for one in was], [one.text for one in was], *([one.slots for one in of] for of in (was, now))]
        return spans, self._answers([one.other for one in now], four)

    def _answers(self, others: Sequence[float], four: Sequence[Sequence[Answer]]) -> Answers:
        said, written = [len(one.answer) for one in self.held], min(len(self.held), self._spec.measured)
        nats = _means([[one.nats for one in rows] for rows in four], said)
        token_f1 = _means([[one.token_f1 for one in rows] for rows in four])
        bleu4 = _means([[one.bleu4 for one in rows] for rows in four])
        return Answers(len(self.held), written, nats, token_f1, bleu4, _mean(others, said))

    def outcomes(self, before: Sequence[Numbers], after: Sequence[Numbers], seconds: float) -> dict[int, Outcome]:
        """With what was measured of those whose contexts are held out."""
        both = ((Measured.of(was), Measured.of(now)) for was, now in zip(before, after, strict=True))
        measured = dict(zip((one.document.seq for one in self.held), both, strict=True))
        last = self._spec.lessons[-1]
        asked = [
            Learned(one.document.seq, one.tokens, sum(map(sum, Question.of(one, last).slots)), len(one.answer),
                    one.document.seq in measured)
            for one in self.examples
        ]  # fmt: skip
        read = self._again.learned(last) if self._again else []
        each = seconds / sum(one.tokens for one in (*asked, *read))
        rows = [*((one, measured.get(one.seq, _UNKNOWN)) for one in asked), *((one, _UNKNOWN) for one in read)]
        return {
            one.seq: Result(
                {
                    "split": "held_out" if one.held else "train",
                    "tokens_context": one.tokens,
                    "tokens_slots": one.slots,
                    "tokens_answer": one.answer,
                    **_columns(*found),
                    "finetune_seconds": each * one.tokens,
                },
                one.tokens, one.slots, seconds=each * one.tokens, latency_seconds=seconds,
            )
            for one, found in rows
        }  # fmt: skip


def _nothing(refused: Sequence[Refusal]) -> str:
    """Why there is nothing to be answered."""
    if not refused:
        return "nothing is asked: all rows are texts alone, which are learned from beside questions"
    first = refused[0].reason
    return f"nothing can be learned from any of {len(refused)} rows ({_counted(refused)}): {first}"


def _counted(refused: Iterable[Refusal]) -> str:
    codes = Counter(one.code for one in refused)
    return ", ".join(f"{code} {number}" for code, number in codes.most_common())


def _ends(parts: Sequence[Sheet]) -> Sequence[Sheet]:
    """The first and the last, or the only one."""
    return parts[:: max(1, len(parts) - 1)]


_UNKNOWN = (Measured(math.nan, math.nan, Answer()),) * 2


def _columns(was: Measured, now: Measured) -> dict[str, float | None]:
    answers = {"none": was.none, "text": was.text, "before": was.slots, "after": now.slots}
    of_answers = {
        f"{name}_{when}": known(value)
        for when, one in answers.items()
        for name, value in zip(("nll", "token_f1", "bleu4"), one, strict=True)
    }
    others = {"nll_other": now.other, "repeat_nll_before": was.repeat, "repeat_nll_after": now.repeat}
    return {**of_answers, **{name: known(value) for name, value in others.items()}}


def _means(four: Sequence[Sequence[float]], weights: Sequence[int] | None = None) -> Four:
    none, text, before, after = (_mean(values, weights) for values in four)
    return none, text, before, after


def _mean(values: Sequence[float], weights: Sequence[int] | None = None) -> float | None:
    """Over those that are known; None where none is."""
    some = [
        (value, weight)
        for value, weight in zip(values, weights or [1] * len(values), strict=True)
        if not math.isnan(value)
    ]
    return sum(value * weight for value, weight in some) / sum(weight for _, weight in some) if some else None
