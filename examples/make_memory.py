"""Makes memory.jsonl: four passages of old books, three questions about each.

    python examples/make_memory.py FOLDER [--out examples]

FOLDER holds texts of the books (``*.txt``; https://www.gutenberg.org has them), in which each passage is found by its
first and last words. All four were published before 1929 by authors who died before 1951: public domain in the United
States, and wherever protection ends 70 years after an author's death. Questions and answers are our own.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Passage:
    """From ``begin`` to ``end``, both included; what is asked, and the right answers."""

    name: str
    source: str
    begin: str
    end: str
    asked: dict[str, list[str]]


PASSAGES = (
    Passage(
        "keelboats",
        "Mark Twain, Life on the Mississippi, 1883, chapter 3",
        "The river's earliest commerce was in great barges",
        "up toward the sources of the Mississippi.",
        {
            "How long did a voyage down and back sometimes take?": ["nine months"],
            "Where did the keelboatmen sell their boats?": ["New Orleans", "in New Orleans"],
            "How did the keelboatmen return home?": ["as deck passengers in the steamers", "as deck passengers"],
        },
    ),
    Passage(
        "schooner",
        "H. G. Wells, The Island of Doctor Moreau, 1896, chapter 4",
        "That night land was sighted after sundown",
        "where in the dimness his little island was hidden.",
        {
            "What went up from the land into the sky?": ["an almost vertical streak of smoke", "a streak of smoke"],
            "Which animal lay in the cage?": ["the puma", "a puma"],
            "Which city did Montgomery talk of?": ["London"],
        },
    ),
    Passage(
        "prospector",
        "Edgar Rice Burroughs, At the Earth's Core, 1914, chapter 2",
        '"Better wait till morning, David--it must be midnight now."',
        "out of a cloudless sky.",
        {
            "What time did the chronometer show?": ["half after twelve", "half past twelve"],
            "How long had they been out?": ["seventy-two hours", "72 hours"],
            "What was the water dotted with?": ["countless tiny isles", "tiny isles"],
        },
    ),
    Passage(
        "salt",
        "Frederick Jackson Turner, The Significance of the Frontier in American History, 1893",
        "The early settlers were tied to the coast by the need of salt",
        "that enabled settlement to cross the mountains.",
        {
            "Who wrote in 1752 about a colony in North Carolina?": ["Bishop Spangenburg"],
            "How far away was Charleston?": ["300 miles"],
            "What did the settlers take to the coast?": ["flocks or furs and ginseng root", "furs and ginseng root"],
        },
    ),
)


def cut(texts: list[str], passage: Passage) -> str:
    """The passage out of the one text that has it, with a space where that breaks lines."""
    (text,) = [one for one in texts if passage.begin in one]
    begin = text.index(passage.begin)
    return " ".join(text[begin : text.index(passage.end, begin) + len(passage.end)].split())


def main() -> None:
    """Write the file."""
    options = argparse.ArgumentParser(description="Make the example corpus of memory slots.")
    options.add_argument("folder", type=Path, help="holds the books' texts")
    options.add_argument("--out", type=Path, default=Path(__file__).parent)
    chosen = options.parse_args()
    texts = [path.read_text(encoding="utf-8") for path in sorted(chosen.folder.glob("*.txt"))]
    rows = [
        {
            "id": f"{passage.name}-{number}",
            "contexts": [cut(texts, passage)],
            "question": question,
            "answer": answers,
            "source": passage.source,
        }
        for passage in PASSAGES
        for number, (question, answers) in enumerate(passage.asked.items(), 1)
    ]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (chosen.out / "memory.jsonl").write_text(lines, encoding="utf-8")


if __name__ == "__main__":
    main()
