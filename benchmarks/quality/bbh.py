"""BIG-Bench Hard (Suzgun et al., 2023) with its chain-of-thought prompts: an answer among options, a number, a word."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.quality.corpora import Row, read

TASKS = (
    "reasoning_about_colored_objects", "object_counting", "navigate", "date_understanding", "boolean_expressions",
    "penguins_in_a_table", "logical_deduction_three_objects", "web_of_lies", "temporal_sequences",
)  # fmt: skip
"""Nine of the 27, of every form of answer. A task's questions share its worked examples, hence one compressed text: of
three tasks, what a method happened to cut weighed more than the method."""


def few_shot(data: Path, tasks: Sequence[str] = TASKS, shots: int = 3) -> Iterator[Row]:
    """The tasks' questions behind their first ``shots`` worked examples, a question of each task in turn."""
    prompts = {task: _prompt(data, task) for task in tasks}
    rows = {task: [row for row in read(data / "bbh" / "bbh.jsonl") if row["task"] == task] for task in tasks}
    for number in range(max(map(len, rows.values()))):
        for task in tasks:
            if number < len(rows[task]):
                row, (instruction, examples) = rows[task][number], prompts[task]
                yield Row(
                    id=row["id"],
                    instruction=instruction,
                    contexts=examples[:shots],
                    question=f"Q: {row['input'].strip()}\nA: Let's think step by step.",
                    answer=row["target"],
                )


def _prompt(data: Path, task: str) -> tuple[str, list[str]]:
    """The task's description and its worked examples; what stands above the dashes is a notice, not the prompt."""
    text = (data / "bbh" / "cot-prompts" / f"{task}.txt").read_text(encoding="utf-8").partition("-----\n")[2]
    instruction, *examples = re.split(r"\n\n(?=Q:)", text.strip())
    return instruction.strip(), [example.strip() for example in examples]
