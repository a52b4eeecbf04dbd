"""How slots are stored, as it is asked for (``packing`` and ``store`` do it)."""

from __future__ import annotations

from typing import NamedTuple

from schemas.memory import Precision


class Form(NamedTuple):
    """How slots are stored, as an ``encode`` stage says it: ``group`` numbers of a slot share a scale."""

    precision: Precision
    group: int = 64

    @property
    def name(self) -> str:
        """``int4`` is in groups of 64, ``int4/32`` in groups of 32."""
        return self.precision if self.group == Form._field_defaults["group"] else f"{self.precision}/{self.group}"


FORMS = {one.name: one for one in (Form("float16"), Form("int8"), Form("int8", 32), Form("int4"), Form("int4", 32))}
"""All that a stage may say, by name."""
