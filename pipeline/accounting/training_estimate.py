"""What a training of an encoder reads and writes: in its steps, in what is measured before and after them on what is
held out, and in the samples that it shows."""

from __future__ import annotations

from typing import NamedTuple

from pipeline.memory.stage import SAMPLES
from schemas.memory import EncoderTraining, FinetuneSpec, PretrainSpec, slots_of

LEARNING_PASSES = 3
"""A pass forward and backward takes about as long as three forward."""


class Work(NamedTuple):
    """Tokens that a model reads, and those that it writes one by one."""

    read: int
    write: int


def training_work(spec: EncoderTraining, documents: int, tokens: int) -> Work:
    """Over so many documents of so many tokens in all. A token that is learned from counts as often as it takes."""
    each = tokens // max(1, documents)
    if isinstance(spec, PretrainSpec):
        step, measured = spec.tokens_per_step, _repeating(spec, documents)
    else:
        assert isinstance(spec, FinetuneSpec)
        step, measured = spec.rows_per_step * each, answering_work(spec, documents, each)
        if spec.rehearsal:
            step += spec.rehearsal.tokens_per_step
    # What a step learns from is read, and then said or answered behind slots: twice as many tokens at most.
    return Work(2 * spec.steps * step * LEARNING_PASSES + measured.read, measured.write)


def _repeating(spec: PretrainSpec, documents: int) -> Work:
    """Spans of the last lesson, before and after: encoded and said, and encoded anew where they are written out."""
    held, written = _held(spec, documents)
    last = spec.lessons[-1]
    return Work(2 * (2 * held + written) * (last.tokens + last.slots), (2 * written + _shown(spec)) * last.tokens)


def answering_work(spec: FinetuneSpec, documents: int, each: int) -> Work:
    """Questions about contexts of ``each`` so many tokens. As ``memory.answering`` does:

    before, spans are encoded and repeated; questions are answered from slots (encoded anew), text and nothing; after,
    all that is done from slots is done again, and once more from the slots of other contexts. The first answers are
    written, too, which reads their prompts again.
    """
    held, written = _held(spec, documents)
    slots = slots_of(each, spec.lessons[-1].ratio) if each else 0
    read = held * (7 * (each + slots) + 3 * slots + each) + written * (2 * (each + slots) + 2 * slots + each)
    return Work(read, (4 * written + _shown(spec)) * spec.max_new_tokens)


def _held(spec: EncoderTraining, documents: int) -> tuple[int, int]:
    """How many are held out, and how many of them written out."""
    held = min(documents, max(1, round(spec.held_out * documents)))
    return held, min(held, spec.measured)


def _shown(spec: EncoderTraining) -> int:
    """Samples in the log."""
    return int(spec.steps // max(1, spec.steps // SAMPLES))
