"""Slots of single contexts, out of those of a document that was encoded before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.memory.packing import Made, Packed, unpack


def contexts_of(row: Mapping[str, Any], packed: Packed) -> list[Made]:
    """Of each context of a ``row`` of ``encode`` with the slots ``packed``, in their order; none for one that stays
    text. What they lost is reckoned from what all of the document did."""
    whole = float(unpack(packed).double().square().sum())
    lost = whole * (row["slots_loss"] or 0.0) ** 2
    return Made(packed, lost, whole).cut(row["context_slots"])
