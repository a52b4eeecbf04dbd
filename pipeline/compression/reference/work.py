"""A document between two steps, its lengths and its budget."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.compression.reference import jsonpairs
from pipeline.compression.reference.codec import Codec, Ids
from pipeline.compression.reference.crash import Crash
from pipeline.compression.reference.iteration import Stream
from pipeline.compression.reference.sentences import NO_SENTENCES, Sentences
from pipeline.compression.reference.tags import Tagged, parse
from pipeline.compression.reference.windows import BETWEEN
from schemas.document import PromptParts
from schemas.reference import ReferenceOptions

_CL100K_SPECIAL = re.compile(r"<\|(?:endoftext|endofprompt|fim_prefix|fim_middle|fim_suffix)\|>")


@dataclass(slots=True)
class Work:
    """A document: its contexts as they stand, their lengths with special tokens, its budget for them in tokens.

    ``forced`` contexts stay. ``used`` are the places of those that stayed, each with a shift of its ratio. ``question``
    stands before them while tokens are scored, where that is asked for, and takes ``start`` tokens.
    """

    source: PromptParts
    target: float
    contexts: list[Tagged]
    lengths: list[int]
    forced: tuple[int, ...] = ()
    used: tuple[int, ...] = ()
    shifts: tuple[float, ...] = ()
    sentences: Sentences = NO_SENTENCES
    question: str | None = None
    start: int = 0
    stream: Stream | None = None
    text: str = ""
    crash: Crash | None = None

    @property
    def texts(self) -> list[str]:
        """What stands in the text that is scored: the question, where it is conditioned on, and the contexts."""
        return [*([] if self.question is None else [self.question]), *(context.text for context in self.contexts)]

    @property
    def ready(self) -> Stream:
        """The stream of a document that is about to be compressed."""
        assert self.stream is not None
        return self.stream


def attempt(works: Sequence[Work], step: Callable[[Work], None]) -> None:
    """``step`` on every document that has not crashed; one on which it crashes is done."""
    for work in works:
        if work.crash is None:
            try:
                step(work)
            except Crash as crash:
                work.crash = crash


def live(works: Sequence[Work]) -> list[Work]:
    """The documents that have not crashed."""
    return [work for work in works if work.crash is None]


def begin(sources: Sequence[PromptParts], codec: Codec, ids: Ids, options: ReferenceOptions) -> list[Work]:
    """The documents with contexts, lengths and budget."""
    works = [Work(source, float(options.target_token), [], []) for source in sources]
    attempt(works, lambda work: _set_contexts(work, options))
    if options.tagged:
        _read_tags(live(works), codec, ids, options)
    attempt(works, _count_with_cl100k)
    _measure(live(works), ids, options)
    for work in live(works):
        work.used, work.shifts = tuple(range(len(work.contexts))), (0.0,) * len(work.contexts)
    return works


def plain(source: PromptParts) -> list[str]:
    """The contexts without tags, none of their text lost."""
    return [re.sub(r"</?llmlingua[^<>]*>", "", text) for text in source.contexts]


def _set_contexts(work: Work, options: ReferenceOptions) -> None:
    if options.rank_method == "longllmlingua" and not work.source.question:
        raise Crash("longllmlingua needs a question")
    texts = list(work.source.contexts) or [" "]
    if options.json_config is not None:
        if len(work.source.contexts) != 1:
            raise Crash("one JSON object is compressed at a time")
        texts, work.forced = jsonpairs.tagged(jsonpairs.load(texts[0], options.json_config), options.json_config)
    work.contexts = [Tagged(text, ()) for text in texts]


def _count_with_cl100k(work: Work) -> None:
    """The library counts the whole prompt with tiktoken, which takes none of its own special tokens for text."""
    texts = [work.source.instruction, *(context.text for context in work.contexts), work.source.question]
    if found := _CL100K_SPECIAL.search(BETWEEN.join(texts)):
        raise Crash(f"{found[0]} is a special token of cl100k, which is not counted as text")


def _read_tags(works: list[Work], codec: Codec, ids: Ids, options: ReferenceOptions) -> None:
    """Tags into segments. The library tokenises and decodes first, and counts the budget with the tags in the text."""
    encoded = ids.of_each([[context.text for context in work.contexts] for work in works])
    for work, rows in zip(works, encoded, strict=True):
        work.contexts = [Tagged(text, ()) for text in codec.decode_many(rows)]
    _measure(works, ids, options)

    def read(work: Work) -> None:
        rate: float = options.rate
        if options.target_token != -1:
            total = sum(work.lengths)
            if not total or (rate := work.target / total) > 1:
                raise Crash("target_token exceeds what there is")
        work.contexts = [parse(context.text, rate) for context in work.contexts]
        flags = [all(part.compress for part in context.segments) for context in work.contexts]
        if options.strict_preserve_uncompressed:
            work.forced = tuple(place for place, whole in enumerate(flags) if not whole)

    attempt(works, read)


def _measure(works: list[Work], ids: Ids, options: ReferenceOptions) -> None:
    """Lengths of the contexts, and the budget where it is to be worked out from the rate."""
    texts = [[work.source.instruction, work.source.question, *(one.text for one in work.contexts)] for work in works]
    for work, encoded in zip(works, ids.of_each(texts, special=True), strict=True):
        instruction, question, *work.lengths = map(len, encoded)
        if work.target == -1:
            whole = (instruction + question + sum(work.lengths)) * options.rate
            work.target = whole - instruction - (question if options.concate_question else 0)
