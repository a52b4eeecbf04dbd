"""What a text says the answer is: the ways in which models end, each as the field would read it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.evaluation.answers import choice, number, references, short_answer

EXAMPLES = Path(__file__).parents[3] / "examples" / "gsm8k.jsonl"

NUMBERS = {
    "The answer is 18.": "18",
    "the answer is $1,234.50.": "1234.5",
    "So she pays $5 + $6 = $11. The answer is $11 per week.": "11",
    "The answer is 12 + 8 = 20 apples.": "20",
    "The answer is 5 hours and 30 minutes": "5",
    "She has 3.\n#### 72": "72",
    "**Answer:** 45%": "45",
    "Therefore, the final answer is:\n\n\\boxed{1{,}200}": "1200",
    "Answer = -7": "-7",
    "He loses −3 dollars": "-3",
    "10-5 is what is left, 5": "5",
    "it took 3-4 days": "4",
    "The answer is 36. Let me know if the answer is unclear!": "36",
    "First 2 + 2 = 4.\nThen 4 * 3 = 12": "12",
    "The answer is 3.00": "3",
    "The answer is 007.": "7",
    "The answer is .5": "0.5",
    "The answer is -0": "0",
    "The answer is 1,2,3": "1",
    "The answer is 18.\n\nQuestion: Tom has 3 cats. The answer is 99.": "18",
    "So 4 are left.\n\nQ: What is 7 times 7?\nA: The answer is 49.": "4",
    "Question: Tom has 3 cats and 5 dogs. How many?\nHe has 3 + 5 = 8.\nThe answer is 8.": "8",
    "Sure! Here it is.\n\n**Problem 1:** Tom has 3 cats.\nThe answer is 3.": "3",
    "The answer is ١٨": "18",
    "So 6 * 3 = 18.\nThe answer is 18\n\nTom bought 3 cats.\n3 + 4 = 7\nThe answer is 7": "18",
    "The answer is 18\n\n Question Tom bought 3 cats\nThe answer is 7": "18",
    "So 4 are left.\nQuestion Tom bought 3 cats, 4 dogs. How many\n3 + 4 = 7": "4",
    "Answer: He has 3 cats and buys 4.\nThe answer is 7.": "7",
    "Answer: first 3 cats.\nAnswer: 7": "7",
    "#### 1. Count the cats\n3 + 4 = 7\n#### 7": "7",
    "What is left:\n- 18": "18",
    "3 times more quarters than the 4 dimes.\nQ = 3*4 = 12\nThe answer is 12.": "12",
    "She has 4 cats.\nQ is the cost: 20\nThe answer is 20.": "20",
    "3 + 4 = 7\n#### 7\n\nTom bought 5 cats. The answer is 99.": "7",
    "3 + 4 = 7\nAnswer: 7\n\nTom bought 5 cats. The answer is 99.": "7",
    "Answer: 7 apples.\nTom bought 5 cats. The answer is 99.": "7",
    "To know what the answer is we first add 5 and 6.\nThe answer is 11.": "11",
    "x = 2**5 = 32": "32",
    "3*4 eggs make 12": "12",
    "He has 3*4": "4",
    "I do not know.": None,
    "": None,
    "####": None,
}


@pytest.mark.parametrize(("text", "expected"), NUMBERS.items())
def test_the_number_that_a_solution_ends_in(text: str, expected: str | None) -> None:
    assert number(text) == expected


def test_worked_examples_end_in_their_own_number() -> None:
    """Every demonstration of the shipped corpus, with a following question behind it."""
    rows = [json.loads(line) for line in EXAMPLES.read_text(encoding="utf-8").splitlines()]
    for context in (context for row in rows for context in row["contexts"]):
        said = context.rpartition("The answer is ")[2].rstrip(".")
        assert number(context.partition("\n")[2] + "\n\nQuestion: What is 1 + 1?\nThe answer is 2.") == number(said)


def test_long_numbers_are_compared_to_the_last_digit() -> None:
    one, other = "9" * 5000 + "1", "9" * 5000 + "2"
    assert number(one) == one != number(other)


DATES = "What is the date?\nOptions:\n(A) 12/14/2026\n(B) 12/14/1937"
CHOICES = [
    ("That is 12/14/1937. So the answer is (B).", "(A)", "(B)"),
    ("So the answer is B.", "(A)", "(B)"),
    ("The answer is 12/14/1937.", "(A)", "(B)"),
    ("(B) 12/14/1937", "(A)", "(B)"),
    ("B", "(A)", "(B)"),
    ("Option B: it is", "(A)", "(B)"),
    ("The answer is **(B)**.", "(A)", "(B)"),
    ("So the answer is (B).\n\nQ: Tomorrow is...\nA: So the answer is (A).", "(A)", "(B)"),
    ("So the answer is 5.\n\nI have a flute, a clarinet. So the answer is 2.", "9", "5"),
    ("So the answer is (B).\nToday is Monday. So the answer is (A).", "(A)", "(B)"),
    ("We must decide whether the answer is yes or no. That is 1937. So the answer is (B).", "(A)", "(B)"),
    ("We must see whether the answer is True or False. not True = False. So the answer is False.", "True", "false"),
    ("A date", "(A)", None),
    ("nothing of the kind", "(A)", None),
    ("so we have 1 + 7 = 8. So the answer is 8.", "9", "8"),
    ("So the answer is -35.", "2", "-35"),
    ("we get not True = False. So the answer is False.", "True", "false"),
    ("Yes, because it fits.", "No", "yes"),
    ("The argument is deductively valid.\nSo the answer is invalid", "valid", "invalid"),
    ("So the answer is ] ) >.", "] )", "] ) >"),
    ("So the answer is  syndrome  therefrom.", "a b", "syndrome therefrom"),
    ("", "(A)", None),
    ("", "yes", None),
]


@pytest.mark.parametrize(("text", "reference", "expected"), CHOICES)
def test_the_answer_among_options(text: str, reference: str, expected: str | None) -> None:
    assert choice(text, DATES, reference) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    {
        "Paris": "Paris",
        "\n\nAnswer: Paris\nIt is in France.": "Paris",
        "The answer is Wilhelm Conrad Röntgen.": "Wilhelm Conrad Röntgen.",
        "A: 1973": "1973",
        "A: The answer is 1973": "The answer is 1973",
        "Answers vary": "Answers vary",
        "Answer the call": "Answer the call",
        "The answer isn't known": "The answer isn't known",
        "The answer is:\n\n Paris\nIt is": "Paris",
        "The answer is:": None,
        "  \n ": None,
    }.items(),
)
def test_the_first_line_answers_a_question(text: str, expected: str | None) -> None:
    assert short_answer(text) == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Paris", ["Paris"]),
        ('["Paris", "City of Paris"]', ["Paris", "City of Paris"]),
        ('[""]', [""]),
        ("[]", ["[]"]),
        ("[1, 2]", ["[1, 2]"]),
        ("[sic] a word", ["[sic] a word"]),
        ("[" * 100_000, ["[" * 100_000]),
    ],
)
def test_several_references_are_a_json_list_of_texts(answer: str, expected: list[str]) -> None:
    assert references(answer) == expected
