"""GSM8K (Cobbe et al., 2021): grade-school problems behind worked examples, as LLMLingua's Table 1 asks them.

The examples are the eight "hardest" of Chain-of-Thought Hub (Fu et al., 2023), or drawn anew for every question.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from benchmarks.quality.corpora import Row, drawn, read

CALCULATOR = re.compile(r"<<[^>]*>>")  # GSM8K's notes for a calculator; no part of the text
ASK = "Question: {}\nLet's think step by step"


def hardest(data: Path) -> list[str]:
    """The eight worked examples, one a context."""
    text = (data / "gsm8k" / "prompt_hardest.txt").read_text(encoding="utf-8")
    return [part.strip() for part in re.split(r"\n\n(?=Question:)", text) if part.strip()]


def few_shot(data: Path, shots: int = 8) -> Iterator[Row]:
    """The test questions behind the first ``shots`` of the hardest examples; 0 is zero-shot."""
    contexts = hardest(data)[:shots]
    for number, row in enumerate(read(data / "gsm8k" / "test.jsonl")):
        yield _row(number, row["question"], row["answer"], contexts)


def random_shots(data: Path, shots: int = 8) -> Iterator[Row]:
    """The test questions, each behind examples of its own, drawn from the training part."""
    train = [_demonstration(row["question"], row["answer"]) for row in read(data / "gsm8k" / "train.jsonl")]
    draw = drawn(f"gsm8k {shots}")
    for number, row in enumerate(read(data / "gsm8k" / "test.jsonl")):
        yield _row(number, row["question"], row["answer"], draw.sample(train, shots))


def _row(number: int, question: str, answer: str, contexts: list[str]) -> Row:
    final = answer.rpartition("####")[2].strip().replace(",", "")
    asked = ASK.format(question.strip())
    return Row(id=f"gsm8k-{number}", instruction="", contexts=contexts, question=asked, answer=final)


def _demonstration(question: str, answer: str) -> str:
    steps, _, final = CALCULATOR.sub("", answer).partition("####")
    return f"{ASK.format(question.strip())}\n{steps.strip()}\nThe answer is {final.strip()}"
