"""Sentences that mark answers within answers: each is read as if it stood alone, in time that grows with the text."""

from __future__ import annotations

import time

import pytest

from pipeline.evaluation.answers import choice, number

QUESTION = "Which?\n(A) dog\n(B) red #### fox\n(C) The answer is no"

CHOICES = {
    "the answer is what the answer is: answer: (B)": ("(B)", "what"),
    "answer: dog #### red": (None, "red"),
    "answer: red #### fox": ("(B)", "fox"),
    "The answer is the answer is no": ("(C)", "the"),
    "#### answer: dog.": ("(A)", "dog"),
    "answer: cat\nanswer: Dog. And (B)": ("(A)", "dog"),
    "The answer is A. No, the answer is (B)": ("(A)", "a"),
    "answer is x answer is y answer: (C": (None, "x"),
    "####\n(B)": ("(B)", "b"),
    "Answer:\n\nthe answer is\ndog": ("(A)", "dog"),
    "the answer is no\x0bdog": ("(A)", "no"),
    "": (None, None),
}


@pytest.mark.parametrize(("text", "expected"), CHOICES.items())
def test_a_choice_is_the_first_conclusion_that_is_one(text: str, expected: tuple[str | None, str | None]) -> None:
    assert (choice(text, QUESTION, "(A)"), choice(text, QUESTION, "yes")) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("answer: answer: x = 3 = y, 4", "4"),
        ("the answer is one answer: 7. #### 8", "7"),
        ("#### none answer: #### 5 apples", "5"),
        ("answer is answer is -3 and 4", "-3"),
        ("answer: a-3. 9", "3"),
    ],
)
def test_a_number_is_that_of_the_first_conclusion_with_one(text: str, expected: str) -> None:
    assert number(text) == expected


@pytest.mark.parametrize("marker", ["the answer is ", "answer: ", "#### ", "\\boxed{ "])
def test_a_model_that_repeats_itself_is_read_in_a_moment(marker: str) -> None:
    """Where each sentence was read to the end of the text, 10,000 markers took minutes."""
    text, began = marker * 10_000, time.process_time()
    assert choice(text, QUESTION, "(A)") is None
    assert choice(text + "so (B)", QUESTION, "(A)") == "(B)"
    assert number(text + "so. 7") == "7" and number(text) is None
    assert time.process_time() - began < 5
