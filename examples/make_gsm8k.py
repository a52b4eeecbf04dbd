"""Makes gsm8k.jsonl: 24 few-shot prompts of 700 to 900 tokens, and gsm8k-one-more.jsonl with a 25th.

    python examples/make_gsm8k.py FOLDER [--out examples] [--model smollm2-135m-instruct]

FOLDER holds train.jsonl and test.jsonl of GSM8K (https://github.com/openai/grade-school-math, MIT), rows with
``question`` and ``answer``. Questions come from the test part, worked examples from the train part; every prompt has
its own examples, drawn with a fixed seed, so that a compressor meets different text each time. Tokens are counted
with the tokenizer of ``--model`` over the whole rendered prompt.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.models import load_tokenizer
from schemas.base import DEFAULT_MODEL
from schemas.document import PromptParts

SEED = 20261122
PROMPTS = 24
SHORTEST, LONGEST = 700, 900  # tokens of a prompt
QUESTION_LONGEST = 120  # tokens: instruction and question stay verbatim and must leave room in the job's budget
INSTRUCTION = "Solve the last problem step by step, like the worked ones before it. End with: The answer is N."
CALCULATOR = re.compile(r"<<[^>]*>>")  # GSM8K's notes for a calculator; no part of the text

Row = dict[str, Any]
Count = Callable[[str], int]


def read(path: Path) -> list[Row]:
    """The rows of a JSONL file, each with its place in it as ``line`` (from 0)."""
    with path.open(encoding="utf-8") as lines:
        return [{"line": number, **json.loads(line)} for number, line in enumerate(lines)]


def solution(row: Row) -> tuple[str, str]:
    """The worked solution of a GSM8K row without its calculator notes, and the final number."""
    steps, _, final = CALCULATOR.sub("", row["answer"]).partition("####")
    return steps.strip(), final.strip().replace(",", "")


def ask(row: Row) -> str:
    """A problem as the prompt poses it."""
    return f"Question: {row['question'].strip()}\nLet's think step by step."


def demonstration(row: Row) -> str:
    """A problem with its solution."""
    steps, final = solution(row)
    return f"{ask(row)}\n{steps}\nThe answer is {final}."


def prompt(question: str, train: list[Row], draw: random.Random, count: Count) -> PromptParts:
    """The question behind drawn demonstrations: at most a drawn number of tokens, and at most 100 fewer."""
    most = draw.randint(SHORTEST + 100, LONGEST)
    parts = PromptParts(INSTRUCTION, (), question)
    for row in draw.sample(train, 100):
        longer = PromptParts(INSTRUCTION, (*parts.contexts, demonstration(row)), question)
        if count(longer.render()) <= most:
            parts = longer
        if count(parts.render()) >= most - 100:
            return parts
    raise RuntimeError("no demonstrations of a fitting length among 100")


def rows(folder: Path, count: Count) -> list[Row]:
    """All rows, the one more at the end."""
    draw = random.Random(SEED)
    train = read(folder / "train.jsonl")
    fitting = [row for row in read(folder / "test.jsonl") if count(ask(row)) <= QUESTION_LONGEST]
    made = []
    for row in sorted(draw.sample(fitting, PROMPTS + 1), key=lambda row: int(row["line"])):
        parts = prompt(ask(row), train, draw, count)
        made.append(
            {
                "id": f"gsm8k-test-{row['line']}",
                "instruction": parts.instruction,
                "contexts": list(parts.contexts),
                "question": parts.question,
                "answer": solution(row)[1],
            }
        )
    return made


def write(path: Path, made: list[Row]) -> None:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made), encoding="utf-8")


def main() -> None:
    """Write both files."""
    options = argparse.ArgumentParser(description="Make the GSM8K example corpus.")
    options.add_argument("folder", type=Path, help="holds train.jsonl and test.jsonl of GSM8K")
    options.add_argument("--out", type=Path, default=Path(__file__).parent)
    options.add_argument("--model", default=DEFAULT_MODEL, help="whose tokens are counted")
    chosen = options.parse_args()
    tokenizer = load_tokenizer(chosen.model)
    made = rows(chosen.folder, lambda text: len(tokenizer.encode(text, add_special_tokens=False)))
    write(chosen.out / "gsm8k.jsonl", made[:PROMPTS])
    write(chosen.out / "gsm8k-one-more.jsonl", made[PROMPTS:])


if __name__ == "__main__":
    main()
