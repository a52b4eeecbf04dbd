"""How slots are fitted to their spans, as it is asked for (``refining`` does it)."""

from __future__ import annotations

from dataclasses import dataclass

from schemas.memory import CONTINUATION


@dataclass(frozen=True, slots=True)
class Fit:
    """How slots are fitted: in so many ``steps`` at most, 0: not at all; to their spans, and to so many
    ``continuations`` of each."""

    steps: int = 0
    continuations: int = 0

    def places(self, slots: int) -> int:
        """What continuations of a span of so many ``slots`` take in a pass."""
        return self.continuations * (2 + slots + CONTINUATION) if self.steps else 0


AS_MADE = Fit()
"""Not at all."""
