"""Which documents of a corpus are never trained on."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from schemas.document import Document


def in_order(documents: Sequence[Document]) -> list[Document]:
    """By content: the order in which a corpus is read must not change what is trained."""
    return sorted(documents, key=lambda one: (one.content_hash, one.answer or "", one.id))


def is_held_out(content_hash: str, share: float) -> bool:
    """Whether a prompt is kept for measuring: by its hash, so that every run and every corpus that holds it agree."""
    return int(content_hash[:8], 16) < share * 2**32


def held_out(hashes: Collection[str], share: float) -> set[str]:
    """Those of ``hashes`` that are.

    Few may all fall on one side; then the lowest (or highest) goes to the other. One side is empty only where there
    are fewer than two.
    """
    held = {one for one in hashes if is_held_out(one, share)}
    if len(hashes) > 1 and not held:
        return {min(hashes)}
    return held - {max(hashes)} if len(hashes) > 1 and len(held) == len(hashes) else held
