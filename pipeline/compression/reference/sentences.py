"""The sentence filter: sentences of all contexts compete for one budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from pipeline.compression.reference.contexts import LEAST, ranked
from pipeline.compression.reference.crash import Crash
from pipeline.compression.reference.tags import Segment, Tagged
from schemas.reference import ReferenceOptions


@dataclass(frozen=True, slots=True)
class Sentences:
    """The sentences of several contexts, in order; ``of[i]`` are the numbers of context i's."""

    texts: tuple[str, ...]
    of: tuple[range, ...]
    segments: tuple[tuple[Segment, ...], ...]


NO_SENTENCES = Sentences((), (), ())


def split(contexts: Sequence[Tagged], splitter: Callable[[str], list[str]]) -> Sentences:
    """Each context into sentences that keep the white space after them. Raises ``Crash`` where nltk loses text."""
    texts: list[str] = []
    of: list[range] = []
    segments: list[tuple[Segment, ...]] = []
    for context in contexts:
        own = _whole(splitter(context.text), context.text)
        of.append(range(len(texts), len(texts) + len(own)))
        texts += own
        segments += _segments(own, context.segments) if context.segments else [() for _ in own]
    return Sentences(tuple(texts), tuple(of), tuple(segments))


def keep(
    sentences: Sentences, scores: Sequence[float], lengths: Sequence[int], target: float, options: ReferenceOptions
) -> list[Tagged]:
    """The contexts with the sentences that fit ``token_budget_ratio`` times the budget; one may overshoot it.

    ``scores`` are mean surprisals, ``lengths`` tokens. Sentences with a part that is not to be compressed stay.
    """
    if options.rank_method == "longllmlingua":
        scores = _with_bonus(sentences, scores, options)
    left = (LEAST if target < 0 else target) * options.token_budget_ratio
    kept = {place for place, parts in enumerate(sentences.segments) if not all(part.compress for part in parts)}
    for place in ranked(scores, options.condition):
        left -= lengths[place]
        kept.add(place)
        if left < 0:
            break
    return [
        Tagged(
            "".join(sentences.texts[place] for place in own if place in kept),
            tuple(part for place in own if place in kept for part in sentences.segments[place]),
        )
        for own in sentences.of
    ]


def _with_bonus(sentences: Sentences, scores: Sequence[float], options: ReferenceOptions) -> list[float]:
    """The bonus of first, last and highest sentences. Where a low score is a good one, it drops them: as there."""
    raised = list(scores)
    first, last, each = options.keep_first_sentence, options.keep_last_sentence, options.keep_sentence_number
    for place in [*range(len(raised))[:first], *(range(len(raised))[-last:] if last else ())]:
        raised[place] += options.high_priority_bonus
    for own in sentences.of if each else ():
        for place in sorted(set(own), key=lambda one: raised[one])[:each]:
            raised[place] += options.high_priority_bonus
    return raised


def _whole(sentences: Sequence[str], text: str) -> list[str]:
    """The sentences with what stands between them added to the one before."""
    found: list[str] = []
    begin = 0
    for sentence, after in zip_longest(sentences, sentences[1:]):
        if not text.startswith(sentence, begin):
            raise Crash("a sentence does not stand where the one before it ends")
        end = len(text) if after is None else text.find(after[:5], begin + len(sentence))
        found.append(text[begin:end])
        begin = end
    if "".join(found) != text:
        raise Crash("the sentences do not make up the context")
    return found


def _segments(sentences: Sequence[str], segments: Sequence[Segment]) -> list[tuple[Segment, ...]]:
    """What each sentence has of its context's segments."""
    waiting = list(segments)[::-1]
    found = []
    for sentence in sentences:
        left, parts = len(sentence), []
        while left:
            if not waiting:
                raise Crash("the segments are shorter than the sentences")
            one = waiting.pop()
            if one.length > left:
                waiting.append(Segment(one.length - left, one.rate, one.compress))
            parts.append(Segment(min(one.length, left), one.rate, one.compress))
            left -= parts[-1].length
        found.append(tuple(parts))
    return found
