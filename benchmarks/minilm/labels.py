"""What LLMLingua keeps of each passage at several rates, as labels of the encoder's tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.minilm.passages import Passage
from pipeline.compression.tokens import Tokenising
from pipeline.models import ModelPool
from pipeline.stages import Outcome, Result, Run, Stage, build
from schemas.document import Document, PromptParts
from schemas.job import JobSpec

RATES = (0.5, 0.33, 0.2)
"""The teacher's. Bit i of a label: kept at rate i."""

Spans = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Labelled:
    """Passages in the encoder's tokens: ``ids`` and ``labels`` [tokens] end to end, ``lengths`` and ``held`` [rows]."""

    ids: NDArray[np.int32]
    labels: NDArray[np.uint8]
    lengths: NDArray[np.int64]
    held: NDArray[np.bool_]

    def save(self, path: Path) -> None:
        """All or nothing."""
        partial = path.with_suffix(".partial.npz")
        np.savez_compressed(partial, ids=self.ids, labels=self.labels, lengths=self.lengths, held=self.held)
        partial.replace(path)

    def rows(self, held: bool) -> Labelled:
        """The passages that are held out, or those that are not."""
        wanted = np.repeat(self.held == held, self.lengths)
        rows = self.held == held
        return Labelled(self.ids[wanted], self.labels[wanted], self.lengths[rows], self.held[rows])


def load(paths: Sequence[Path]) -> Labelled:
    """What ``save`` wrote, joined in this order."""
    parts = [np.load(path, allow_pickle=False) for path in paths]
    fields = {name: np.concatenate([part[name] for part in parts]) for name in ("ids", "labels", "lengths", "held")}
    return Labelled(**fields)


def label(passages: Sequence[Passage], teacher: dict[str, Any], encoder: Tokenising, pool: ModelPool) -> Labelled:
    """The teacher's choice at every rate; ``teacher``: settings of its stage. Refused passages are left out."""
    kept = [compressed([one.text for one in passages], {**teacher, "rate": rate}, pool) for rate in RATES]
    tokens = encoder.tokenise([one.text for one in passages])
    ids, labels, rows = [], [], []
    for place, (passage, found) in enumerate(zip(passages, tokens, strict=True)):
        choices = [some[place] for some in kept]
        if not len(found.ids) or any(spans is None for spans in choices):
            continue
        rows.append(place)
        ids.append(found.ids)
        bits = [
            covered(spans, found.spans, len(passage.text)) << bit
            for bit, spans in enumerate(choices)
            if spans is not None
        ]
        labels.append(np.sum(bits, axis=0, dtype=np.uint8))
    held = np.array([passages[place].held for place in rows])
    lengths = np.array([len(one) for one in ids])
    return Labelled(np.concatenate(ids).astype(np.int32), np.concatenate(labels), lengths, held)


def compressed(texts: Sequence[str], settings: dict[str, Any], pool: ModelPool) -> list[Spans | None]:
    """The spans [n, 2] of each text that a compress stage keeps; None where it refuses."""
    stage = _stage(settings)
    parts = [PromptParts(contexts=(text,)) for text in texts]
    documents = [Document(seq, str(seq), one, one.content_hash()) for seq, one in enumerate(parts)]
    return [_spans(outcome) for outcome in stage.run(documents, Run(pool))]


def identity(settings: dict[str, Any]) -> Any:
    """What the results of a compress stage depend on beside its settings: models by their digests, its version."""
    return _stage({**settings, "rate": RATES[0]}).identity()


def _stage(settings: dict[str, Any]) -> Stage:
    target = {"model": settings["target"]}
    spec = {"kind": "compress", **{key: value for key, value in settings.items() if key != "target"}}
    return build(JobSpec.model_validate({"input": {"path": "-"}, "target": target, "stages": [spec]}), 0)


def covered(kept: Spans, spans: NDArray[np.integer[Any]], length: int) -> NDArray[np.uint8]:
    """Which tokens (characters from, to) lie mostly in the kept spans of a text of ``length`` characters."""
    edges = np.zeros(length + 1, dtype=np.int64)
    np.add.at(edges, kept[:, 0], 1)
    np.add.at(edges, kept[:, 1], -1)
    before = np.concatenate([[0], np.cumsum(np.cumsum(edges))])  # kept characters before each place
    begins, ends = spans[:, 0], spans[:, 1]
    inside: NDArray[np.uint8] = (2 * (before[ends] - before[begins]) > ends - begins).astype(np.uint8)
    return inside


def _spans(outcome: Outcome) -> Spans | None:
    if not isinstance(outcome, Result):
        return None
    return np.array(outcome.fields["kept"], dtype=np.int64).reshape(-1, 2)
