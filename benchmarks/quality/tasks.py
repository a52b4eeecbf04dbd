"""What is asked: for each task its prompts, how its answers are generated and read, and how far prompts are shortened.

Answers are plain completions, greedy, as in the papers: a chat template costs LLMLingua's GSM8K some ten points.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.quality import bbh, gsm8k, meetings, passages
from benchmarks.quality.corpora import Row

Corpus = Callable[[Path], Iterator[Row]]


END = "<|endoftext|>"
"""Plain completions of instruction-tuned models may end in it, though their end token is that of a turn."""


@dataclass(frozen=True, slots=True)
class Task:
    """``corpora``: by name, the first of them the full prompt, which is what methods shorten and are set against.

    ``ratios`` are of the contexts alone, as in the paper: what stands verbatim beside them is not counted. ``alike``:
    contexts are about as long in every prompt, so that one number of tokens is a ratio.
    """

    scored_as: str
    corpora: Mapping[str, Corpus]
    documents: int
    ratios: tuple[float, ...]
    max_new_tokens: int
    stop: tuple[str, ...]
    alike: bool = True

    @property
    def full(self) -> str:
        """The corpus of full prompts."""
        return next(iter(self.corpora))


TASKS = {
    "gsm8k": Task(
        "gsm8k",
        {
            "full": gsm8k.few_shot,
            "zero-shot": partial(gsm8k.few_shot, shots=0),
            "one-shot": partial(gsm8k.few_shot, shots=1),
            "random-shots": gsm8k.random_shots,
        },
        800, (5, 14, 20, 30), 300, ("\nQuestion", "\n\nQ:", END),
    ),
    "bbh": Task(
        "bbh",
        {"full": bbh.few_shot, "zero-shot": partial(bbh.few_shot, shots=0)},
        900, (3, 5, 7), 300, ("\nQ:", "\n\nQ ", END),
    ),
    "nq": Task(
        "qa",
        {
            "full": passages.natural_questions,
            "closed-book": partial(passages.natural_questions, shown="none"),
            "gold-passage": partial(passages.natural_questions, shown="gold"),
        },
        500, (2, 3, 5), 40, ("\nQuestion:", END),
    ),
    "squad": Task(
        "qa",
        {
            "full": passages.squad,
            "closed-book": partial(passages.squad, shown="none"),
            "gold-passage": partial(passages.squad, shown="gold"),
        },
        500, (2, 3, 5), 40, ("\nQuestion:", END),
    ),
    "qmsum": Task(
        "summary", {"full": meetings.summaries}, 237, (3, 5, 10), 200, ("\n\nQuery:", "\nQuery:", END), alike=False
    ),
}  # fmt: skip
