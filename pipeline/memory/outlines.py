"""Prompts before they are encoded: which contexts stay text, and which spans the others are cut into."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

from pipeline.compression.tokens import Tokenising
from pipeline.memory.encode_stage import Cut
from pipeline.memory.spans import Ints, spans_of
from schemas.document import Document, PromptParts

if TYPE_CHECKING:
    from pipeline.memory.packing import Made


class Span(NamedTuple):
    """``ids`` of a document, by its place among those of the shard, and the slots they are to have, or have already."""

    place: int
    ids: Ints
    slots: int
    made: Made | None = None


@dataclass(slots=True)
class Outline:
    """Of a prompt: all its tokens, those that are ``encoded``, of these those whose slots were ``known`` before, and
    those that are ``left`` as text; the slots of each context, 0 where it stays text; the spans of the others, in their
    order."""

    original: int = 0
    encoded: int = 0
    known: int = 0
    left: int = 0
    context_slots: list[int] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)

    @property
    def slots(self) -> int:
        """Of all contexts."""
        return sum(self.context_slots)

    @property
    def read(self) -> int:
        """Tokens that are read for these slots."""
        return self.encoded - self.known


def outlines_of(
    documents: Sequence[Document],
    tokeniser: Tokenising,
    cut: Cut,
    keep_text: int,
    known: Mapping[str, Made] | None = None,
) -> list[Outline]:
    """Of each document: contexts of at most ``keep_text`` tokens stay text, and so do blank ones; some are ``known``,
    by what they say."""
    contexts = [context for document in documents for context in document.parts.contexts]
    tokens = dict(zip(contexts, (one.ids for one in tokeniser.tokenise(contexts)), strict=True))
    outlines, kept = [], []
    for place, document in enumerate(documents):
        outline, left = Outline(), list[str]()
        for context in document.parts.contexts:
            ids = tokens[context]
            stays = len(ids) <= keep_text or not context.strip()
            spans = [] if stays else _spans(place, ids, cut, (known or {}).get(context))
            outline.spans += spans
            outline.encoded += sum(len(span.ids) for span in spans)
            outline.known += sum(len(span.ids) for span in spans if span.made)
            outline.context_slots.append(sum(span.slots for span in spans))
            left += [context] if stays else []
        kept.append(replace(document.parts, contexts=tuple(left)))
        outlines.append(outline)
    sizes = {text: len(ids) for text, ids in tokens.items() if tokeniser.at_once(text)}
    counts = totals([*(document.parts for document in documents), *kept], sizes, tokeniser)
    for outline, original, rest in zip(outlines, counts, counts[len(outlines) :], strict=False):
        outline.original, outline.left = original, rest
    return outlines


def totals(prompts: Sequence[PromptParts], known: dict[str, int], tokeniser: Tokenising) -> list[int]:
    """Tokens of whole prompts. Those of some texts are ``known``: what they are part of is not read again, where the
    tokenizer lets counts be added."""
    pieces = [[one for one in (parts.instruction, *parts.contexts, parts.question) if one] for parts in prompts]
    unknown = list({one for some in pieces for one in some if one not in known and tokeniser.at_once(one)})
    sizes = {**known, **dict(zip(unknown, tokeniser.count(unknown), strict=True))}
    found = [_added(some, sizes, tokeniser) for some in pieces]
    whole = [parts.render() for parts, one in zip(prompts, found, strict=True) if one is None]
    counted = iter(tokeniser.count(whole))
    return [next(counted) if one is None else one for one in found]


def _added(pieces: Sequence[str], sizes: dict[str, int], tokeniser: Tokenising) -> int | None:
    if not all(one in sizes for one in pieces):
        return None
    counts = [sizes[one] for one in pieces]
    return tokeniser.joined(pieces, counts) if len(pieces) > 1 else sum(counts)


def _spans(place: int, ids: Ints, cut: Cut, known: Made | None) -> list[Span]:
    parts = spans_of(ids, cut.span)
    counts = [cut.slots(len(part)) for part in parts]
    there = known.cut(counts) if known and len(known.packed.values) == sum(counts) else [None] * len(parts)
    return [Span(place, *one) for one in zip(parts, counts, there, strict=True)]
