"""What a target said before, for the next of its answers to copy from: drafts change none, so any answer will do.

Of the last answers the very words; of all answers the token that mostly came after each (the bigram table of Max-Gram,
Chen et al., arXiv 2312.11462, section 3.3), which speaks where nothing else matches. The paper counts bigrams of
Wikipedia; what the target itself has said tells more of what it will say, and there is no need to keep counts: a
majority vote (Boyer and Moore, 1981) has two numbers a token, and forgets what is said no longer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

_MOST_VOTES = 64
"""What was said a thousand times is outvoted no later than this, once it is said no longer."""


class Earlier:
    """Answers of one target with a head of ``size`` tokens. ``follows`` ``[size]``: what mostly came after each, itself
    where it was never said; ``votes`` ``[size]`` for that."""

    def __init__(self, size: int) -> None:
        self.follows, self.votes = np.arange(size), np.zeros(size, np.int64)
        self.learned = 0
        """Grows whenever ``follows`` may have changed."""
        self._said: deque[Ints] = deque()
        self._length = 0

    @classmethod
    def of(cls, model: Any) -> Earlier:
        """Of a transformers model, which said nothing yet."""
        return cls(len(model.get_output_embeddings().weight))

    def add(self, answer: Sequence[int], most: int) -> None:
        """An answer of the target. Of all, the last ``most`` tokens are kept, in whole answers or the end of one."""
        if not answer:
            return
        self._said.append(np.array(answer[-most:], np.int64))
        self._length += len(self._said[-1])
        while self._length > most:
            self._length -= len(self._said.popleft())
        self._vote(answer, self.follows.data, self.votes.data)
        self.learned += 1

    @staticmethod
    def _vote(answer: Sequence[int], follows: memoryview[int], votes: memoryview[int]) -> None:
        """Arrays take three times as long where numbers are looked at one by one, and a device may be waiting."""
        for token, following in pairwise(answer):
            if follows[token] == following:
                votes[token] = min(votes[token] + 1, _MOST_VOTES)
            elif votes[token]:
                votes[token] -= 1
            else:
                follows[token], votes[token] = following, 1

    def text(self, most: int) -> Ints:
        """The last ``most`` tokens of answers, 1 at least, the latest behind: another job may have kept more."""
        return np.concatenate(self._said)[-most:] if self._said else np.zeros(0, np.int64)

    def learn(self, follows: Ints, votes: Ints) -> None:
        """A table that was kept: of each token it counts where it has more votes than what is known here."""
        better = votes > self.votes
        self.follows[better], self.votes[better] = follows[better], np.minimum(votes[better], _MOST_VOTES)
        self.learned += 1
