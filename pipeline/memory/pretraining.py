"""Pretraining: spans of texts are repeated from their slots, or gone on with (the paper, section 2.2)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from pipeline.accounting.wording import counted
from pipeline.memory.autoencoder import Autoencoder
from pipeline.memory.beginning import is_half
from pipeline.memory.corpus import Corpus
from pipeline.memory.lessons import lesson
from pipeline.memory.measure import Measure, Measuring
from pipeline.memory.plan import Numbers, Signs
from pipeline.memory.results import figures_of, results
from pipeline.memory.texts import divide, least_of, refusal, tokenised
from pipeline.memory.windows import Batch, batch_of, rows_of
from pipeline.models import LoadedModel
from pipeline.models.encoders import Figures
from pipeline.stages import Halt, Outcome, Refusal
from schemas.document import Document
from schemas.memory import PretrainSpec

log = logging.getLogger(__name__)

SHOWN = 64
"""Spans whose slots show what an encoder's are like."""


class Pretraining:
    """On ``texts``; raises ``Halt`` where they are too few or too short."""

    def __init__(
        self, spec: PretrainSpec, documents: Sequence[Document], loaded: LoadedModel, alive: Callable[[], None]
    ) -> None:
        texts = list(tokenised(documents, loaded, alive))
        self.refused: dict[int, Refusal] = {one.document.seq: why for one in texts if (why := refusal(one, spec))}
        self.texts = [one for one in texts if one.document.seq not in self.refused]
        if not self.texts:
            raise Halt(
                f"pretrain: none of {counted(len(texts), 'text')} has the {least_of(spec)} tokens that a lesson takes: "
                "give longer texts, or shorter lessons"
            )
        if self.refused:
            log.info("pretrain: %d of %d texts are left out, empty or too short", len(self.refused), len(texts))
        trained, self.held = divide(self.texts, spec)
        self._read = Corpus.of(text.ids for text in trained)
        self._spec, self._loaded = spec, loaded

    @property
    def corpus(self) -> list[str]:
        """Their content hashes."""
        return [text.document.content_hash for text in self.texts]

    @property
    def less(self) -> str:
        """The remedy where memory ran out."""
        return f"tokens_per_step is {self._spec.tokens_per_step}: halve it, or take shorter lessons"

    def slots(self, coder: Autoencoder) -> torch.Tensor:
        """Of the first step's spans."""
        first = self.parts(0)[0]
        return coder.encode(first.contexts[:SHOWN], first.slots).flatten(0, 1)

    def hasten(self, coder: Autoencoder) -> None:
        """For the shapes of each lesson by itself: any-shape programs are slower."""
        settings: Any = torch._dynamo.config
        # Encoding and decoding are two programs of one code; beyond the limit torch goes back to eager.
        settings.recompile_limit = max(settings.recompile_limit, 8 + 4 * len(self._spec.lessons))
        coder.hasten()

    def parts(self, step: int, rank: int = 0, world: int = 1) -> Sequence[Batch]:
        """One batch, or a share of it."""
        whole = batch_of(self._read, self._spec, step, self._loaded.device)
        share = whole if world == 1 else whole.share(rank, world)
        return [share] if len(share.contexts) else []

    def tokens(self, step: int) -> int:
        """Of contexts."""
        one = lesson(self._spec, step)
        return rows_of(self._spec, one) * one.tokens

    def measurer(self, coder: Autoencoder) -> Repeating:
        """The first span of each held-out text, as long as the last lesson's, through its slots."""
        spec, last = self._spec, self._spec.lessons[-1]
        spans = torch.stack([torch.from_numpy(text.ids[: last.tokens]).long() for text in self.held])
        measuring = Measuring(
            coder, self._loaded.tokenizer, spans.to(self._loaded.device), ((last.tokens, last.slots),),
            spec.batch_tokens, is_half(spec),
        )  # fmt: skip
        return Repeating(measuring, spec.measured)

    def figures(self, before: Sequence[Numbers], after: Sequence[Numbers]) -> tuple[Figures, None]:
        """How spans come back; nothing was asked."""
        return figures_of(self._spec, *([Measure(*one) for one in rows] for rows in (before, after))), None

    def outcomes(self, before: Sequence[Numbers], after: Sequence[Numbers], seconds: float) -> dict[int, Outcome]:
        """With what was measured of the texts that are held out."""
        both = ((Measure(*was), Measure(*now)) for was, now in zip(before, after, strict=True))
        measured = dict(zip((text.document.seq for text in self.held), both, strict=True))
        return results(self._spec, self.texts, measured, seconds)


@dataclass(frozen=True, slots=True)
class Repeating:
    """Spans said behind their slots, at most ``written`` of them written out, too."""

    measuring: Measuring
    written: int

    @property
    def work(self) -> tuple[int, int]:
        """The same before and after."""
        rows, tokens = self.measuring.spans.shape
        return (read := (rows + min(rows, self.written)) * tokens), read

    def before(self, signs: Signs) -> list[Numbers]:
        """A ``Measure`` of each."""
        watched = replace(self.measuring, alive=signs.alive, passed=signs.passed)
        return [*watched.measure(self.written)]

    def after(self, signs: Signs) -> list[Numbers]:
        """The same."""
        return self.before(signs)

    def sample(self) -> str:
        """The first of them."""
        return "{!r} comes back as {!r}".format(*self.measuring.sample(0))
