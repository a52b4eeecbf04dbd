"""The work of the encode stage on a shard: spans of all its documents, longest first, as many at once as fit."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch

from pipeline.batching import run_packed
from pipeline.compression.tokens import Tokenising
from pipeline.memory.encode_stage import Encode
from pipeline.memory.encoded import Whole, outcome_of, whole_of
from pipeline.memory.fit import Fit
from pipeline.memory.outlines import Outline, Span, outlines_of
from pipeline.memory.packing import Made, Measured, measuring
from pipeline.memory.ragged import encode_spans, pass_tokens, places_of
from pipeline.memory.refining import refined
from pipeline.memory.resident import Resident, resident
from pipeline.stages import Outcome, Refusal, Result, Run, Stopped
from schemas.document import Document
from schemas.memory import EncodeSpec

Lot = Sequence[Document]

_ENOUGH = {"cpu": 512, "cuda": 4096}
"""Tokens in a pass that keep the device busy: from there on less padding is worth more than a larger batch."""

_AHEAD = {"cpu": 0, "cuda": 1}
"""Passes whose slots are not waited for before the next is launched."""

_LOT, _FIRST = 16, 8
"""Characters for each token of a pass: documents of about four passes are looked through at once, and the next while
these are read; of the first so small a part, as until then nothing can be read."""


def encode(stage: Encode, documents: Sequence[Document], run: Run) -> list[Outcome]:
    """One outcome per document, in order; equal prompts are encoded once, and so are equal spans of documents that are
    looked through together; contexts that are known not at all. Raises ``Stopped``, ``ModelError``."""
    began = time.perf_counter()
    _alive(run)
    if not documents:
        return []
    folder, manifest = stage.found()
    spec = stage.spec
    there = resident(folder, manifest, stage.target.model, spec.dtype, spec.device, run.models)
    first = {document.content_hash: document for document in reversed(documents) if document.prompt.strip()}
    places: dict[tuple[str, ...], int] = {}  # so that what is asked about the same contexts stands together
    alone = sorted(first.values(), key=lambda one: places.setdefault(one.parts.contexts, len(places)))
    tokeniser, cut, outlines = Tokenising(there.base.tokenizer), stage.cut(manifest), list[Outline]()
    known = run.known(list({text for one in alone for text in one.parts.contexts}))
    with _thread() as looking, _thread() as putting:
        passes = _Passes(there, spec, manifest.revision, run, putting)
        lots = [looking.submit(outlines_of, lot, tokeniser, cut, spec.keep_text, known) for lot in passes.lots(alone)]
        for lot in lots:
            passes.read(lot.result())
            outlines += lot.result()
        made = passes.made()
    ended = time.perf_counter()
    read = sum(one.read for one in outlines)
    each = (ended - began) / max(1, read)
    found: dict[str, Outcome] = {}
    for place, (document, outline) in enumerate(zip(alone, outlines, strict=True)):
        whole = made[place] if outline.spans else None
        latency = (whole.when if whole else ended) - began
        found[document.content_hash] = outcome_of(outline, whole, spec, manifest.revision, each * outline.read, latency)
    run.progress(len(documents), sum(one.original for one in outlines) - read)
    return _in_order(documents, found)


def _alive(run: Run) -> None:
    if run.stopping():
        raise Stopped("encode: the worker is stopping, or the job was cancelled")
    run.progress(0, 0)


def _in_order(documents: Sequence[Document], found: dict[str, Outcome]) -> list[Outcome]:
    """The first of equal prompts took the time, as reports and rows have it."""
    empty = Refusal("empty", "the prompt is empty or only whitespace; there is nothing to encode")
    outcomes, seen = [], set()
    for document in documents:
        one = found.get(document.content_hash, empty)
        if document.content_hash in seen and isinstance(one, Result):
            one = replace(one, seconds=0.0, fields={**one.fields, "encode_seconds": 0.0})
        outcomes.append(one)
        seen.add(document.content_hash)
    return outcomes


@contextmanager
def _thread() -> Iterator[ThreadPoolExecutor]:
    """For what needs no GPU, beside the passes; who is stopped does not wait for what was not begun."""
    made = ThreadPoolExecutor(1)
    try:
        yield made
    finally:
        made.shutdown(cancel_futures=True)


class _Passes:
    """Spans, pass by pass. What is left to do of a pass is done while the device has the next; documents are put
    together by another thread, ``putting``."""

    def __init__(self, there: Resident, spec: EncodeSpec, revision: str, run: Run, putting: ThreadPoolExecutor) -> None:
        self._coder, self._device, self._spec, self._run = there.coder, there.base.device, spec, run
        self._common, self._revision, self._putting = there.coder.common, revision, putting
        self._most = pass_tokens(spec.batch_tokens, self._device)
        self._fit = Fit(spec.refine, spec.continuations)
        self._padded = there.coder.wide is None or spec.refine > 0  # what is fitted is read with padding
        self._spans: list[Span] = []
        self._counts: list[int] = []  # of spans, by document, and those that are there until all are
        self._parts: list[dict[int, Made]] = []
        self._launched: deque[tuple[list[list[int]], Callable[[], Measured]]] = deque()
        self._whole: dict[int, Future[Whole]] = {}

    def lots(self, documents: Sequence[Document]) -> list[Lot]:
        """``documents`` in their order, as many together as are worth it; all, where spans of like length are to be
        found for one pass."""
        if self._padded or not documents:
            return [documents]
        ends, size = np.cumsum([len(one.prompt) for one in documents]), _LOT * self._most
        marks = [size // _FIRST, *range(size, int(ends[-1]), size)]
        cuts = np.unique([0, *np.searchsorted(ends, marks), len(documents)])
        return [documents[begin:end] for begin, end in pairwise(cuts.tolist())]

    def read(self, outlines: Sequence[Outline]) -> None:
        """Of documents behind those before. Not all slots are there yet. Raises ``Stopped``."""
        begin, before = len(self._spans), len(self._counts)
        self._spans += [one._replace(place=one.place + before) for outline in outlines for one in outline.spans]
        self._counts += [len(outline.spans) for outline in outlines]
        self._parts += [{} for _ in outlines]
        alike: dict[tuple[bytes, int], list[int]] = {}
        when = time.perf_counter()
        for row, one in enumerate(self._spans[begin:], begin):
            if one.made:
                self._there(row, one.made._replace(when=when))
                continue
            alike.setdefault((one.ids.tobytes(), one.slots), []).append(row)
        groups = list(alike.values())
        some = [self._spans[rows[0]] for rows in groups]
        lengths = [places_of(len(one.ids), one.slots, self._coder) + self._fit.places(one.slots) for one in some]
        enough = _ENOUGH[self._device.type] if self._padded else None

        def launch(numbers: list[int]) -> list[int]:
            self._launch([groups[number] for number in numbers])
            return numbers

        run_packed(lengths, self._most, launch, enough=enough, padded=self._padded)

    def made(self) -> dict[int, Whole]:
        """Of each document that has spans, by its place."""
        while self._launched:
            self._settle()
        return {place: one.result() for place, one in self._whole.items()}

    @torch.inference_mode()
    def _launch(self, groups: list[list[int]]) -> None:
        """Of each group of equal spans one."""
        _alive(self._run)
        while len(self._launched) > _AHEAD[self._device.type]:
            self._settle()
        some = [self._spans[rows[0]] for rows in groups]
        spans = [one.ids for one in some]
        slots = encode_spans(self._coder, spans, [one.slots for one in some])
        slots = refined(self._coder, spans, slots, self._fit, lambda: _alive(self._run))
        self._launched.append(
            (groups, measuring(torch.cat(slots), self._common, self._spec.precision, self._spec.group))
        )

    def _settle(self) -> None:
        """Wait for the slots of the first pass that was launched, and put documents together that are whole by then."""
        groups, there = self._launched[0]
        packed, sums = there()  # if this fails for lack of memory, smaller passes are tried, and it is done again
        self._launched.popleft()
        when, some = time.perf_counter(), [self._spans[rows[0]] for rows in groups]
        self._run.progress(0, sum(len(one.ids) * len(rows) for one, rows in zip(some, groups, strict=True)))
        ends = np.cumsum([one.slots for one in some])
        begins = ends - [one.slots for one in some]
        found = zip(begins.tolist(), ends.tolist(), np.add.reduceat(sums, begins).tolist(), strict=True)
        for rows, (begin, end, (lost, whole)) in zip(groups, found, strict=True):
            one = Made(packed.part(begin, end), lost, whole, when)
            for row in rows:
                self._there(row, one)

    def _there(self, row: int, one: Made) -> None:
        place = self._spans[row].place
        parts = self._parts[place]
        parts[row] = one
        if len(parts) == self._counts[place]:
            made = [parts[number] for number in sorted(parts)]
            self._whole[place] = self._putting.submit(whole_of, made, self._revision)
            parts.clear()
