"""Rounds that write on: something drafts, a model reads the drafts in one pass and keeps those it would have said.

Speculative decoding (Leviathan et al., arXiv 2211.17192) and its cascade (Chen et al., arXiv 2312.11462): whoever
drafts for the target may have its own drafts checked by a smaller model, down to Max-Gram, which copies (the vertical
cascade), and where a round may check more than was drafted, copies fill up the rest (the horizontal one).

The target's own choice decides, greedy or drawn at the document's own number for that place, and a draft counts where
it is the same: answers are those of plain decoding, word for word, whatever drafts. A draft is thereby accepted with
the target's probability, as a point mass is by rejection sampling. A drafter draws at the same numbers, so that it says
what the target says wherever their distributions lie on top of each other.

All of this happens on the device, in as many passes whatever is accepted: it can be recorded, and lines of any progress
share it. The paper lets a drafter go on until a number of tokens is there; here, for a number of rounds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from pipeline.batching import out_of_memory
from pipeline.generation.lines import Lines
from pipeline.generation.maxgram import propose
from pipeline.generation.sampling import Choosing
from pipeline.generation.vocabularies import Translation
from pipeline.passes.recorded import Output
from pipeline.passes.stored import StoredPasses
from pipeline.stages import Stopped
from schemas.drafting import Plan

COPIES = 0
"""The number of Max-Gram among those that draft."""


class DrafterFailed(Exception):  # noqa: N818
    """A drafter's own pass failed, with this text; the target is as it was."""


@contextmanager
def drafting() -> Iterator[None]:
    """What a drafter's pass raises is its own failure, but for memory that runs out, or a stop."""
    try:
        yield
    except Exception as error:
        if isinstance(error, Stopped) or out_of_memory(error):
            raise
        raise DrafterFailed(" ".join(str(error).split())[:300] or type(error).__name__) from error


class Drafting(Protocol):
    """Writes drafts behind what is written."""

    @property
    def most(self) -> int:
        """Drafts at once, at most."""

    def draft(self, lines: Lines, slots: torch.Tensor, length: torch.Tensor, most: int) -> torch.Tensor:
        """Drafts for these lines, of which ``length`` tokens are written, drafts of others included -> the length with
        them. No line has more than ``most`` columns afterwards, for passes that must know."""


@dataclass(frozen=True, slots=True)
class Copying:
    """Max-Gram."""

    most: int

    def draft(self, lines: Lines, slots: torch.Tensor, length: torch.Tensor, most: int) -> torch.Tensor:
        """As in ``Drafting``."""
        if self.most:
            lines.put(slots, length, propose(lines.tokens[slots], length, self.most), COPIES)
        return length + self.most


@dataclass(frozen=True, slots=True)
class Model:
    """A model that reads lines by ``passes``; it knows the first ``size`` of the target's tokens, by ``translation``
    where its vocabulary is another. It reads prompts without their vectors where it is ``blind`` to these."""

    passes: StoredPasses
    head: Any
    size: int
    translation: Translation | None = None
    blind: bool = False

    def own(self, ids: torch.Tensor) -> torch.Tensor:
        """Its own tokens for these of the target's, one for one."""
        # Behind the drafts there may be none, and the target may know tokens that a drafter does not.
        known = ids.clamp(0, self.size - 1)
        return self.translation.read(known) if self.translation else known

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """``[n, v]`` of these hidden states ``[n, d]``, in the target's numbers."""
        logits: torch.Tensor = self.head(hidden)
        return self.translation.said(logits) if self.translation else logits[:, : self.size]

    def said(
        self, lines: Lines, slots: torch.Tensor, begin: torch.Tensor, count: int, choose: Choosing, most: int,
        after: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        """It reads ``count`` tokens from ``begin``: what it says after each, or after those of them that are ``after``
        ``[rows, n]``, counted from there; and the logits ``[rows, n, v]``."""
        ids = self.own(lines.at(slots, begin, count))
        hidden = self.passes.read_on(slots, ids, lines.columns(slots, begin, self.blind), most)
        if after is not None:
            hidden = hidden.view(*ids.shape, -1).gather(1, after[..., None].expand(-1, -1, hidden.shape[-1]))
        logits = self.logits(hidden.flatten(0, -2))
        numbers = None
        if choose.sampled:
            places = lines.places(begin, count) if after is None else begin[:, None] + after
            numbers = lines.numbers(slots, places).flatten()
        chosen = choose(logits, numbers).view(len(slots), -1)
        return chosen, logits.view(*chosen.shape, -1)


@dataclass(frozen=True, slots=True)
class Checking:
    """A smaller model that drafts for ``rounds`` rounds, in each of which it checks what is drafted for it.

    ``behind``: so many of the last tokens written it may not have read, but for the very last: the one that it said
    last, what came from above, and what was copied behind its drafts. ``lenience`` l: it lets a draft pass to which it
    gives a probability over 1 / l, though it would say something else (the paper's, section 3.3); 1 is off. ``number``:
    its own, from 1 on, by which lines know its drafts.
    """

    model: Model
    under: Drafting
    rounds: int
    choose: Choosing
    number: int
    behind: int = 1
    lenience: float = 1.0

    @property
    def most(self) -> int:
        """Every round gives what was drafted for it, and one token."""
        return self.rounds * (self.under.most + 1)

    def draft(self, lines: Lines, slots: torch.Tensor, length: torch.Tensor, most: int) -> torch.Tensor:
        """As in ``Drafting``."""
        new = self.under.most
        for behind in [self.behind, *[0] * (self.rounds - 1)]:
            self.under.draft(lines, slots, length, most)
            drafts = lines.at(slots, length, new)
            begin = torch.maximum(length - 1 - behind, lines.answer_from[slots])  # prompts were read, and vectors are
            after = lines.places(length - 1 - begin, new + 1)
            with drafting():
                said, logits = self.model.said(lines, slots, begin, behind + 1 + new, self.choose, most, after)
            passed = said[:, :new] == drafts
            if self.lenience > 1:
                known = drafts.clamp(0, self.model.size - 1)
                chances = logits[:, :new].softmax(-1, dtype=torch.float32).gather(-1, known[..., None])[..., 0]
                passed = passed | ((chances > 1 / self.lenience) & (known == drafts))
            accepted = passed.cumprod(1).sum(1)
            lines.put(slots, length + accepted, said.gather(1, accepted[:, None]), self.number)
            length = length + accepted + 1
        return length


@dataclass(frozen=True, slots=True)
class Target:
    """The model whose answers these are, what drafts for it, and how many more tokens are copied behind such drafts."""

    model: Model
    under: Drafting
    choose: Choosing
    tail: int = 0

    @property
    def most(self) -> int:
        """Drafts that it checks at once."""
        return self.under.most + self.tail

    def round(self, lines: Lines, slots: torch.Tensor, width: int, most: int) -> Output:
        """At most ``width - 1`` drafts for each of these lines, and what comes of them.

        Per row ``width`` tokens, whose draft was at each but the last of their places (-1: none), and how many of the
        tokens count, int64 ``[rows, 2 * width]``; and the logits ``[rows, v]`` of the first token.
        """
        length = end = lines.length[slots]
        if width > 1:
            end = self.under.draft(lines, slots, length, most)
            end = Copying(self.tail).draft(lines, slots, end, most)
        drafts = lines.at(slots, length, width - 1)
        chosen, logits = self.model.said(lines, slots, length - 1, width, self.choose, most)
        there = lines.places(length, width - 1) < end[:, None]
        count = 1 + ((chosen[:, :-1] == drafts) & there).cumprod(1).sum(1)
        whose = torch.where(there, lines.drafted_by(slots, length, width - 1), -1)
        lines.put(slots, length, chosen)
        lines.keep(slots, length + count)
        return torch.cat([chosen, whose, count[:, None]], 1), logits[:, 0]


def cascade(target: Model, drafters: Sequence[Model], plan: Plan, choose: Choosing) -> Target:
    """The target above ``drafters``, the largest first; what is copied is copied for the last, or the target itself."""
    under: Drafting = Copying(plan.copied)
    for level in reversed(range(len(drafters))):
        # From above comes a token for each level, that of the target's included.
        behind = 1 + level + plan.tail
        under = Checking(drafters[level], under, plan.rounds[level], choose, 1 + level, behind, plan.lenience)
    return Target(target, under, choose, plan.tail)
