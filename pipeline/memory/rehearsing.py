"""What a fine-tuning goes on to learn from texts that nothing is asked about: to repeat spans of them, and to go on, as
in pretraining, so that neither is forgotten (Robins, Catastrophic forgetting, rehearsal and pseudorehearsal, 1995).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipeline.accounting.wording import counted
from pipeline.holding_out import is_held_out
from pipeline.memory.corpus import Corpus
from pipeline.memory.spans import spans_of
from pipeline.memory.texts import longest_of, refusal, tokenised
from pipeline.memory.windows import Batch, batch_of
from pipeline.models import LoadedModel
from pipeline.stages import Halt, Refusal
from schemas.document import Document
from schemas.memory import Lesson, PretrainSpec, slots_of


def is_text(document: Document) -> bool:
    """Whether a row is a text alone: nothing is asked about it, and nothing is to be answered."""
    parts = document.parts
    return not any(one.strip() for one in (parts.instruction, parts.question, document.answer or ""))


@dataclass(frozen=True, slots=True)
class Learned:
    """A row that was learned from, or ``held`` out: tokens of its context or text, slots of these, tokens of its
    answer."""

    seq: int
    tokens: int
    slots: int
    answer: int
    held: bool


class Rehearsing:
    """Of the texts among ``documents``, as ``spec`` says; their loss counts ``weight`` times. Raises ``Halt`` where
    there are none, or all are too short."""

    def __init__(
        self, spec: PretrainSpec, weight: float, documents: Sequence[Document], loaded: LoadedModel,
        alive: Callable[[], None],
    ) -> None:  # fmt: skip
        self._spec, self._weight, self._device = spec, weight, loaded.device
        found = list(tokenised([one for one in documents if is_text(one)], loaded, alive))
        self.refused: dict[int, Refusal] = {one.document.seq: why for one in found if (why := refusal(one, spec))}
        self.texts = [one for one in found if one.document.seq not in self.refused]
        # By their hash, as in a pretraining that holds out as many or fewer.
        self.held = {one.document.seq for one in self.texts if is_held_out(one.document.content_hash, spec.held_out)}
        trained = [one for one in self.texts if one.document.seq not in self.held]
        needed, longest = longest_of(spec), max((len(one.ids) for one in trained), default=0)
        if longest < needed:
            raise Halt(
                f"finetune: rehearsal: its lessons take {needed} tokens of a text in a row, and the longest of "
                f"{counted(len(trained), 'text')} has {longest} ({len(self.held)} more are held out, "
                f"{len(self.refused)} too short): add rows that are texts alone, as those of the pretraining, give "
                "shorter lessons, or leave the table out"
            )
        self._corpus = Corpus.of(one.ids for one in trained)

    def learned(self, lesson: Lesson) -> list[Learned]:
        """Of each text, in spans as long as this lesson's."""
        found = []
        for one in self.texts:
            slots = sum(slots_of(len(ids), lesson.ratio) for ids in spans_of(one.ids.astype(np.int64), lesson.tokens))
            found.append(Learned(one.document.seq, len(one.ids), slots, 0, one.document.seq in self.held))
        return found

    def part(self, step: int, rank: int = 0, world: int = 1) -> Batch | None:
        """What a step learns, or a share of it; None where that is nothing."""
        whole = replace(batch_of(self._corpus, self._spec, step, self._device), weight=self._weight)
        share = whole if world == 1 else whole.share(rank, world)
        return share if len(share.contexts) else None
