"""Texts through the slots that an encode stage stores of them, and back: what a reader can judge for himself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch

from pipeline.batching import run_packed
from pipeline.compression.tokens import Tokenising
from pipeline.evaluation.overlap import Bleu
from pipeline.memory.autoencoder import Autoencoder
from pipeline.memory.encode_stage import Encode
from pipeline.memory.encoding import encode
from pipeline.memory.outlines import Outline, outlines_of
from pipeline.memory.packing import unpack
from pipeline.memory.ragged import written_tokens
from pipeline.memory.reconstruct import padded, reconstructed
from pipeline.memory.resident import resident
from pipeline.models import ModelError, ModelPool
from pipeline.stages import Refusal, Result, Run
from schemas.document import Document, PromptParts


@dataclass(frozen=True, slots=True)
class Repetition:
    """A text of ``tokens`` tokens, the ``spans`` it was cut into, its ``slots`` and their ``bytes``, and what was
    ``found`` in them.

    ``bleu4``: from 0 to 1, None without sacrebleu. ``prefix``: the share of its tokens before the first wrong one.
    """

    text: str
    found: str
    tokens: int
    spans: int
    slots: int
    bytes: int
    bleu4: float | None
    prefix: float


class _Task(NamedTuple):
    """A span to be repeated: its slots ``[k, d]``, and how many tokens it has."""

    slots: torch.Tensor
    size: int


def repeat(stage: Encode, texts: Sequence[str], pool: ModelPool, alive: Callable[[], None]) -> list[Repetition]:
    """Each text, encoded as ``stage`` would, read back as it would be stored, and written out greedily, each span from
    its own slots. ``alive`` is called now and then, and may raise.

    Raises ``ModelError``, also for slots that are no numbers.
    """
    documents = [_document(number, text) for number, text in enumerate(texts)]
    made = [_made(one) for one in encode(stage, documents, Run(pool, progress=lambda documents, tokens: alive()))]
    folder, manifest = stage.found()
    spec = stage.spec
    there = resident(folder, manifest, stage.target.model, spec.dtype, spec.device, pool)
    outlines = outlines_of(documents, Tokenising(there.base.tokenizer), stage.cut(manifest), spec.keep_text)
    tasks = [task for outline, one in zip(outlines, made, strict=True) for task in _tasks(outline, one)]
    written = iter(_written(there.coder, tasks, spec.batch_tokens, alive))
    each = [[next(written) for _ in outline.spans] for outline in outlines]
    found = zip(texts, outlines, made, each, strict=True)
    return [_repetition(text, outline, one, spans, there.base.tokenizer) for text, outline, one, spans in found]


def _document(number: int, text: str) -> Document:
    parts = PromptParts(contexts=(text,))
    return Document(number, str(number), parts, parts.content_hash())


def _made(outcome: Result | Refusal) -> Result:
    if isinstance(outcome, Refusal):
        raise ModelError(outcome.reason)
    return outcome


def _tasks(outline: Outline, made: Result) -> list[_Task]:
    assert made.slots is not None  # none of these texts is blank
    slots = torch.split(unpack(made.slots), [span.slots for span in outline.spans])
    return [_Task(some, len(span.ids)) for some, span in zip(slots, outline.spans, strict=True)]


def _written(
    coder: Autoencoder, tasks: Sequence[_Task], batch_tokens: int, alive: Callable[[], None]
) -> list[list[int]]:
    """The tokens that come back of each."""

    def work(rows: list[int]) -> list[list[int]]:
        alive()
        some = [tasks[row] for row in rows]
        slots, mask = padded([one.slots.to(coder.tags.device) for one in some])
        found = reconstructed(coder, slots, max(one.size for one in some), mask, alive)
        return [ids[: one.size] for ids, one in zip(found.tolist(), some, strict=True)]

    most = written_tokens(batch_tokens, coder.tags.device)
    return run_packed([len(one.slots) + 2 + one.size for one in tasks], most, work)


def _repetition(text: str, outline: Outline, made: Result, spans: Sequence[list[int]], tokenizer: Any) -> Repetition:
    expected = [token for span in outline.spans for token in span.ids.tolist()]
    ids = [token for span in spans for token in span]
    found = tokenizer.decode(ids)
    bleu4 = Bleu()(found, [text])[0] if find_spec("sacrebleu") else None
    right = next((place for place, pair in enumerate(zip(ids, expected, strict=True)) if pair[0] != pair[1]), len(ids))
    size = made.slots.bytes if made.slots else 0
    return Repetition(text, found, len(ids), len(spans), outline.slots, size, bleu4, right / len(ids))
