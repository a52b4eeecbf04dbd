"""What a part holds beside plain words: what must stay in it, what has a rate of its own, markup that is not text."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from pipeline.compression.json_text import KeyRates, json_marked
from pipeline.compression.marked import Marked, UnmarkableError
from pipeline.compression.protect import Protection
from pipeline.compression.tags import untagged
from schemas.compress import CompressSpec

__all__ = ["Marked", "Marking", "UnmarkableError", "build_marking"]


@dataclass(frozen=True, slots=True)
class Marking:
    """Marks parts. Both methods raise ``UnmarkableError``."""

    structure: Literal["none", "tags", "json"]
    key_rates: KeyRates
    protection: Protection

    def context(self, text: str) -> Marked:
        """A context: it has the structure."""
        if self.structure == "json":
            return json_marked(text, self.key_rates, self.protection)
        return self.plain(untagged(text) if self.structure == "tags" else Marked(text))

    def plain(self, marked: Marked) -> Marked:
        """``marked`` with what is to be kept anywhere."""
        return replace(marked, kept=self.protection.spans(marked.text)) if self.protection.active else marked


def build_marking(spec: CompressSpec) -> Marking:
    """The marking that ``spec.keep`` and ``spec.structure`` ask for."""
    return Marking(spec.structure, KeyRates(spec.key_rates), Protection.of(spec.keep))
