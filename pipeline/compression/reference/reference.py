"""llmlingua 0.2.2 for many documents at once: the library's steps, each over all documents before the next.

What one step decides on one document never depends on the others: together they only fill the model's passes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from pipeline.compression.reference import jsonpairs, punkt, sentences
from pipeline.compression.reference.codec import Codec, Ids, Ints
from pipeline.compression.reference.contexts import AFTERTHOUGHT, choose
from pipeline.compression.reference.crash import Crash
from pipeline.compression.reference.fallback import shortened, shortened_json
from pipeline.compression.reference.iteration import Iterating, Stream
from pipeline.compression.reference.prefix import fitted, tokens_of
from pipeline.compression.reference.probe import Probe
from pipeline.compression.reference.reading import most_positions
from pipeline.compression.reference.scores import Scores
from pipeline.compression.reference.tags import merged
from pipeline.compression.reference.windows import BETWEEN, Window, plain_windows, tagged_windows
from pipeline.compression.reference.work import Work, attempt, begin, live, plain
from pipeline.compression.registry import Passed
from pipeline.compression.scoring import Scorer
from pipeline.stages import Refusal
from schemas.document import PromptParts
from schemas.reference import ReferenceOptions


@dataclass(frozen=True, slots=True)
class ReferenceResult:
    """A compressed prompt.

    ``contexts`` are the places of the contexts that stayed, in output order. ``crashed`` says why the library would
    have raised an exception; the text is then ``fallback``'s.
    """

    text: str
    contexts: tuple[int, ...]
    crashed: str | None = None


@dataclass(frozen=True, slots=True)
class Prepared:
    """Documents ready for the model, and those that are refused."""

    refused: tuple[Refusal | None, ...]
    works: tuple[Work, ...]
    ids: Ids


class Reference:
    """``compress`` is compress_prompt, structured_compress_prompt or compress_json, by what ``options`` say.

    Threads may share it. ``probe`` sees every decision, and may turn it.
    """

    def __init__(self, scorer: Scorer, tokenizer: Any, options: ReferenceOptions, probe: Probe | None = None) -> None:
        self._options = _effective(options)
        self._codec = Codec(tokenizer, options.clean_up_tokenization_spaces)
        self._scores = Scores(scorer, options.condition)
        self._probe = probe
        self._most = most_positions(scorer)
        values, contrast = None if probe is None else probe.values, options.condition_compare
        self._iterating = Iterating(scorer, options.iterative_size, contrast, options.keep_split, values)
        self._splitter = punkt.load() if options.use_sentence_level_filter else None

    def compress(
        self, sources: Sequence[PromptParts], passed: Passed = lambda tokens: None
    ) -> list[ReferenceResult | Refusal]:
        """One result a document, in order; a refusal for white space and for half surrogate pairs."""
        return self.run(self.prepare(sources), passed)

    def prepare(self, sources: Sequence[PromptParts]) -> Prepared:
        """What needs no model: may be done in another thread while the batch before is with the model."""
        refused = tuple(_unusable(source) for source in sources)
        usable = [source for source, no in zip(sources, refused, strict=True) if no is None]
        ids = Ids(self._codec)
        return Prepared(refused, tuple(begin(usable, self._codec, ids, self._options)), ids)

    def run(self, prepared: Prepared, passed: Passed = lambda tokens: None) -> list[ReferenceResult | Refusal]:
        """The results of prepared documents, in order."""
        works = prepared.works
        if self._options.use_context_level_filter:
            self._filter_contexts(works, prepared.ids, passed)
        if self._splitter is not None:
            self._filter_sentences(works, prepared.ids, passed)
        self._compress_tokens(works, prepared.ids, passed)
        attempt(works, self._assemble)
        done = iter(works)
        return [no or self._result(next(done)) for no in prepared.refused]

    def _filter_contexts(self, works: Sequence[Work], ids: Ids, passed: Passed) -> None:
        some = [work for work in live(works) if len(work.contexts) > 1]
        texts = [[context.text for context in work.contexts] for work in some]
        for work, scores in zip(some, self._scores.of(some, texts, AFTERTHOUGHT, ids, passed), strict=True):
            attempt([work], partial(self._choose, scores=scores))

    def _choose(self, work: Work, scores: Sequence[float]) -> None:
        choice = choose(self._seen(scores), work.lengths, work.target, self._options, work.forced)
        if self._options.tagged and len(choice.used) < len(choice.shifts):
            raise Crash("a forced context is not there")
        work.used, work.shifts = choice.used, choice.shifts
        work.contexts = [work.contexts[place] for place in choice.used]

    def _filter_sentences(self, works: Sequence[Work], ids: Ids, passed: Passed) -> None:
        """A document of one sentence stays as it is."""
        attempt(works, self._split)
        some = [work for work in live(works) if len(work.sentences.texts) != 1]
        texts = [work.sentences.texts for work in some]
        scores = self._scores.of(some, texts, "", ids, passed)
        for work, found, encoded in zip(some, scores, ids.of_each(texts, special=True), strict=True):
            lengths = [*map(len, encoded)]
            work.contexts = sentences.keep(work.sentences, self._seen(found), lengths, work.target, self._options)

    def _seen(self, scores: Sequence[float]) -> Sequence[float]:
        return scores if self._probe is None else self._probe.scores(scores)

    def _split(self, work: Work) -> None:
        assert self._splitter is not None
        work.sentences = sentences.split(work.contexts, self._splitter)

    def _compress_tokens(self, works: Sequence[Work], ids: Ids, passed: Passed) -> None:
        if self._options.conditioned:
            attempt(works, self._set_question)
        if not self._options.use_token_level_filter:
            attempt(works, _join)
            return
        some = live(works)
        parts = ids.of_each([[context.text for context in work.contexts] for work in some])
        whole = ids.of([BETWEEN.join(work.texts) for work in some])
        for work, own, joined in zip(some, parts, whole, strict=True):
            attempt([work], partial(self._plan, counts=[*map(len, own)], ids=joined))
        self._run(live(some), passed)

    def _set_question(self, work: Work) -> None:
        source = work.source
        text = source.question + BETWEEN + source.instruction if self._options.add_instruction else source.question
        work.question = fitted(self._codec, text, self._options.iterative_size, self._most)
        work.start = tokens_of(self._codec, work.question, work.contexts[0].text)

    def _plan(self, work: Work, counts: Sequence[int], ids: Ints) -> None:
        if not len(ids):
            raise Crash("nothing is left of the contexts")
        size, plan = self._options.iterative_size, list[Window]()
        if self._options.tagged:
            texts, segments = [one.text for one in work.contexts], [merged(one.segments) for one in work.contexts]
            plan = tagged_windows(self._codec, ids[work.start :], texts, segments, size)
        else:
            plan = plain_windows(counts, work.target, size, work.shifts)
        work.stream = Stream(ids, work.start, tuple(plan))

    def _run(self, works: Sequence[Work], passed: Passed) -> None:
        """Equal streams are compressed once: few-shot corpora share their demonstrations."""
        keys = [(work.ready.ids.tobytes(), work.ready.start, work.ready.plan) for work in works]
        streams = dict(zip(keys, (work.ready for work in works), strict=True))
        found = dict(zip(streams, self._iterating.run(list(streams.values()), passed), strict=True))
        kept = [found[key] for key in keys]
        ids = [work.ready.ids[[] if isinstance(one, Crash) else one] for work, one in zip(works, kept, strict=True)]
        for work, one, text in zip(works, kept, self._codec.decode_many(ids), strict=True):
            work.text = text.replace("<s> ", "").replace("<s>", "")
            work.crash = one if isinstance(one, Crash) else None

    def _result(self, work: Work) -> ReferenceResult:
        if work.crash is None:
            return ReferenceResult(work.text, work.used)
        return ReferenceResult(self._fallback(work.source), work.used, str(work.crash))

    def _assemble(self, work: Work) -> None:
        source, options = work.source, self._options
        parts = [source.instruction, work.text if work.text.strip() else ""]
        work.text = BETWEEN.join(part for part in [*parts, source.question * options.concate_question] if part)
        if options.json_config is not None:
            work.text = json.dumps(jsonpairs.restored(work.text), ensure_ascii=False)

    def _fallback(self, source: PromptParts) -> str:
        options = self._options
        question = source.question if options.concate_question else ""
        budget = options.tokens
        if budget is None:
            (whole,) = self._codec.encode([source.render()])
            budget = int(len(whole) * options.rate)
        if options.json_config is not None:
            return shortened_json(self._codec, "".join(source.contexts), options.json_config, budget)
        return shortened(self._codec, source.instruction, plain(source), question, budget)


def _effective(options: ReferenceOptions) -> ReferenceOptions:
    """What compress_json makes of its options."""
    if options.json_config is None:
        return options
    return options.model_copy(update={
        "use_context_level_filter": options.use_keyvalue_level_filter, "reorder_context": options.reorder_keyvalue,
        "add_instruction": False, "concate_question": False, "strict_preserve_uncompressed": False,
        "force_context_ids": None, "force_context_number": None, "dynamic_context_compression_ratio": 0.0,
    })  # fmt: skip


def _join(work: Work) -> None:
    work.text = BETWEEN.join(context.text for context in work.contexts)


def _unusable(source: PromptParts) -> Refusal | None:
    text = source.render()
    if not text or text.isspace():
        return Refusal("empty", "the prompt is empty or only white space: there is nothing to compress")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return Refusal("invalid_unicode", f"the prompt holds half a surrogate pair at character {error.start}; mend it")
    return None
