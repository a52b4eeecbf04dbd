"""Verdicts as they are read and counted: a win takes both orders, and what cannot be read is nobody's."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

import pytest

from pipeline.evaluation.judging import NOTHING, Judged, Pair, asks, judged, verdict

Judge = Callable[[str, str], str]
"""Answers of A and of B -> what is said of them."""


def pairs(*both: tuple[str, str]) -> list[Pair]:
    return [Pair(f"d{at}", f"Text {{{at}}}.\n\nWho?", ["Ann"], *one) for at, one in enumerate(both)]


def answers(text: str) -> tuple[str, str]:
    a, b = re.findall(r"\[Answer of assistant [AB]\]\n(.*?)\n\[End", text, re.DOTALL)
    return a, b


def by(judge: Judge, some: list[Pair], without: tuple[str, ...] = ()) -> Judged:
    said = {row["id"]: judge(*answers(row["text"])) for row in asks(some, "1")}
    return judged(some, "1", {name: one for name, one in said.items() if name not in without})


def longer(a: str, b: str) -> str:
    return "Well. [[tie]]" if len(a) == len(b) else "I think so. [[A]]" if len(a) > len(b) else "Rather not: [[B]]"


@pytest.mark.parametrize(
    ("said", "read"),
    [
        ("A is right.\n\n[[A]]", "a"),
        ("[[b]]", "b"),
        ("Both are. Verdict: [[Tie]].", "tie"),
        ("[[A]] it is. As I said: [[A]]", "a"),
        ("[[A]] or [[B]]", None),
        ("[[A]] if assistant A is better, [[B]] if assistant B is, [[tie]] if neither is.", None),
        ("A is better.", None),
        ("[A]", None),
        ("[[A or B]]", None),
        ("[[C]]", None),
        ("", None),
    ],
)
def test_a_verdict_is_read_as_it_was_asked_for_or_not_at_all(said: str, read: str | None) -> None:
    assert verdict(said) == read


def test_a_judge_gets_both_orders_and_all_that_belongs_to_them() -> None:
    (one,) = pairs(("ours", " "))
    first, second = asks([one._replace(right=["Ann", "Anna"])], "3")
    assert (first["id"], second["id"]) == ("3:ours-first:d0", "3:theirs-first:d0")
    assert (answers(first["text"]), answers(second["text"])) == (("ours", NOTHING), (NOTHING, "ours"))
    assert all("Text {0}.\n\nWho?" in row["text"] for row in (first, second))
    assert "[A right answer]\nAnn\nAnna\n" in first["text"]
    (no_reference, _) = asks([one._replace(right=[""])], "3")
    assert "right answer" not in no_reference["text"]


def test_an_answer_wins_where_it_is_preferred_in_both_orders() -> None:
    found = by(longer, pairs(("long one", "short"), ("a", "bb"), ("aa", "bb"), ("aaa", "b")))
    assert found.win and found.tie and found.lose and found.margin and found.order
    assert (found.win.value, found.tie.value, found.lose.value) == (0.5, 0.25, 0.25)
    assert found.margin.value == 0.25 and found.margin.low <= 0.25 <= found.margin.high
    assert (found.order.value, found.first, found.second, found.read) == (0.0, 0, 0, 4)


def test_a_judge_that_only_looks_at_the_place_has_no_winner() -> None:
    some = pairs(("a", "b"), ("c", "d"), ("e", "f"))
    for said, first, second in (("[[A]]", 3, 0), ("[[B]]", 0, 3)):
        found = by(lambda a, b, said=said: said, some)  # type: ignore[misc]
        assert found.win and found.tie and found.order
        assert (found.win.value, found.tie.value, found.order.value) == (0.0, 1.0, 1.0)
        assert (found.first, found.second) == (first, second)


def test_a_verdict_that_becomes_a_tie_in_the_other_order_is_one_that_order_decided() -> None:
    found = by(lambda a, b: "[[A]]" if a == "ours" else "[[tie]]", pairs(("ours", "theirs"), ("x", "y")))
    assert found.tie and found.order and (found.tie.value, found.order.value) == (1.0, 0.5)
    assert (found.first, found.second) == (0, 0)


def test_equal_answers_are_ties_that_nobody_is_asked_about() -> None:
    some = pairs(("the same", " the  same\n"), ("longer", "short"))
    assert len([*asks(some, "1")]) == 2
    found = by(longer, some)
    assert found.win and found.tie and found.order
    assert (found.equal, found.read, found.win.value, found.tie.value) == (1, 2, 0.5, 0.5)
    alone = by(longer, some[:1])
    assert alone.tie and alone.tie.value == 1.0 and alone.order is None, "nobody was asked"


def test_what_is_unread_or_unanswered_is_counted_and_in_no_share() -> None:
    some = pairs(("long one", "short"), ("what", "ever"), ("a", "bb"), ("cc", "d"))
    found = by(
        lambda a, b: "no idea" if "what" in a else longer(a, b), some, without=("1:theirs-first:d3", "1:ours-first:d9")
    )
    assert found.win and found.lose and (found.win.value, found.lose.value) == (0.5, 0.5)
    assert (found.pairs, found.unread, found.unanswered, found.equal, found.read) == (4, 1, 1, 0, 2)
    nothing = judged(some, "1", {})
    assert nothing.win is nothing.margin is nothing.order is None and (nothing.unanswered, nothing.read) == (4, 0)
    assert judged([], "1", {}).pairs == 0


def test_the_interval_holds_the_rate_at_which_a_judge_prefers() -> None:
    random_ = random.Random(0)
    found = by(longer, pairs(*(("x" * random_.randint(1, 6), "xxx") for _ in range(400))))
    assert found.win and found.win.low < 1 / 2 < found.win.high and found.win.high - found.win.low < 0.12
