"""Room for rows of different lengths in one store of columns: the first gap that is wide enough."""

from __future__ import annotations


class Room:
    """``columns`` in all. What is where follows from the order of calls alone."""

    def __init__(self, columns: int) -> None:
        self.free = columns
        self._gaps = [(0, columns)]  # begins and ends, in order; no two touch

    def take(self, columns: int) -> int | None:
        """The first of ``columns`` adjoining ones, from now on taken; None where there is no such gap."""
        for place, (begin, end) in enumerate(self._gaps):
            if end - begin >= columns:
                self._gaps[place : place + 1] = [(begin + columns, end)] if end - begin > columns else []
                self.free -= columns
                return begin
        return None

    def give(self, begin: int, columns: int) -> None:
        """Back what was taken at ``begin``."""
        self.free += columns
        joined: list[tuple[int, int]] = []
        for gap in sorted([*self._gaps, (begin, begin + columns)]):
            if joined and joined[-1][1] == gap[0]:
                gap = (joined.pop()[0], gap[1])
            joined.append(gap)
        self._gaps = joined
