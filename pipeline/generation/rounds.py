"""Rounds that write on: something drafts, a model reads the drafts in one pass and keeps those it would have said.

Speculative decoding (Leviathan et al., arXiv 2211.17192) and its cascade (Chen et al., arXiv 2312.11462): whoever
drafts for the target may have its own drafts checked by a smaller model, down to Max-Gram, which copies (the vertical
cascade), and behind its drafts those of smaller models may follow, and copies (the horizontal one).

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
from typing import Any, Literal, Protocol

import torch

from pipeline.batching import out_of_memory
from pipeline.generation.lines import Lines, Some
from pipeline.generation.maxgram import propose
from pipeline.generation.sampling import Choosing
from pipeline.generation.verifying import COPIES, settle, write
from pipeline.generation.vocabularies import Translation
from pipeline.passes.recorded import Output
from pipeline.passes.stored import StoredPasses
from pipeline.stages import Stopped
from schemas.drafting import Plan


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

    def draft(self, some: Some, length: torch.Tensor, most: int) -> torch.Tensor:
        """Drafts for ``some`` lines, of which ``length`` tokens are written, drafts of others included -> the length
        with them. No line has more than ``most`` columns afterwards, for passes that must know."""


@dataclass(frozen=True, slots=True)
class Copying:
    """Max-Gram. Its drafts are ``marked`` where others draft as well."""

    most: int
    marked: bool

    def draft(self, some: Some, length: torch.Tensor, most: int) -> torch.Tensor:
        """As in ``Drafting``."""
        if not self.most:
            return length
        places = some.places(length, 0, self.most + 1)
        if some.lines.launches:
            from pipeline.generation.matching import copy_on  # where there is no GPU there is no Triton

            copy_on(some.lines.tokens, some.slots, length, self.most, some.lines.scratch, some.lines.chains)
        else:
            lines = some.lines
            some.put(places[:, :-1], propose(lines.tokens[some.slots], length, self.most, lines.chains))
        if self.marked:
            some.mark(places[:, :-1], COPIES)
        return places[:, -1]


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

    def read(
        self, some: Some, ids: torch.Tensor, begin: torch.Tensor, most: int, after: torch.Tensor | None = None
    ) -> torch.Tensor:
        """It reads its own ``ids`` ``[rows, count]`` from place ``begin`` on: the logits ``[rows * n, v]`` behind each
        of them, or those that are ``after`` ``[rows, n]``, counted from the first."""
        hidden = self.passes.read_on(some.slots, ids, some.columns(begin, self.blind), most)
        if after is not None:
            hidden = hidden.view(*ids.shape, -1).gather(1, after[..., None].expand(-1, -1, hidden.shape[-1]))
        return self.logits(hidden.flatten(0, -2))


@dataclass(frozen=True, slots=True)
class Checking:
    """A smaller model that drafts for ``rounds`` rounds, in each of which it checks what is drafted for it.

    ``behind``: so many of the last tokens written it may not have read, but for the very last: the one that it said
    last, what came from above, and what was copied behind its drafts. ``lenience`` l: it lets a draft pass to which it
    gives a probability over 1 / l, though it would say something else (the paper's, section 3.3); 1 is off, "auto" is
    each line's own. ``number``: its own, from 1 on, by which lines know its drafts; they are ``marked`` where others
    draft as well.
    """

    model: Model
    under: Drafting
    rounds: int
    choose: Choosing
    number: int
    marked: bool
    behind: int = 1
    lenience: float | Literal["auto"] = 1.0

    @property
    def most(self) -> int:
        """Every round gives what was drafted for it, and one token."""
        return self.rounds * (self.under.most + 1)

    def draft(self, some: Some, length: torch.Tensor, most: int) -> torch.Tensor:
        """As in ``Drafting``."""
        new = self.under.most
        for behind in [self.behind, *[0] * (self.rounds - 1)]:
            self.under.draft(some, length, most)
            places = some.places(length, -1 - behind, new + 1)
            written = places[:, behind + 1 :]
            drafts, logits = self._read(some, places, written, behind, most)
            number = self.number if self.marked else None
            lenience = some.lenience if self.lenience == "auto" else self.lenience
            length = write(some, logits, length, written, drafts, self.choose, lenience, number)
        return length

    def _read(
        self, some: Some, places: torch.Tensor, written: torch.Tensor, behind: int, most: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The drafts that stand at the places that are ``written`` ``[rows, n]``, and the logits ``[rows * n, v]``
        there. It reads from the first of ``places`` on, but no prompt."""
        begin, after = places[:, 0], None
        if behind:
            begin = torch.maximum(begin, some.answer_from)  # prompts were read, and vectors are
            after = written - 1 - begin[:, None]
            places = some.places(begin, 0, places.shape[1])
        read = some.at(places[:, :-1])
        drafts = read[:, 1:] if after is None else read.gather(1, after[:, 1:])
        with drafting():
            return drafts, self.model.read(some, self.model.own(read), begin, most, after)


@dataclass(frozen=True, slots=True)
class Following:
    """Some that draft one behind the other, cheaper ones for later places (the horizontal cascade)."""

    parts: Sequence[Drafting]

    @property
    def most(self) -> int:
        """As in ``Drafting``."""
        return sum(one.most for one in self.parts)

    def draft(self, some: Some, length: torch.Tensor, most: int) -> torch.Tensor:
        """As in ``Drafting``."""
        for one in self.parts:
            length = one.draft(some, length, most)
        return length


@dataclass(frozen=True, slots=True)
class Target:
    """The model whose answers these are, and what drafts for it. ``only``: who drafts, if it is one alone."""

    model: Model
    under: Drafting
    choose: Choosing
    only: int | None = None

    @property
    def most(self) -> int:
        """Drafts that it checks at once."""
        return self.under.most

    def round(self, lines: Lines, slots: torch.Tensor, width: int, most: int) -> Output:
        """At most ``width - 1`` drafts for each of these lines, and what comes of them.

        Per row ``width`` tokens, whose draft was at each but the last of their places (-1: none), and how many of the
        tokens count, int64 ``[rows, 2 * width + 1]``; and the logits ``[rows, v]`` of the first token.
        """
        some = lines.of(slots)
        end = some.length
        if width > 1:
            end = self.under.draft(some, end, most)
        places = some.places(some.length, -1, width)
        read, written = some.at(places[:, :-1]), places[:, 1:]
        # Only drafters write fewer than they might, and tokens that the target does not know.
        copied = self.only == COPIES
        logits = self.model.read(some, read if copied else self.model.own(read), places[:, 0], most)
        found = settle(some, logits, written, read[:, 1:], None if copied else end, self.only, self.choose)
        return found, logits.view(*written.shape, -1)[:, 0]


def cascade(target: Model, drafters: Sequence[Model], plan: Plan, choose: Choosing) -> Target:
    """The target above ``drafters``, the largest first, as the ``plan``'s matrix has them."""
    only = None
    if not drafters:
        only = COPIES
    elif len(drafters) == 1 and not plan.copies:
        only = 1
    matrix = plan.matrix if drafters else ((plan.copied,),)
    under: list[Drafting] = []  # of the smallest first
    for level in reversed(range(len(matrix))):
        *rounds, copied = matrix[level]
        parts: list[Drafting] = [
            # From above comes a token of each model, that of the target included.
            Checking(drafters[one - 1], under[-at], number, choose, one, only is None, one + plan.behind(one),
                     plan.lenience)
            for at, (one, number) in enumerate(zip(range(level + 1, len(matrix)), rounds, strict=True), 1) if number
        ]  # fmt: skip
        if copied or not parts:
            parts.append(Copying(copied, only is None))
        under.append(parts[0] if len(parts) == 1 else Following(parts))
    return Target(target, under[-1], choose, only)
