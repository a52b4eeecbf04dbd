"""A document made ready for compression: its parts as units with their costs, and the budget of the whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.compression.budget import tokens_asked
from pipeline.compression.tokens import Tokenising, Tokens
from pipeline.compression.units import cut
from pipeline.stages import Refusal
from schemas.document import SEPARATOR, PromptParts

Ints = NDArray[np.int64]
Role = Literal["instruction", "context", "question"]


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a prompt that is not empty.

    ``ids`` are the scoring model's tokens. Unit i begins at token ``first[i]`` and character ``places[i]`` and costs
    ``costs[i]`` tokens of the target's tokenizer. A verbatim part is one unit.
    """

    role: Role
    text: str
    verbatim: bool
    ids: Ints
    first: Ints
    places: Ints
    costs: Ints

    @property
    def length(self) -> int:
        """Tokens of the target's tokenizer."""
        return int(self.costs.sum())


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt to be shortened to ``budget`` of its ``original`` tokens; its verbatim parts alone take ``fixed``."""

    parts: tuple[Part, ...]
    original: int
    budget: int
    fixed: int
    separator: int

    def costs(self) -> Ints:
        """Tokens of the target's tokenizer for every unit of every part, in order."""
        return np.concatenate([part.costs for part in self.parts])

    def places(self, role: Role) -> list[int]:
        """Where in ``parts`` the parts of this role are."""
        return [place for place, part in enumerate(self.parts) if part.role == role]


@dataclass(frozen=True, slots=True)
class Copied:
    """A prompt whose budget is no smaller than itself."""

    text: str
    original: int
    budget: int


@dataclass(frozen=True, slots=True)
class Preparing:
    """Makes prompts ready: budgets (``rate`` or ``target_tokens``) by ``target``, token ids by ``scorer``."""

    scorer: Tokenising
    target: Tokenising
    rate: float | None
    target_tokens: int | None
    compress_instruction: bool = False
    compress_question: bool = False
    same_tokenizer: bool = False

    def prepare(self, sources: Sequence[PromptParts]) -> list[Prompt | Copied | Refusal]:
        """One prompt per source, in order; or why it needs no work, or can have none."""
        refused = [_unusable(source) for source in sources]
        texts = ["" if no else source.render() for source, no in zip(sources, refused, strict=True)]
        fixed = ["" if no else self._fixed(source) for source, no in zip(sources, refused, strict=True)]
        counts, minima = self.target.count(texts), self.target.count(fixed)
        made: list[Prompt | Copied | Refusal] = []
        (separator,) = self.target.count([SEPARATOR])
        for no, text, count, least in zip(refused, texts, counts, minima, strict=True):
            made.append(no or self._judge(text, count, least, separator))
        work = [place for place, one in enumerate(made) if isinstance(one, Prompt)]
        for place, parts in zip(work, self._parts([sources[place] for place in work]), strict=True):
            blank = made[place]
            assert isinstance(blank, Prompt)
            made[place] = Prompt(parts, blank.original, blank.budget, blank.fixed, blank.separator)
        return made

    def _judge(self, text: str, count: int, least: int, separator: int) -> Prompt | Copied | Refusal:
        budget = tokens_asked(count, self.rate, self.target_tokens)
        if budget >= count:
            return Copied(text, count, budget)
        if budget < least:
            return too_small(budget, least)
        return Prompt((), count, budget, least, separator)

    def _fixed(self, source: PromptParts) -> str:
        """What must stay: the parts that may not be compressed."""
        instruction = "" if self.compress_instruction else source.instruction
        return PromptParts(instruction, (), "" if self.compress_question else source.question).render()

    def _parts(self, sources: Sequence[PromptParts]) -> list[tuple[Part, ...]]:
        found: list[tuple[int, Role, bool, str]] = []
        for place, source in enumerate(sources):
            roles: list[tuple[Role, bool, str]] = [("instruction", not self.compress_instruction, source.instruction)]
            roles += [("context", False, text) for text in source.contexts]
            roles.append(("question", not self.compress_question, source.question))
            found += [(place, *role) for role in roles if role[2]]
        texts = [text for *_, text in found]
        scored = [self._some(text, tokens) for text, tokens in zip(texts, self.scorer.tokenise(texts), strict=True)]
        counted = scored if self.same_tokenizer else self.target.tokenise(texts)
        free = [number for number, (_, _, verbatim, _) in enumerate(found) if not verbatim]
        units = dict(zip(free, cut([texts[one] for one in free], [scored[one].spans for one in free]), strict=True))
        parts: list[list[Part]] = [[] for _ in sources]
        for number, (place, role, verbatim, text) in enumerate(found):
            first, places = units.get(number, (_WHOLE, _WHOLE))
            costs = _costs(counted[number], places)
            parts[place].append(Part(role, text, verbatim, scored[number].ids, first, places, costs))
        return [tuple(one) for one in parts]

    def _some(self, text: str, tokens: Tokens) -> Tokens:
        """A normaliser may leave nothing of a text; it still has to be kept or removed, so one token stands for it."""
        if len(tokens.ids):
            return tokens
        return Tokens(np.array([self.scorer.start_id()]), np.array([[0, len(text)]], np.int32))


_WHOLE = np.zeros(1, np.int64)


def _costs(tokens: Tokens, places: Ints) -> Ints:
    """Tokens that begin in each of the units that begin at ``places``."""
    if not len(tokens.ids):
        return np.zeros(len(places), np.int64)
    begins = np.concatenate([[0], np.maximum.accumulate(tokens.spans[:, 1])[:-1]])
    return np.bincount(np.searchsorted(places, begins, side="right") - 1, minlength=len(places))


def too_small(budget: int, least: int) -> Refusal:
    """The refusal of a budget that cannot hold what must stay."""
    return Refusal(
        "budget_too_small",
        f"the budget is {budget} tokens, but what must stay takes {least}: ask for at least {least} tokens",
    )


def _unusable(source: PromptParts) -> Refusal | None:
    text = source.render()
    if not text or text.isspace():
        return Refusal("empty", "the prompt is empty or only white space: there is nothing to compress")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return Refusal("invalid_unicode", f"the prompt holds half a surrogate pair at character {error.start}; mend it")
    return None
