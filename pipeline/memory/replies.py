"""What is said where questions are asked: how likely the right answers are, and what is written, in passes as large as
may be.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import torch

from pipeline.batching import run_packed
from pipeline.evaluation.answers import references
from pipeline.evaluation.metrics import token_f1
from pipeline.evaluation.overlap import Bleu
from pipeline.generation.ending import end_tokens
from pipeline.memory import saying
from pipeline.memory.answers import Answer
from pipeline.memory.autoencoder import Autoencoder
from pipeline.memory.beginning import is_half
from pipeline.memory.examples import Example
from pipeline.memory.measure import NAN, plainly
from pipeline.memory.plan import Signs
from pipeline.memory.ragged import pass_tokens
from pipeline.models import LoadedModel
from schemas.memory import FinetuneSpec

Prompts = Callable[[list[int]], list[torch.Tensor]]
"""Numbers of examples -> what the decoder reads of each before it answers."""


class Replies:
    """To ``held`` examples; to the first ``spec.measured`` they are written out, too."""

    def __init__(self, coder: Autoencoder, spec: FinetuneSpec, loaded: LoadedModel, held: Sequence[Example]) -> None:
        self._coder, self._spec, self._loaded, self._held = coder, spec, loaded, held
        self._ends = sorted(end_tokens(loaded.model, loaded.tokenizer, ()))
        self._bleu = Bleu() if find_spec("sacrebleu") else None

    def measuring(self) -> contextlib.AbstractContextManager[None]:
        """How all of this is to be read."""
        return plainly(self._loaded.device, is_half(self._spec))

    def reading(self, rows: Sequence[int], widths: Sequence[int]) -> int:
        """Tokens of ``answers`` to these rows."""
        out = (widths[number] + self._spec.max_new_tokens for number in self._written(rows))
        return sum(widths[number] for number in rows) + sum(out)

    def _written(self, rows: Sequence[int]) -> list[int]:
        return [number for number in rows if number < self._spec.measured]

    def answers(self, rows: Sequence[int], widths: Sequence[int], prompts: Prompts, signs: Signs) -> list[Answer]:
        """Of these rows; ``widths`` are those of all."""
        said = self.packed(rows, widths, lambda some: self.nats(prompts(some), some), signs)
        out = self._written(rows)
        wider = [width + self._spec.max_new_tokens for width in widths]
        found = self.packed(out, wider, lambda some: self._scores(self.said(prompts(some)), some), signs)
        known = dict(zip(out, found, strict=True))
        return [Answer(nats, *known.get(number, ())) for number, nats in zip(rows, said, strict=True)]

    def packed(
        self, rows: Sequence[int], widths: Sequence[int], work: Callable[[list[int]], Sequence[Any]], signs: Signs
    ) -> list[Any]:
        """What ``work`` makes of these rows, as many in a pass as their ``widths``, among those of all, allow."""

        def some(numbers: list[int]) -> Sequence[Any]:
            signs.alive()
            found = work([rows[number] for number in numbers])
            signs.passed(sum(widths[rows[number]] for number in numbers))
            return found

        most = pass_tokens(self._spec.batch_tokens, self._loaded.device)
        return run_packed([widths[number] for number in rows], most, some)

    def nats(self, prompts: list[torch.Tensor], numbers: list[int]) -> list[float]:
        """Of a token of the right answers, behind these prompts."""
        answers = [self._held[number].answer for number in numbers]
        return [float(one.mean()) for one in saying.nats(self._coder, prompts, answers)]

    def said(self, prompts: list[torch.Tensor]) -> list[str]:
        """What is written behind these prompts."""
        found = saying.written(self._coder, prompts, self._spec.max_new_tokens, self._ends)
        return [text.strip() for text in self._loaded.tokenizer.batch_decode(found, skip_special_tokens=True)]

    def _scores(self, said: list[str], numbers: list[int]) -> list[tuple[float, float]]:
        right = [references(self._held[number].document.answer or "") for number in numbers]
        return [
            (token_f1(came, known), self._bleu(came, known)[0] if self._bleu else NAN)
            for came, known in zip(said, right, strict=True)
        ]
