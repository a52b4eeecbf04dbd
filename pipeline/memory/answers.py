"""What is measured of an answer, from slots and by its yardsticks."""

from __future__ import annotations

from typing import NamedTuple

from pipeline.memory.measure import NAN
from pipeline.memory.plan import Numbers


class Answer(NamedTuple):
    """Nats a token of the right answer; of the one written out greedily, token F1 and BLEU-4 (NaN without sacrebleu).
    NaN where it was not written out; all where the prompt is too long to be read."""

    nats: float = NAN
    token_f1: float = NAN
    bleu4: float = NAN


class Measured(NamedTuple):
    """Of an example: nats a token of repeating its spans from their slots, and of its answer from the slots of another
    context (only after the training); its answers from slots, without the context, and behind all of its text (the
    last two only before)."""

    repeat: float
    other: float
    slots: Answer
    none: Answer = Answer()
    text: Answer = Answer()

    def numbers(self) -> Numbers:
        """In a row."""
        return (self.repeat, self.other, *self.slots, *self.none, *self.text)

    @classmethod
    def of(cls, numbers: Numbers) -> Measured:
        """What ``numbers`` gave."""
        return cls(numbers[0], numbers[1], Answer(*numbers[2:5]), Answer(*numbers[5:8]), Answer(*numbers[8:]))
