"""Documents -> prompts ready for compression: tokenised, cut into units, with budgets and shares."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from pipeline.compression.budget import tokens_asked
from pipeline.compression.closing import with_end
from pipeline.compression.layout import Layout, text_of
from pipeline.compression.marked import Marked, UnmarkableError
from pipeline.compression.marking import Marking
from pipeline.compression.prompt import Copied, Part, Prompt, Ready, Role, Source, too_small
from pipeline.compression.shares import own_budget, quota_of
from pipeline.compression.tokens import Tokenising
from pipeline.compression.units import Cut, cut
from pipeline.compression.widths import Tokens
from pipeline.stages import Refusal
from schemas.compress import CompressSpec, Unit
from schemas.document import SEPARATOR, PromptParts

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Piece:
    """A part that is not empty, before it is cut. ``source``: its text, markup included."""

    role: Role
    verbatim: bool
    marked: Marked
    source: str

    @property
    def key(self) -> tuple[Role, bool, str]:
        """Equal keys, equal parts."""
        return self.role, self.verbatim, self.source


_Key = tuple[Role, bool, str]

_FEW = 4
"""Where what is kept of a batch is less than a part in so many, it is copied: arrays are views of those of the whole
batch."""

REMEMBERED = 2**22
"""Characters of parts that are kept, tokenised and cut, in case they come again (some 60 bytes each)."""


@dataclass(slots=True)
class _Known:
    """Short parts that were made before: few-shot corpora repeat their demonstrations. ``characters``: of them all."""

    parts: dict[_Key, Part] = field(default_factory=dict)
    characters: int = 0

    def add(self, made: Mapping[_Key, Part]) -> None:
        """Keep new parts, in place of all others once these are too many."""
        short = {key: part for key, part in made.items() if len(part.text) <= REMEMBERED // 256}
        more = sum(len(part.text) for part in short.values())
        if _FEW * more < sum(len(part.text) for part in made.values()):
            short = {key: part.alone_in_memory() for key, part in short.items()}
        if self.characters + more > REMEMBERED:
            self.parts, self.characters = {}, 0
        self.parts.update(short)
        self.characters += more


@dataclass(frozen=True, slots=True)
class Preparing:
    """Makes prompts ready for ``spec``: token ids by ``scorer``, budgets by ``target``, marks by ``marking``."""

    spec: CompressSpec
    scorer: Tokenising
    target: Tokenising
    marking: Marking
    same_tokenizer: bool = False
    known: _Known = field(default_factory=_Known)

    def prepare(self, sources: Sequence[Source]) -> list[Ready]:
        """One prompt per source, in order; or why it needs no work, or can have none."""
        found = {parts: self._pieces(parts) for parts in {source.parts: None for source in sources}}
        pieces = [found[source.parts] for source in sources]  # shared by the same document at several rates
        texts = ["" if isinstance(one, Refusal) else _render(one) for one in pieces]
        tokens = self._tokenised([_said(one) for one in pieces if not isinstance(one, Refusal)])
        counts, beside = self._counts(pieces, texts, tokens), self._beside(pieces)
        budgets = [self._budget(*one) for one in zip(sources, counts, beside, strict=True)]
        work = {
            place: one
            for place, one in enumerate(pieces)
            if not isinstance(one, Refusal) and (budgets[place] < counts[place] or _has_own(one))
        }
        parts = dict(zip(work, self._parts([_said(one) for one in work.values()], tokens), strict=True))
        (separator,) = self.target.count([SEPARATOR])
        made: list[Ready] = []
        for place, (one, text, count, budget) in enumerate(zip(pieces, texts, counts, budgets, strict=True)):
            if isinstance(one, Refusal):
                made.append(one)
            elif place in parts:
                layout = _layout(parts[place])
                made.append(Prompt(parts[place], text, layout, _markup(one), count, budget, 0, separator))
            else:
                made.append(Copied(text, _markup(one), count, budget))
        return self._fixed(sources, made)

    def _pieces(self, source: PromptParts) -> list[_Piece] | Refusal:
        if no := _unusable(source):
            return no
        spec = self.spec
        roles: list[tuple[Role, bool, str]] = [("instruction", spec.tau_instruction == 1, source.instruction)]
        roles += [("context", False, text) for text in source.contexts]
        roles.append(("question", spec.tau_question == 1, source.question))
        found: list[_Piece] = []
        for number, (role, verbatim, text) in enumerate(roles):
            try:
                found += [_Piece(role, verbatim, self._marked(role, verbatim, text), text)] if text else []
            except UnmarkableError as error:
                return Refusal(error.code, f"{f'contexts[{number - 1}]' if role == 'context' else role}, {error}")
        return found if any(piece.marked.text and not piece.marked.text.isspace() for piece in found) else _EMPTY

    def _marked(self, role: Role, verbatim: bool, text: str) -> Marked:
        if verbatim:
            return Marked(text)
        return self.marking.context(text) if role == "context" else self.marking.plain(Marked(text))

    def _tokenised(self, prompts: Sequence[list[_Piece]]) -> dict[str, Tokens]:
        """The target's tokens of all texts that are new and not so long that they would be tokenised in pieces."""
        texts = {piece.marked.text: None for prompt in prompts for piece in prompt if piece.key not in self.known.parts}
        short = [text for text in texts if self.target.at_once(text)]
        return dict(zip(short, self.target.tokenise(short), strict=True))

    def _counts(
        self, pieces: Sequence[list[_Piece] | Refusal], texts: Sequence[str], tokens: Mapping[str, Tokens]
    ) -> list[int]:
        """Tokens of the whole ``texts``: from those of their parts where that is sure to be the same."""
        found = [0 if isinstance(one, Refusal) else self._joined(_said(one), tokens) for one in pieces]
        rest = [place for place, count in enumerate(found) if count is None]
        counted = dict(zip(rest, self.target.count([texts[place] for place in rest]), strict=True))
        return [counted[place] if count is None else count for place, count in enumerate(found)]

    def _joined(self, pieces: Sequence[_Piece], tokens: Mapping[str, Tokens]) -> int | None:
        alone = [self._alone(piece, tokens) for piece in pieces]
        known = [count for count in alone if count is not None]
        return self.target.joined([piece.marked.text for piece in pieces], known) if len(known) == len(alone) else None

    def _alone(self, piece: _Piece, tokens: Mapping[str, Tokens]) -> int | None:
        if (own := tokens.get(piece.marked.text)) is not None:
            return len(own.ids)
        part = self.known.parts.get(piece.key)
        return part.alone if part else None

    def _beside(self, pieces: Sequence[list[_Piece] | Refusal]) -> Sequence[int]:
        """Tokens that the budget does not cover: those of instruction and question, where it is of contexts alone."""
        if self.spec.budget == "prompt":
            return [0] * len(pieces)
        rest = [[] if isinstance(one, Refusal) else [part for part in one if part.role != "context"] for one in pieces]
        return self.target.count([_render(one) for one in rest])

    def _budget(self, source: Source, count: int, beside: int) -> int:
        rate = self.spec.rate if source.rate is None else source.rate
        return beside + tokens_asked(count - beside, rate, None if source.rate else self.spec.target_tokens)

    def _fixed(self, sources: Sequence[Source], made: list[Ready]) -> list[Ready]:
        """Count what must stay in each prompt, set its shares, and refuse the budgets that cannot hold it."""
        work = [(place, one) for place, one in enumerate(made) if isinstance(one, Prompt)]
        texts = [text_of(prompt.text, prompt.layout.spans(prompt.forced())) for _, prompt in work]
        for (place, prompt), least in zip(work, self.target.count(texts), strict=True):
            made[place] = self._shared(prompt, least, sources[place].rate or self.spec.rate)
        return made

    def _shared(self, prompt: Prompt, least: int, rate: float | None) -> Ready:
        """The prompt with its shares. Its own rates may lower the budget that a rate gives, and never raise it."""
        budget = prompt.budget
        if rate is not None and (np.concatenate([part.rates for part in prompt.parts]) < 1).any():
            own = math.floor(own_budget(prompt.parts, rate, prompt.separator, self.spec) + 1e-6)
            budget = min(budget, max(own, least))
        if least > budget:
            return too_small(budget, least)
        if budget >= prompt.original:
            return Copied(prompt.text, prompt.markup, prompt.original, budget)
        prompt = self._ended(replace(prompt, budget=budget, fixed=least, phrases=self.spec.removed_phrases))
        share = rate if rate is not None else budget / prompt.original
        return replace(prompt, quota=quota_of(prompt.parts, budget, share, prompt.separator, self.spec))

    def _ended(self, prompt: Prompt) -> Prompt:
        """The prompt with the end of its last context among what must stay, as far as that is asked for and fits."""
        tokens = self.spec.keep.end * (prompt.budget - prompt.fixed)
        while tokens > 0:
            ended = with_end(prompt, tokens)
            (fixed,) = self.target.count([text_of(ended.text, ended.layout.spans(ended.forced()))])
            if fixed <= prompt.budget:
                return replace(ended, fixed=fixed)
            tokens -= fixed - prompt.budget  # cut from the text before them, tokens may be others
        return prompt

    def _parts(self, prompts: Sequence[list[_Piece]], tokens: Mapping[str, Tokens]) -> list[tuple[Part, ...]]:
        """The pieces of every prompt, tokenised and cut; equal ones (demonstrations, several rates) once."""
        every = {piece.key: piece for prompt in prompts for piece in prompt}
        made = {key: part for key in every if (part := self.known.parts.get(key)) is not None}
        made.update(self._cut({key: piece for key, piece in every.items() if key not in made}, tokens))
        return [tuple(made[piece.key] for piece in prompt) for prompt in prompts]

    def _cut(self, new: dict[_Key, _Piece], tokens: Mapping[str, Tokens]) -> dict[_Key, Part]:
        pieces = list(new.values())
        texts = [piece.marked.text for piece in pieces]
        long = [text for text in dict.fromkeys(texts) if text not in tokens]
        tokens = {**tokens, **dict(zip(long, self.target.tokenise(long), strict=True))}
        counted = [tokens[text] for text in texts]
        same = self.same_tokenizer
        scored = [self.scorer.scored(one) for one in counted] if same else self.scorer.tokenise(texts)
        scored = [self._some(*one) for one in zip(texts, scored, strict=True)]
        cuts = _cut(pieces, scored, self.spec.unit)
        costs = [one.counts for one in cuts] if same else map(_costs, counted, cuts)
        lengths = [len(one.ids) for one in (scored if same else counted)]
        alone = [len(one.ids) if self.target.at_once(text) else None for text, one in zip(texts, counted, strict=True)]
        made = dict(zip(new, map(_part, pieces, scored, cuts, costs, lengths, alone), strict=True))
        self.known.add(made)
        return made

    def _some(self, text: str, tokens: Tokens) -> Tokens:
        """A normaliser may leave nothing of a text; it still has to be kept or removed, so one token stands for it."""
        if len(tokens.ids):
            return tokens
        return Tokens(np.array([self.scorer.start_id()]), np.array([[0, len(text)]], np.int32))


def _cut(pieces: Sequence[_Piece], tokens: Sequence[Tokens], unit: Unit) -> list[Cut]:
    """The units of every piece; a verbatim one is a whole unit."""
    free = [place for place, piece in enumerate(pieces) if not piece.verbatim]
    marked = [pieces[place].marked for place in free]
    cuts = dict(zip(free, cut(marked, [tokens[place].spans for place in free], unit), strict=True))
    return [cuts.get(place) or _whole(one) for place, one in enumerate(tokens)]


def _whole(tokens: Tokens) -> Cut:
    zero = np.zeros(1, np.int64)
    return Cut(zero, np.array([len(tokens.ids)]), zero, np.ones(1, bool), np.full(1, np.nan), np.full(1, -1))


def _part(piece: _Piece, tokens: Tokens, units: Cut, costs: Ints, length: int, alone: int | None) -> Part:
    return Part(
        piece.role, piece.marked.text, piece.verbatim, tokens.ids, units.first, units.counts, units.places, costs,
        units.forced, units.rates, units.regions, length, alone,
    )  # fmt: skip


def _costs(tokens: Tokens, units: Cut) -> Ints:
    """Tokens that begin in each of the units."""
    places = units.places
    if not len(tokens.ids):
        return np.zeros(len(places), np.int64)
    begins = np.concatenate([[0], np.maximum.accumulate(tokens.spans[:, 1])[:-1]])
    return np.bincount(np.searchsorted(places, begins, side="right") - 1, minlength=len(places))


def _layout(parts: Sequence[Part]) -> Layout:
    return Layout.of([part.places for part in parts], [len(part.text) for part in parts])


def _said(pieces: Sequence[_Piece]) -> list[_Piece]:
    """Without those of which only markup was there."""
    return [piece for piece in pieces if piece.marked.text]


def _has_own(pieces: Sequence[_Piece]) -> bool:
    return any(own.rate < 1 for piece in pieces for own in piece.marked.rates)


def _render(pieces: Sequence[_Piece]) -> str:
    return SEPARATOR.join(piece.marked.text for piece in _said(pieces))


def _markup(pieces: Sequence[_Piece]) -> Ints:
    """The markup of all parts, at places in the whole text. A part of nothing else goes with its blank line."""
    found = [np.zeros((0, 2), np.int64)]
    start = gone = 0
    for piece in pieces:
        if not piece.marked.text:
            gone += len(piece.source) + len(SEPARATOR)
            continue
        found += [np.array([[start, gone]])] if gone else []
        found += [piece.marked.markup + np.array([start, 0])] if len(piece.marked.markup) else []
        start, gone = start + len(piece.marked.text) + len(SEPARATOR), 0
    return np.concatenate(found)


_EMPTY = Refusal("empty", "the prompt is empty or only white space: there is nothing to compress")


def _unusable(source: PromptParts) -> Refusal | None:
    text = source.render()
    if not text or text.isspace():
        return _EMPTY
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return Refusal("invalid_unicode", f"the prompt holds half a surrogate pair at character {error.start}; mend it")
    return None
