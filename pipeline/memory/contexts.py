"""The texts about which prompts are written, and what their writing and answering is to be, before it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipeline.accounting.wording import counted
from pipeline.memory.prompting import GENERAL, LONGEST, asks
from pipeline.storage.readers import BadRow, read_corpus
from schemas.document import SEPARATOR, PromptParts
from schemas.job import InputSpec

TAKEN = (
    "all prompts that are asked for are taken to be of use, and as long as what asks for them "
    f"({LONGEST} characters at most): they are not written yet"
)
"""What ``to_answer`` rests on."""


@dataclass(frozen=True, slots=True)
class Contexts:
    """``texts``, each once, and of each where it was ``read`` first (``file:line``). How many rows say the ``same`` as
    one before, are ``blank``, and how many could not be read (``bad``); of the first of these, why."""

    texts: tuple[str, ...]
    read: tuple[str, ...]
    same: int
    blank: int
    bad: int
    first_bad: str | None

    def left_out(self) -> list[str]:
        """Which rows are no text of their own, in words."""
        said = [
            (self.bad, f"left out: cannot be read, the first: {self.first_bad}"),
            (self.blank, "left out: without a text"),
            (self.same, "with a text of one before, which is taken once"),
        ]
        return [f"{counted(number, 'row')} {what}" for number, what in said if number]


def contexts_of(spec: InputSpec) -> Contexts:
    """The texts of an input; several contexts of a row are one. Raises ``InputError``."""
    found: dict[str, str] = {}
    bad: list[BadRow] = []
    same = blank = 0
    for row in read_corpus(spec):
        if isinstance(row, BadRow):
            bad.append(row)
            continue
        text = (SEPARATOR.join(row.parts.contexts) or row.parts.render()).strip()
        blank += not text
        same += text in found
        if text:
            found.setdefault(text, row.source)
    first = f"{bad[0].source}: {bad[0].reason}" if bad else None
    return Contexts(tuple(found), tuple(found.values()), same, blank, len(bad), first)


def to_write(texts: Sequence[str], specific: int) -> Iterator[str]:
    """All that a model reads where it writes prompts."""
    for row in asks(texts, specific):
        yield PromptParts(contexts=tuple(row["contexts"]), question=row["question"]).render()


def to_answer(texts: Sequence[str], specific: int, general: int) -> Iterator[str]:
    """All that it reads where it answers them, about: see ``TAKEN``."""
    written = (row["question"][:LONGEST] for row in asks(texts, specific))
    for text in texts:
        for prompt in (*(next(written) for _ in range(specific)), *GENERAL[:general]):
            yield PromptParts(contexts=(text,), question=prompt).render()
