"""Prompts whose contexts are memory slots, as an ``encode`` stage left them: the target reads those in their place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipeline.generation.prompts import PromptEncoder, too_long
from pipeline.memory.asking import SLOTS, Piece, asked
from pipeline.stages import Refusal
from schemas.document import Document

if TYPE_CHECKING:
    import torch

    from pipeline.memory.packing import Packed
    from pipeline.memory.store import SlotFiles

Pieces = list["list[int] | torch.Tensor"]
"""Of a prompt: token ids, and vectors ``[k, d]``."""

IN_HAND = "slots in hand"
"""Among a document's fields: its slots where they were just made and no file holds them."""


def has_slots(document: Document) -> bool:
    """Whether some of its contexts are slots."""
    return bool(document.fields.get("slots"))


def with_slots(fields: Mapping[str, Any], slots: Packed | None) -> dict[str, Any]:
    """``fields`` of a result, with the slots that it was made with, if any."""
    return {**fields, IN_HAND: slots} if slots else dict(fields)


@dataclass(slots=True)
class Slotted:
    """Prompts by ``encoder``, of documents whose slots lie in files of the job in the folder ``output``."""

    encoder: PromptEncoder
    output: str | None
    _files: SlotFiles | None = field(default=None, init=False)

    def pieces(self, document: Document) -> Pieces | Refusal:
        """What the target reads, in its order, or why it cannot. Raises ``SlotsError``, ``OSError``."""
        import torch

        from pipeline.memory.packing import vectors

        counts = [count for count in document.fields["context_slots"] if count]
        runs = asked(self.encoder, list(_texts(document)))
        if isinstance(runs, Refusal):
            return runs
        places = sum(map(len, runs)) + sum(counts) + 1
        fewer = "encode it into fewer slots (a higher ratio)"
        if why := too_long(places, self.encoder.name, self.encoder.window, fewer):
            return why
        *blocks, tag = torch.split(vectors(self._packed(document)), [*counts, 1])
        return [*_alternating(runs, blocks), tag, runs[-1]]

    def _packed(self, document: Document) -> Packed:
        from pipeline.memory.store import SlotFiles

        if in_hand := document.fields.get(IN_HAND):
            found: Packed = in_hand
            return found
        if self.output is None:
            raise ValueError(f"document {document.id} has slots, and nobody says in which folder")
        self._files = self._files or SlotFiles(self.output)
        return self._files.packed(document.fields)


def _texts(document: Document) -> Iterator[Piece]:
    """Blank contexts are left out, as fine-tuning leaves them out."""
    yield document.parts.instruction
    for context, count in zip(document.parts.contexts, document.fields["context_slots"], strict=True):
        yield SLOTS if count else context * bool(context.strip())
    yield document.parts.question


def _alternating(runs: Sequence[list[int]], blocks: Sequence[torch.Tensor]) -> Pieces:
    return [piece for pair in zip(runs[:-1], blocks, strict=True) for piece in pair]
