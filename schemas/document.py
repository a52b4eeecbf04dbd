"""A document: one prompt, cut into the parts a compressor may and may not touch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SEPARATOR = "\n\n"  # between the parts of a prompt, as in the LLMLingua papers


@dataclass(frozen=True, slots=True)
class PromptParts:
    """A prompt as instruction, contexts (demonstrations, passages) and question.

    Plain text is a prompt of one context. Only contexts are compressed unless a stage is told otherwise.
    """

    instruction: str = ""
    contexts: tuple[str, ...] = ()
    question: str = ""

    def render(self) -> str:
        """The whole prompt: the non-empty parts, in order, joined by a blank line."""
        return SEPARATOR.join(part for part in (self.instruction, *self.contexts, self.question) if part)

    @property
    def characters(self) -> int:
        """Characters of all parts, the blank lines between them left out."""
        return len(self.instruction) + sum(map(len, self.contexts)) + len(self.question)

    def content_hash(self) -> str:
        """128-bit hex digest of the parts; equal parts, equal work. The id and the reference answer are left out."""
        # JSON rather than the rendered text: ("a\n\nb",) and ("a", "b") are different work.
        text = json.dumps([self.instruction, *self.contexts, self.question], ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:32]


def context_hash(text: str) -> str:
    """Of a context alone, whatever stands beside it: 128-bit hex digest."""
    return PromptParts(contexts=(text,)).content_hash()


@dataclass(frozen=True, slots=True)
class Document:
    """One row of a corpus on its way through the stages.

    ``seq`` is its place in the job (0-based, gapless over accepted documents); ``id`` is the user's, or the content
    hash where none was given; ``source`` says where it was read (``file:line``). ``rate`` is that of this copy, where
    a job asks for every document at several. ``fields`` holds the columns that
    earlier stages wrote, by name (``schemas.records``).
    """

    seq: int
    id: str
    parts: PromptParts
    content_hash: str
    source: str = ""
    answer: str | None = None
    rate: float | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def prompt(self) -> str:
        """The prompt as it stands now: compressed where a stage has compressed it, else the whole original."""
        compressed = self.fields.get("compressed")
        return compressed if isinstance(compressed, str) else self.parts.render()
