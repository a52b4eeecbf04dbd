"""What copying would have made of answers, known without drafting: the same as when it is done."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from pipeline.generation.maxgram import PADDING, chained, propose
from pipeline.generation.shadow import Shadow, copied

ANSWERS = Path(__file__).parents[2] / "data" / "decoding" / "smollm2_greedy.parquet"


@pytest.mark.parametrize("words", [2, 5, 40, 400])
def test_it_copies_what_would_be_drafted(words: int) -> None:
    drawn = np.random.default_rng(words)
    for length in [1, 2, 3, 7, 8, 9, 20, *drawn.integers(2, 300, 60).tolist()]:
        text = drawn.integers(0, words, length + 20)  # what stands behind is not written yet
        line = torch.from_numpy(np.concatenate([np.full(PADDING, -1), text]))[None]
        expected = propose(line, torch.tensor([PADDING + length]), 15)[0].tolist()
        assert copied(text, length, 15) == expected, length
        follows = drawn.permutation(words)
        chains = torch.empty(words, 15, dtype=torch.int32)
        chained(torch.from_numpy(follows), chains)
        expected = propose(line, torch.tensor([PADDING + length]), 15, chains)[0].tolist()
        assert copied(text, length, 15, follows) == expected, length


def test_rounds_that_never_were_end_where_those_that_are_would() -> None:
    """One row, all of whose rounds are looked at; it is written one token at a time, or several."""
    drawn = np.random.default_rng(0)
    prompt = drawn.integers(0, 4, 50)
    answer = np.concatenate([prompt[10:35], drawn.integers(0, 4, 40), prompt[:30], drawn.integers(4, 9, 20)])
    text, place, expected = np.concatenate([prompt, answer]), len(prompt) + 1, []
    while place < len(text):
        drafts = copied(text, place, 15)
        passed = next((at for at, one in enumerate(drafts) if at + place >= len(text) or one != text[at + place]), 15)
        if place + passed >= len(text):
            break
        expected.append(passed)
        place += passed + 1
    shadow, found, made = Shadow(), [], list[int]()
    shadow.begin(3, [prompt[:20], prompt[20:20], prompt[20:]], made, len(answer))
    for token in answer.tolist():
        made.append(token)
        found += shadow.wrote([3], True)
    assert found == expected and max(expected) > 10 and 0 in expected


def test_drafts_in_earnest_are_not_looked_at_as_well() -> None:
    shadow, made = Shadow(), list[int]()
    shadow.begin(0, [np.arange(20) % 4], made, 30)
    for at in range(9):
        made += [at % 4, (at + 1) % 4]
        assert shadow.wrote([0], False) == []
    made.append(3)
    assert shadow.wrote([0], True) == []
    made.append(17)
    assert shadow.wrote([0], True) == []  # begun in the middle of something
    made.append(18)
    assert shadow.wrote([0], True) == [0]


@pytest.mark.parametrize("rows", [1, 2, 9])
def test_of_many_rows_each_has_its_turn(rows: int) -> None:
    shadow, looked = Shadow(), set[int]()
    made = [list[int]() for _ in range(rows)]
    for row in range(rows):
        shadow.begin(row, [np.full(4, row)], made[row], 999)
    for _ in range(600):
        for one in made:
            one.append(50 + len(one))
        shadow.wrote(range(rows), True)
        looked.update(shadow._looks)
        assert len(shadow._looks) == min(rows, 2)
    assert looked == set(range(rows))


def test_texts_are_laid_together_of_no_row_but_those_that_are_looked_at() -> None:
    shadow, shared = Shadow(), np.arange(2048) % 7
    for row in range(9):
        shadow.begin(row, [shared, np.full(4, row)], [1], 9)
    assert shadow.wrote(range(9), True) == []
    laid = {row for row, one in shadow._rows.items() if "text" in vars(one)}
    assert laid == set(shadow._looks) and len(laid) == 2
    assert all(one.texts[0] is shared for one in shadow._rows.values())


def test_what_passes_is_the_same_however_many_rows_there_are() -> None:
    """A look that begins anywhere falls into a long copy more often than before one: with eight rows at once copies
    once looked more than twice as good as they are."""
    answers = pq.read_table(ANSWERS, columns=["prompt", "answer"]).slice(0, 96).to_pylist()
    prompts, tokens = ([np.array(row[name]) for row in answers] for name in ("prompt", "answer"))
    means = []
    for at_once in (1, 8):
        found: list[int] = []
        for first in range(0, len(answers), at_once):
            shadow, rows, made = Shadow(), range(first, first + at_once), {}
            for row in rows:
                made[row] = list[int]()
                shadow.begin(row, [prompts[row]], made[row], len(tokens[row]))
            for place in range(len(tokens[first])):
                for row in rows:
                    made[row].append(int(tokens[row][place]))
                found += shadow.wrote(rows, True)
        means.append(np.mean(found))
    assert abs(means[1] - means[0]) < 0.25 * means[0]


def test_rows_that_have_ended_are_forgotten() -> None:
    shadow = Shadow()
    for row in range(3):
        shadow.begin(row, [np.arange(5)], [1], 9)
    shadow.wrote([0, 1], True)
    shadow.keep([1])
    assert set(shadow._rows) == set(shadow._looks) == {1}
    made = [1]
    shadow.begin(0, [np.arange(5)], made, 9)
    assert shadow.wrote([0], True) == []
    made.append(9)
    assert shadow.wrote([0], True) == [0]
