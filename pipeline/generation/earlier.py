"""What a target said before, for the next of its answers to copy from: drafts change none, so any answer will do.

Of the last answers the very words; of all answers the token that mostly came after each (the bigram table of Max-Gram,
Chen et al., arXiv 2312.11462, section 3.3), which speaks where nothing else matches. The paper counts bigrams of
Wikipedia; what the target itself has said tells more of what it will say, and there is no need to keep counts: a
majority vote (Boyer and Moore, 1981) has two numbers a token, and forgets what is said no longer.

Answers of many rows may end at once, and others wait for their room: votes are counted when a device is busy.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

_MOST_VOTES = 64
"""What was said a thousand times is outvoted no later than this, once it is said no longer."""


class Earlier:
    """Answers of one target with a head of ``size`` tokens. ``follows`` ``[size]``: what mostly came after each, itself
    where it was never said; ``votes`` ``[size]`` for that: of the answers that were counted (``count``)."""

    def __init__(self, size: int) -> None:
        self.follows, self.votes = np.arange(size), np.zeros(size, np.int64)
        self.learned = 0
        """Grows whenever ``follows`` or ``votes`` may have changed."""
        self._said: deque[Sequence[int] | Ints] = deque()
        self._length = 0
        self._uncounted: deque[Iterator[tuple[int, int]]] = deque()

    @classmethod
    def of(cls, model: Any) -> Earlier:
        """Of a transformers model, which said nothing yet."""
        return cls(len(model.get_output_embeddings().weight))

    def add(self, answer: Sequence[int], most: int) -> None:
        """An answer of the target, all of it. Of all answers the last ``most`` tokens are kept, in whole answers or the
        end of one. Its bigrams wait to be counted."""
        if not answer:
            return
        self._said.append(answer[-most:])
        self._length += len(self._said[-1])
        while self._length > most:
            self._length -= len(self._said.popleft())
        self._uncounted.append(pairwise(answer))

    def count(self, most: int | None = None) -> None:
        """Votes of so many bigrams that wait for it, the first said first; of all by default."""
        if not self._uncounted:
            return
        token = -1  # an answer may be left without any
        # Arrays take three times as long where numbers are looked at one by one.
        follows, votes = self.follows.data, self.votes.data
        for token, following in islice(self._waiting(), most):
            if follows[token] == following:
                votes[token] = min(votes[token] + 1, _MOST_VOTES)
            elif votes[token]:
                votes[token] -= 1
            else:
                follows[token], votes[token] = following, 1
        if token >= 0:
            self.learned += 1

    def _waiting(self) -> Iterator[tuple[int, int]]:
        """Where it is left off, the next one goes on."""
        while self._uncounted:
            yield from self._uncounted[0]
            self._uncounted.popleft()

    def text(self, most: int) -> Ints:
        """The last ``most`` tokens of answers, 1 at least, the latest behind: another job may have kept more."""
        self._said = deque(np.asarray(one, np.int64) for one in self._said)  # each once, and not when it ended
        return np.concatenate(self._said)[-most:] if self._said else np.zeros(0, np.int64)

    def learn(self, follows: Ints, votes: Ints) -> None:
        """A table that was kept: of each token it counts where it has more votes than what is known here."""
        self.count()
        better = votes > self.votes
        self.follows[better], self.votes[better] = follows[better], np.minimum(votes[better], _MOST_VOTES)
        self.learned += 1
