"""How slots stand in a prompt: what an encoder is fine-tuned on is what its target is asked later.

    <template's beginning> instruction \\n\\n [slots of the contexts] [FT] question <template's end> answer

Contexts that are slots stand where their text would, without a blank line between two of them, and ``[FT]`` stands
behind the last in the place of one. Texts may stand between them. A target without a chat template reads the same
without a frame, its answer a part more: behind a blank line.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.generation.prompts import PromptEncoder
from pipeline.stages import Refusal
from schemas.document import SEPARATOR

Piece = str | None
"""Of a prompt: a text, or the slots of a context."""

SLOTS = None


def asked(encoder: PromptEncoder, pieces: Sequence[Piece]) -> list[list[int]] | Refusal:
    """Token ids before, between and behind the blocks of slots, of which each ``SLOTS`` of ``pieces`` is one.

    k blocks part k + 1 runs of ids, and [FT] stands between the last block and the last run. Without slots it is
    the one run that ``encoder.encode`` makes of the pieces, joined as ``PromptParts.render`` joins them; there is no
    tag. The window is for whoever knows how many slots there are.
    """
    known = [one for one in pieces if one is None or one]
    marker = _marker(known)
    return encoder.around(_content(known, marker), marker)


def answered(encoder: PromptEncoder, answer: str, end: list[int]) -> list[int]:
    """Token ids of an answer to such a prompt, before those that ``end`` it."""
    behind = answer if encoder.chats else SEPARATOR + answer
    ids: list[int] = encoder.tokenizer(behind, add_special_tokens=False, verbose=False)["input_ids"]
    return ids + end


def end_of_turn(encoder: PromptEncoder) -> list[int]:
    """Token ids of what ends an answer, the same behind all."""
    ids: list[int] = encoder.tokenizer(encoder.end, add_special_tokens=False)["input_ids"] if encoder.end else []
    return ids


def _content(pieces: Sequence[Piece], marker: str) -> str:
    last = max((at for at, one in enumerate(pieces) if one is SLOTS), default=-1)
    said = ""
    for at, one in enumerate(pieces):
        apart = at > 0 and at != last + 1 and not (one is SLOTS and pieces[at - 1] is SLOTS)
        said += (SEPARATOR if apart else "") + (marker if one is SLOTS else one)
    return said


def _marker(pieces: Sequence[Piece]) -> str:
    """A word that no text has, and that a template leaves as it is."""
    text, number = "".join(one for one in pieces if one), 0
    while (found := f"XSLOTS{number}X") in text:
        number += 1
    return found
