"""What a model is asked for prompts, and which of its prompts and answers become rows."""

from __future__ import annotations

import pytest

from pipeline.memory.prompting import GENERAL, Written, answered, asks, cleaned, prompts

TEXT = "Janet has 3 clips. She sold one in May. Who knows why? Nobody.\nThe end came in June."


def test_specific_prompts_are_asked_for_about_every_part_in_turn() -> None:
    rows = list(asks([TEXT, "One sentence."], 4))
    assert [row["id"] for row in rows] == ["0-0", "0-1", "0-2", "0-3", "1-0", "1-1", "1-2", "1-3"]
    assert all(row["contexts"] == [TEXT] for row in rows[:4])
    parts = ("3 clips", "in May", "Who knows", "Nobody")
    assert all(part in row["question"] for part, row in zip(parts, rows, strict=False))
    assert ["question" in row["question"].split(".")[0] for row in rows] == [True, False] * 4
    assert len({row["question"] for row in rows[:4]}) == 4


@pytest.mark.parametrize(
    ("said", "ended", "prompt"),
    [
        ("Who sold one?", True, "Who sold one?"),
        ('Question: "Who sold one?"', True, "Who sold one?"),
        ("**Question 1:** Who sold one?\n\nAnswer: Janet", False, "Who sold one?"),
        ("Question:\nWho sold one?", True, "Who sold one?"),
        ("1. Who sold one?\n2. Why?", False, "Who sold one?"),
        ("- Name the month.", True, "Name the month."),
        ("Who sold one", False, None),  # cut off
        ("Who?", True, None),
        ("", True, None),
        ("word " * 80, True, None),
    ],
)
def test_the_prompt_is_read_out_of_what_was_written(said: str, ended: bool, prompt: str | None) -> None:
    assert cleaned(Written(said, ended)) == prompt


def test_rows_are_what_was_asked_and_answered_to_an_end() -> None:
    asked, echo = Written("Who sold one?", True), Written("Another text.", True)
    said = {"0-0": asked, "0-1": Written("'Who sold one?'", True), "0-2": Written("Why", False), "1-0": echo}
    found = list(prompts([TEXT, "Another text."], said, 3, 2))
    assert [(row["input"], row["prompt"]) for row in found] == [
        (TEXT, "Who sold one?"), *((text, one) for text in (TEXT, "Another text.") for one in GENERAL[:2]),
    ]  # fmt: skip
    assert len({row["id"] for row in found}) == 5
    texts = Written(" Janet. ", True), Written("cut o", False), Written(" ", True)
    answers = {row["id"]: one for row, one in zip(found, texts, strict=False)}
    assert list(answered(found, answers)) == [{"input": TEXT, "prompt": "Who sold one?", "answer": "Janet."}]
