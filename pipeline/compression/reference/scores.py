"""Scores of contexts and sentences: mean surprisal, of the text itself or of it and the question together."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from pipeline.compression.reference.codec import Ids
from pipeline.compression.reference.crash import Crash
from pipeline.compression.reference.reading import Text, mean_losses
from pipeline.compression.reference.work import Work
from pipeline.compression.registry import Passed
from pipeline.compression.scoring import Scorer

REMEMBERED = 2**16
"""Most scores kept from call to call."""


class Scores:
    """``condition``: none; after (the question's surprisal after the text); before (the text's after the question).

    Equal texts are scored once, and not again in later calls. Threads may share it.
    """

    def __init__(self, scorer: Scorer, condition: str) -> None:
        self._scorer, self._condition = scorer, condition
        self._known: dict[tuple[bytes, int], float] = {}

    def of(
        self, works: Sequence[Work], texts: Sequence[Sequence[str]], suffix: str, ids: Ids, passed: Passed
    ) -> list[list[float]]:
        """A score for each of some texts of every document, whose questions end with ``suffix`` here.

        Documents with a text of no tokens crash.
        """
        pairs = [
            (text, work.source.question + suffix) for work, some in zip(works, texts, strict=True) for text in some
        ]
        asked = iter(self._asked(pairs, ids))
        by_work = [list(islice(asked, len(some))) for some in texts]
        for work, some in zip(works, by_work, strict=True):
            if not all(len(text.ids) for text in some):
                work.crash = Crash("a text to be ranked has no tokens")
        means = iter(self._means([text for some in by_work for text in some], passed))
        return [list(islice(means, len(some))) for some in by_work]

    def _asked(self, pairs: Sequence[tuple[str, str]], ids: Ids) -> list[Text]:
        if self._condition == "none":
            return [Text(one) for one in ids.of([text for text, _ in pairs], special=True)]
        if self._condition == "before":
            pairs = [(question, text) for text, question in pairs]
        whole = ids.of([first + last for first, last in pairs], special=True)
        begins = ids.of([first for first, _ in pairs], special=True)
        return [Text(one, len(begin) - 1) for one, begin in zip(whole, begins, strict=True)]

    def _means(self, texts: Sequence[Text], passed: Passed) -> list[float]:
        """What another thread is about to score at the same time is scored twice: rarely, and to the same end."""
        asked = {(text.ids.tobytes(), text.first): text for text in texts if len(text.ids)}
        found = {key: mean for key in asked if (mean := self._known.get(key)) is not None}
        new = {key: text for key, text in asked.items() if key not in found}
        found.update(zip(new, mean_losses(self._scorer, list(new.values()), passed), strict=True))
        if len(self._known) > REMEMBERED:
            self._known = {}
        self._known.update(found)
        return [found.get((text.ids.tobytes(), text.first), float("nan")) for text in texts]
