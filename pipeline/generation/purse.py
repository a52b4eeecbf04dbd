"""What drafting may lose: a small part of the time so far, whatever the reasons."""

from __future__ import annotations

SHARE = 0.015
"""The part of the time that may be lost."""

_KEEP = 1 - 1 / 16384
"""By round. What went well or badly long ago says little, and a long good time is no licence for a long bad one."""

_NOTHING = 1e-6
"""Seconds that need not be repaid."""


class Purse:
    """``seconds`` that rounds took, drafting or not, and what drafting ``won`` of them, or lost; and what is ``owed``.

    Whoever drafts only where the loss to be feared is in the purse never loses more than ``SHARE`` of all: gains pay
    losses back, and count for another share at most. Beyond that one thing at a time may be paid for on credit, which
    gains repay before they count: what is never repaid is lost once in thousands of rounds.
    """

    def __init__(self) -> None:
        self.seconds, self.won, self.owed = 0.0, 0.0, 0.0

    @property
    def holds(self) -> float:
        """Seconds that may be lost now."""
        share = SHARE * self.seconds
        return share + min(self.won, share)

    @property
    def lends(self) -> bool:
        """Whether something may be paid for on credit: all of that was repaid, and not much was lost lately."""
        return not self.owed and self.won >= -SHARE * self.seconds / 2

    def went(self, seconds: float, worth: float) -> None:
        """A round went by, for which plain decoding would have taken what it is ``worth``."""
        self.seconds, self.won = _KEEP * self.seconds + seconds, _KEEP * self.won + worth - seconds
        repaid = min(self.owed, max(0.0, self.won))
        self.won -= repaid
        self.owed = _KEEP * (self.owed - repaid)
        if self.owed < _NOTHING:
            self.owed = 0.0

    def pay(self, seconds: float, lent: bool) -> None:
        """What only drafting needs: a recording, prompts that a drafter reads; on credit if it is ``lent``."""
        self.seconds += seconds
        if lent:
            self.owed += seconds
        else:
            self.won -= seconds
