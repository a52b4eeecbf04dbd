"""What a target said before is there to copy from: its words, and what mostly came after each. No answer changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_drafting import PROMPTS, SAMPLED, line, said

from pipeline.generation.earlier import Earlier
from pipeline.generation.kept_bigrams import earlier_answers
from pipeline.generation.local import Generation, LocalGenerator
from pipeline.generation.maxgram import LONGEST, PADDING, chained, propose
from pipeline.generation.prompts import Prompt
from pipeline.models import LoadedModel, ModelPool
from pipeline.stages import Result, Run, build
from schemas.document import Document, PromptParts
from schemas.job import JobSpec
from schemas.stage import GenerateSpec


def chains(follows: Sequence[int], length: int) -> torch.Tensor:
    found = torch.empty(len(follows), length, dtype=torch.int32)
    chained(torch.tensor(follows), found)
    return found


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([1, 2, 3], [4, 0, 4]),  # nothing came before
        ([4], [0, 4, 0]),
        ([3, 1, 3], [1, 3, 1]),  # what was copied needs no table
        ([2, 3, 3], [3, 3, 3]),
        ([*range(LONGEST), 9, *range(LONGEST)], [9, 0, 1]),
    ],
)
def test_a_table_speaks_where_nothing_matches(tokens: list[int], expected: list[int]) -> None:
    table = chains([4, 1, 2, 4, 0, 5, 6, 7, 8, 9], 5)
    assert propose(line(*tokens), torch.tensor([PADDING + len(tokens)]), 3, table).tolist() == [expected]


def test_the_last_answers_are_kept_and_a_majority_decides_what_follows() -> None:
    earlier = Earlier(9)
    assert not len(earlier.text(2048)) and earlier.follows.tolist() == list(range(9))
    for answer in ([1, 2, 3], [1, 2], [], [7], [1, 4, 1, 2]):
        earlier.add(answer, 6)
    assert earlier.text(2048).tolist() == [7, 1, 4, 1, 2]  # whole answers
    earlier.count()
    assert earlier.follows.tolist() == [0, 2, 3, 3, 1, 5, 6, 7, 8]
    assert earlier.votes[1] == 2  # 2, 2, not 4, 2
    earlier.add(list(range(8)), 6)
    assert earlier.text(2048).tolist() == [2, 3, 4, 5, 6, 7]  # or the end of one
    for _ in range(4):
        earlier.add([1, 5], 6)
    earlier.count()
    assert earlier.follows[1] == 5  # what is said no longer is forgotten


@pytest.mark.parametrize("most", [1, 3, 100])
def test_what_is_counted_little_by_little_is_what_is_counted_at_once(most: int) -> None:
    drawn = np.random.default_rng(most)
    answers = [drawn.integers(0, 5, length).tolist() for length in (1, 9, 2, 0, 30, 1)]
    some, whole = Earlier(5), Earlier(5)
    for answer in answers:
        for one in (some, whole):
            one.add(answer, 6)
        some.count(0)
    assert (some.follows == np.arange(5)).all()
    whole.count()
    expected, known = 8 + 1 + 29, whole.learned
    for left in range(expected, -1, -most):
        before = some.votes.copy(), some.learned
        some.count(most)
        assert np.abs(some.votes - before[0]).sum() <= most and some.learned == before[1] + (left > 0)
    assert (some.follows == whole.follows).all() and (some.votes == whole.votes).all()
    learned = some.learned
    for one in (some, whole):
        one.count()
    assert some.learned == learned and whole.learned == known  # nothing is left


def test_a_table_that_was_kept_is_set_against_all_that_was_said() -> None:
    earlier = Earlier(4)
    earlier.add([1, 2] * 4, 8)
    earlier.learn(np.array([3, 3, 3, 3]), np.array([0, 2, 5, 1]))
    assert earlier.follows.tolist() == [0, 2, 3, 3] and earlier.votes.tolist() == [0, 4, 5, 1]


@pytest.fixture(scope="module")
def loaded(models: dict[str, Path]) -> LoadedModel:
    return ModelPool("cpu").causal_lm(str(models["llama"]))


def generate(loaded: LoadedModel, earlier: Earlier | None = None, **settings: Any) -> list[Generation]:
    spec = GenerateSpec(kind="generate", **settings)
    return LocalGenerator(loaded, spec, Run(ModelPool("cpu")), (), earlier).generate(PROMPTS)


@pytest.mark.parametrize("settings", [{}, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("batch_tokens", [1, 300, 16384])
def test_what_was_said_before_takes_few_passes_to_say_again(
    loaded: LoadedModel, settings: dict[str, Any], batch_tokens: int
) -> None:
    plain, earlier = generate(loaded, **settings), Earlier.of(loaded.model)
    first, second = (generate(loaded, earlier, draft_tokens=7, batch_tokens=batch_tokens, **settings) for _ in range(2))
    assert said(first) == said(second) == said(plain)
    alone = generate(loaded, draft_tokens=7, draft_earlier=0, batch_tokens=batch_tokens, **settings)
    passes = [sum(one.passes for one in some) for some in (second, first, alone)]
    assert passes[0] < 0.5 * passes[2] and passes[0] < passes[1] and said(alone) == said(plain)


def test_bigrams_alone_help_where_the_words_are_gone(loaded: LoadedModel) -> None:
    """Only the last token of answers is kept to copy from, and all bigrams."""
    earlier = Earlier.of(loaded.model)
    first, second = (generate(loaded, earlier, draft_tokens=3, draft_earlier=1) for _ in range(2))
    assert said(first) == said(second)
    assert sum(one.passes for one in second) < 0.9 * sum(one.passes for one in first)


def test_nothing_is_learned_where_nothing_copies(loaded: LoadedModel) -> None:
    earlier = Earlier.of(loaded.model)
    generate(loaded, earlier)
    generate(loaded, earlier, draft_tokens=5, draft_earlier=0)
    earlier.count()
    assert earlier.learned == 0 and not len(earlier.text(2048))


def test_a_job_copies_no_more_than_it_says_of_what_another_kept(loaded: LoadedModel) -> None:
    earlier = Earlier.of(loaded.model)
    first, second = (generate(loaded, earlier, draft_tokens=3, draft_earlier=most) for most in (2048, 8))
    assert said(first) == said(second)
    assert len(earlier.text(2048)) <= 8 and len(earlier.text(3)) == 3


def test_each_answer_helps_the_next_one_of_its_shard(loaded: LoadedModel) -> None:
    """The same prompt three times, one at a time."""
    spec = GenerateSpec(kind="generate", draft_tokens=7, batch_tokens=1)
    prompts = [Prompt(PROMPTS[1].ids, 40, seed) for seed in range(3)]
    found = LocalGenerator(loaded, spec, Run(ModelPool("cpu"))).generate(prompts)
    assert len({tuple(one.tokens) for one in found}) == 1
    assert found[1].passes == found[2].passes <= 2 + 40 / 8 < found[0].passes


def test_answers_that_end_together_are_known_to_the_next_ones_of_their_shard(loaded: LoadedModel) -> None:
    """The same prompt six times, three at a time; only the last token of answers is kept to copy from."""
    spec = GenerateSpec(kind="generate", draft_tokens=3, draft_earlier=1, batch_tokens=400)
    asked = [Prompt(PROMPTS[1].ids, 40, seed) for seed in range(6)]
    found = LocalGenerator(loaded, spec, Run(ModelPool("cpu"))).generate(asked)
    first, second = ({one.passes for one in some} for some in (found[:3], found[3:]))
    assert len(first) == len(second) == 1 and max(second) < 0.9 * min(first)


def test_bigrams_are_counted_while_others_are_written(loaded: LoadedModel) -> None:
    """One answer at a time: there is nothing behind which the last could be counted."""
    earlier = Earlier.of(loaded.model)
    generate(loaded, earlier, draft_tokens=3, batch_tokens=1)
    counted = earlier.learned
    assert counted and earlier.votes.any()
    earlier.count()
    assert earlier.learned == counted + 1


def test_as_much_as_pays_counts_on_them(loaded: LoadedModel) -> None:
    plain, earlier = generate(loaded), Earlier.of(loaded.model)
    for _ in range(2):
        assert said(generate(loaded, earlier, draft_tokens="auto", batch_tokens=300)) == said(plain)
    assert sorted(earlier.text(2048)) == sorted(2 * [token for one in plain for token in one.tokens])


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CONTEXTMILL_CACHE_DIR", str(tmp_path))
    return tmp_path / "bigrams"


def test_bigrams_are_kept_for_later_workers(models: dict[str, Path], cache: Path) -> None:
    """As a stage keeps them: by the model's digest."""
    stage = {"kind": "generate", "max_new_tokens": 40, "chat": False, "draft_tokens": 3, "draft_earlier": 1}

    def passes(**more: Any) -> int:
        """Of a worker of its own."""
        target = {"model": str(models["llama"])}
        job = JobSpec.model_validate({"input": {"path": "x"}, "target": target, "stages": [{**stage, **more}]})
        texts = [PromptParts(contexts=(text,)) for text in ("How many clips?", "Weng earns $12 an hour.")]
        documents = [Document(at, str(at), one, one.content_hash()) for at, one in enumerate(texts)]
        outcomes = build(job, 0).run(documents, Run(ModelPool("cpu")))
        return sum(one.fields["target_passes"] for one in outcomes if isinstance(one, Result))

    assert passes(draft_earlier=0) and not cache.exists()
    first, second = passes(), passes()
    (file,) = cache.iterdir()
    assert second < first
    file.write_bytes(file.read_bytes()[:100])
    assert passes() == first and len(list(cache.iterdir())) == 1


def test_tables_of_another_vocabulary_or_none_are_not_read(loaded: LoadedModel, cache: Path) -> None:
    def kept(**tables: Any) -> Earlier:
        cache.mkdir(exist_ok=True)
        np.savez(cache / f"{loaded.ref.digest}.npz", **tables)
        vars(loaded.model).pop("contextmill_earlier", None)
        with earlier_answers(loaded) as found:
            return found

    size = len(Earlier.of(loaded.model).follows)
    follows, votes = np.roll(np.arange(size, dtype=np.int32), 1), np.ones(size, np.int32)
    assert (kept(follows=follows, votes=votes).follows == follows).all()
    file = cache / f"{loaded.ref.digest}.npz"
    whole = file.read_bytes()
    for place in range(0, len(whole), max(1, len(whole) // 60)):  # a flipped byte costs drafts at most
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
        vars(loaded.model).pop("contextmill_earlier", None)
        with earlier_answers(loaded) as found:
            assert ((found.follows >= 0) & (found.follows < size)).all()
    untold = [
        {"follows": follows}, {"follows": follows[1:], "votes": votes[1:]}, {"follows": follows + 1, "votes": votes},
        {"follows": follows - 1, "votes": votes}, {"follows": follows.astype(float), "votes": votes},
        {"follows": follows, "votes": -votes},
    ]  # fmt: skip
    for one in untold:
        assert (kept(**one).follows == np.arange(size)).all()
    vars(loaded.model).pop("contextmill_earlier", None)


def test_originals_stand_beside_them(loaded: LoadedModel) -> None:
    """The latest of equal matches is taken: the document's own."""
    earlier = Earlier.of(loaded.model)
    earlier.add(list(range(5, 300)), 2048)
    spec = GenerateSpec(kind="generate", draft_tokens=7)
    (plain,) = LocalGenerator(loaded, spec, Run(ModelPool("cpu"))).generate([PROMPTS[0]])
    own = replace(PROMPTS[0], copied=[3, 4, *plain.tokens, 5])
    (found,) = LocalGenerator(loaded, spec, Run(ModelPool("cpu")), (), earlier).generate([own])
    assert found.tokens == plain.tokens and found.passes <= 2 + len(plain.tokens) / 8
