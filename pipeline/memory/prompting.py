"""Rows in PwC's format from contexts alone: a model writes what is asked about each, then answers it (the paper, 3.1).

Two ordinary jobs: prompts that are specific to a context are written by the one, half of them questions and half
instructions, each about another part of the text, so that a greedy model, too, writes different ones. With general ones
beside them, all are answered by the other.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

GENERAL = (
    "Rephrase the above text.",
    "Summarize the above text.",
    "Write a title for the above text.",
    "Extract a few keywords from the above text.",
    "Write a paragraph that continues the above text.",
)
"""Prompts that fit any text: the paper's five kinds."""

ASKED = {
    "question": "Write one question that the text above answers. Ask about this part of it: {part}\n"
    "Write nothing but the question.",
    "instruction": "Write one instruction for a task that takes the text above, and above all this part of it: {part}\n"
    "Write nothing but the instruction, in one sentence.",
}
"""How specific prompts are asked for, in turn."""

LONGEST = 300
"""Characters of a prompt; what is longer is no question but an essay."""

_SENTENCES = re.compile(r"(?<=[.!?])\s+|\n+")
_LABEL = re.compile(r"^(?:(?:question|instruction|prompt|task|q)\s*\d*\s*[:.)]|\d{1,2}[.):]|-)[\s*]*", re.IGNORECASE)
_QUOTES = "\"'`*_ “”«»"

Row = dict[str, Any]


def asks(contexts: Sequence[str], specific: int) -> Iterator[Row]:
    """What a model is asked for prompts, ``specific`` of each context; ids are CONTEXT-PROMPT, counted from 0."""
    kinds = list(ASKED.values())
    for number, text in enumerate(contexts):
        for which in range(specific):
            asked = kinds[which % len(kinds)].format(part=json.dumps(_part(text, which, specific), ensure_ascii=False))
            yield {"id": f"{number}-{which}", "contexts": [text], "question": asked}


def _part(text: str, which: int, of: int) -> str:
    """A sentence: all are spread over the text."""
    sentences = [one.strip() for one in _SENTENCES.split(text) if one.strip()]
    return sentences[which * len(sentences) // of][:LONGEST]


@dataclass(frozen=True, slots=True)
class Written:
    """What a model said, and whether it ended by itself."""

    text: str
    ended: bool


def prompts(contexts: Sequence[str], written: Mapping[str, Written], specific: int, general: int) -> Iterator[Row]:
    """Rows without answers: of each context its specific prompts, no two alike and none that only repeats its words,
    and so many general ones."""
    for number, text in enumerate(contexts):
        said = (written.get(f"{number}-{which}") for which in range(specific))
        found = [prompt for one in said if one and (prompt := cleaned(one)) and prompt not in text]
        for which, prompt in enumerate([*dict.fromkeys(found), *GENERAL[:general]]):
            yield {"id": f"{number}-{which}", "input": text, "prompt": prompt}


def cleaned(written: Written) -> str | None:
    """The prompt in what a model wrote when it was asked for one; None where there is none, or one that was cut off."""
    said = [line for one in written.text.splitlines() if (line := _LABEL.sub("", one.strip().lstrip(_QUOTES)))]
    if not said or (len(said) == 1 and not written.ended):
        return None
    prompt = said[0].strip(_QUOTES)
    return prompt if len(prompt.split()) > 1 and len(prompt) <= LONGEST else None


def answered(asked: Sequence[Row], written: Mapping[str, Written]) -> Iterator[Row]:
    """Those that have an answer that its model ended, as rows of PwC's format."""
    for row in asked:
        answer = written.get(row["id"])
        if answer and answer.ended and (text := answer.text.strip()):
            yield {"input": row["input"], "prompt": row["prompt"], "answer": text}


def lines(rows: Sequence[Row]) -> bytes:
    """As JSONL."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
