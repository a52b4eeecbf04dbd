"""An answer goes back to the original's words, exactly: against a plain search that tries everything."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.compression.recover_stage import Recover
from pipeline.compression.recovering import Recovered, recover, recovered
from pipeline.compression.runs import words_of
from pipeline.models import ModelPool
from pipeline.stages import Halt, Result, Run
from schemas.document import Document, PromptParts
from schemas.job import JobSpec, TargetSpec
from schemas.recover import RecoverSpec

TEXT = "Janet sold 48 of her red clips in April, and then she sold half as many clips in May."
FEW = ["a", "b", "ab", "ba", "図", "書", "é", "é", "👍🏽", "👩\u200d👩\u200d👧", "\u200fو", ",", ".", "1", "12"]
"""Words that are easily taken for each other, marks, joined emoji, scripts without spaces."""
GAPS = [" ", "", "\n\n", "  "]


def without(text: str, *cuts: str) -> list[int]:
    """The map of ``text`` after each of ``cuts``, in order, was removed."""
    kept, place = [], 0
    for one in cuts:
        at = text.index(one, place)
        kept += [place, at]
        place = at + len(one)
    return [*kept, place, len(text)]


def compressed(text: str, kept: list[int]) -> str:
    return "".join(text[begin:end] for begin, end in zip(kept[::2], kept[1::2], strict=True))


CUT = without(TEXT, " of her red", " and then")


def test_what_the_answer_quotes_gets_back_what_was_cut() -> None:
    assert compressed(TEXT, CUT) == "Janet sold 48 clips in April, she sold half as many clips in May."
    answer = "So Janet sold  48\nclips in April; she sold 24 in May."
    assert recover(TEXT, CUT, answer) == "So Janet sold 48 of her red clips in April; she sold 24 in May."


def test_the_compressed_prompt_itself_gives_the_whole_stretch_it_was_cut_from() -> None:
    assert recover(TEXT, CUT, compressed(TEXT, CUT)) == TEXT


def test_the_spans_say_what_stands_for_what() -> None:
    (one,) = recovered(TEXT, CUT, "(48 clips)"[1:-1])
    assert one == Recovered((0, 8), (11, 30))
    assert TEXT[slice(*one.original)] == "48 of her red clips"


def test_of_several_places_the_shortest_original_is_taken() -> None:
    text = "in the big old house, and in house two, in a house"
    kept = without(text, " the big old", ", and", " two,", " a")
    assert compressed(text, kept) == "in house in house in house"
    assert recover(text, kept, "only in house") == "only in house"
    assert recovered(text, kept, "in house")[0].original == (26, 34)


def test_a_run_goes_no_further_than_its_reach() -> None:
    kept = without(TEXT, " of her red", " in April, and then she sold half as many clips")
    answer = "48 clips in May"
    assert recover(TEXT, kept, answer, reach=20) == "48 of her red clips in May"
    assert recover(TEXT, kept, answer) == TEXT[11:-1]


def test_contexts_that_were_reordered_are_each_by_themselves() -> None:
    text = "one two three\n\nfour five six"
    kept = [15, 19, 24, 28, 13, 15, 0, 3, 7, 13]
    assert compressed(text, kept) == "four six\n\none three"
    assert recover(text, kept, "four six\n\none three") == "four five six\n\none two three"


def test_pieces_of_words_become_the_words() -> None:
    text = "unbelievable stories"
    kept = without(text, "believ")
    assert recover(text, kept, "An unable story") == "An unbelievable story"


def test_nothing_kept_and_nothing_said_is_no_error() -> None:
    assert recover(TEXT, [], "an answer") == "an answer"
    assert recover(TEXT, CUT, "") == ""
    assert recover("", [], "") == ""
    assert recover(TEXT, [5, 5], "Janet") == "Janet"


@pytest.mark.parametrize("kept", [[0, 1000], [-1, 3], [5, 2]])
def test_a_map_of_another_text_is_refused(kept: list[int]) -> None:
    with pytest.raises(ValueError, match="not of a text of"):
        recover(TEXT, kept, "Janet")


def test_words() -> None:
    assert words_of("Où est-ce? 図書館 👍🏽 👩‍👩‍👧 x_1 نص").words == [
        "Où", "est", "-", "ce", "?", "図", "書", "館", "👍🏽", "👩‍👩‍👧", "x_1", "نص"
    ]  # fmt: skip


def recovering(**fields: object) -> Result:
    document = Document(0, "a", PromptParts(contexts=(TEXT,)), "h", fields=fields)
    (outcome,) = Recover(RecoverSpec(kind="recover", reach=20), TargetSpec()).run([document], Run(ModelPool("cpu")))
    assert isinstance(outcome, Result)
    return outcome


def test_the_stage_writes_the_answer_and_where_it_is_from() -> None:
    fields = recovering(generated="So 48 clips in all.", kept=CUT).fields
    assert fields == {"recovered": "So 48 of her red clips in all.", "recovered_from": [3, 14, 11, 33, 18, 19, 84, 85]}


def test_where_there_is_no_map_there_is_nothing_to_recover() -> None:
    assert recovering(generated="48 clips", kept=None).fields == {"recovered": None, "recovered_from": None}


def test_a_job_recovers_what_it_has_cut_and_asked() -> None:
    with pytest.raises(Halt, match="needs a generate stage before it"):
        recovering(kept=CUT)
    stages = [{"kind": "generate"}, {"kind": "recover"}, {"kind": "compress", "rate": 0.5}]
    with pytest.raises(ValidationError, match="put compress and generate before it"):
        JobSpec.model_validate({"input": {"path": "x"}, "stages": stages})
    stages = [{"kind": "compress", "fidelity": "reference"}, {"kind": "generate"}, {"kind": "recover"}]
    with pytest.raises(ValidationError, match='leave recover out, or take fidelity = "paper"'):
        JobSpec.model_validate({"input": {"path": "x"}, "stages": stages})


texts = st.lists(st.tuples(st.sampled_from(FEW), st.sampled_from(GAPS)), max_size=24).map(
    lambda pairs: "".join(word + gap for word, gap in pairs)
)


@st.composite
def cut_texts(draw: st.DrawFn) -> tuple[str, list[int]]:
    text = draw(texts)
    edges = draw(st.lists(st.integers(0, len(text)), unique=True, max_size=12).map(sorted))
    return text, edges[: len(edges) // 2 * 2]


def by_trying(text: str, kept: list[int], answer: str, reach: int | None) -> list[Recovered]:
    """The same by its definition: every run at every place, character by character."""
    origin = [place for begin, end in zip(kept[::2], kept[1::2], strict=True) for place in range(begin, end)]
    prompt, said = words_of(compressed(text, kept)), words_of(answer)
    places = [(origin[begin], origin[end - 1] + 1, begin, end) for begin, end in prompt.places.tolist()]

    def follows(word: int) -> bool:
        before, here = places[word], places[word + 1]
        return reach is None or here[0] - before[1] - (here[2] - before[3]) <= reach

    def run(at: int, word: int) -> int:
        count = 0
        while at + count < len(said.words) and word + count < len(places):
            if said.words[at + count] != prompt.words[word + count] or (count and not follows(word + count - 1)):
                break
            count += 1
        return count

    found, at = [], 0
    while at < len(said.words):
        runs = [run(at, word) for word in range(len(places))]
        if longest := max(runs, default=0):
            here = [word for word, count in enumerate(runs) if count == longest]
            best = min(here, key=lambda word: places[word + longest - 1][1] - places[word][0])
            answered = int(said.places[at, 0]), int(said.places[at + longest - 1, 1])
            found.append(Recovered(answered, (places[best][0], places[best + longest - 1][1])))
        at += longest or 1
    return found


@given(cut_texts(), texts, st.sampled_from([None, 0, 3]))
def test_it_finds_what_trying_everything_finds(cut: tuple[str, list[int]], answer: str, reach: int | None) -> None:
    text, kept = cut
    assert list(recovered(text, kept, answer, reach)) == by_trying(text, kept, answer, reach)


@given(cut_texts())
def test_the_compressed_prompt_gives_back_every_span_it_was_cut_from(cut: tuple[str, list[int]]) -> None:
    text, kept = cut
    short = compressed(text, kept)
    if not short.strip():
        assert recover(text, kept, short) == short
        return
    (one,) = recovered(text, kept, short)
    visible = [at for begin, end in zip(kept[::2], kept[1::2], strict=True) for at in range(begin, end)
               if not text[at].isspace()]  # fmt: skip
    assert one.original == (visible[0], visible[-1] + 1)
    assert text[slice(*one.original)] in recover(text, kept, short)


@given(texts, texts)
def test_an_uncut_prompt_changes_no_word_of_an_answer(text: str, answer: str) -> None:
    assert words_of(recover(text, [0, len(text)], answer)).words == words_of(answer).words


@pytest.mark.parametrize("word", ["the ", "x", "図", "a b c "])
def test_a_megabyte_takes_seconds_at_most(word: str) -> None:
    """The worst there is: everything stands everywhere."""
    text = word * (2**20 // len(word))
    kept = [place for begin in range(0, len(text) - 40, 40) for place in (begin, begin + 21)]
    began = time.process_time()
    recover(text, kept, (word * 3 + "end ") * 2_500)
    assert time.process_time() - began < 20
