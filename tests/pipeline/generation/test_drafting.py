"""Drafts change how soon an answer is there, never a word of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from pipeline.generation import engine
from pipeline.generation.costs import Costs
from pipeline.generation.decoding import passes_for
from pipeline.generation.ending import Ending
from pipeline.generation.lines import Lines
from pipeline.generation.local import Generation, LocalGenerator
from pipeline.generation.maxgram import LONGEST, PADDING, propose
from pipeline.generation.paces import Way
from pipeline.generation.policy import COPYING, Policy
from pipeline.generation.prompts import Prompt
from pipeline.generation.reading import Reader
from pipeline.models import LoadedModel, ModelPool
from pipeline.passes.packed import SPARE
from pipeline.passes.padded import PaddedPasses
from pipeline.stages import Run, Stopped
from schemas.stage import MOST_DRAFTS, GenerateSpec

LENGTHS = (9, 70, 2, 41, 1, 40, 23, 23)
PROMPTS = [
    Prompt(torch.randint(3, 300, (length,), generator=torch.Generator().manual_seed(at)).tolist(), 40 - 3 * at, seed=at)
    for at, length in enumerate(LENGTHS)
]
SAMPLED: dict[str, Any] = {"temperature": 0.8, "top_p": 0.9, "top_k": 40}


Said = list[tuple[str, list[int], str]]
Plainly = Callable[[dict[str, Any]], Said]


def line(*tokens: int) -> torch.Tensor:
    return torch.tensor([[-1] * PADDING + list(tokens) + [-1] * 20])


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([1, 2, 3, 4, 9, 2, 3], [4, 9, 2, 3]),  # what followed the last two
        ([3, 7, 1, 2, 3, 8, 5, 2, 3], [8, 5, 2, 3]),  # a longer match before a later one
        ([2, 3, 7, 2, 3, 8, 2, 3], [8, 2, 3, 8]),  # the later of two, which then runs in circles
        ([5, 5], [5, 5, 5, 5]),
        ([1, 2, 1, 2], [1, 2, 1, 2]),
        ([1, 2, 3], [3, 3, 3, 3]),  # nothing came before
        ([4], [4, 4, 4, 4]),  # behind vectors alone
        ([*range(10), 50, *range(1, 10)], [50, 1, 2, 3]),
    ],
)
def test_what_followed_the_longest_match(tokens: list[int], expected: list[int]) -> None:
    found = propose(line(*tokens), torch.tensor([PADDING + len(tokens)]), 4)
    assert found.tolist() == [expected]


def test_lines_of_any_length_are_looked_at_at_once_and_as_by_hand() -> None:
    random = torch.Generator().manual_seed(0)
    lengths = torch.randint(2, 60, (200,), generator=random)
    tokens = torch.full((200, PADDING + 80), -1)
    for row, length in enumerate(lengths.tolist()):
        tokens[row, PADDING : PADDING + length] = torch.randint(0, 4, (length,), generator=random)
        tokens[row, PADDING + length :] = 3  # what was written and given up
    found = propose(tokens, PADDING + lengths, 6)
    for row, length in enumerate(lengths.tolist()):
        text = tokens[row, PADDING : PADDING + length].tolist()
        assert found[row].tolist() == by_hand(text, 6)


def by_hand(text: list[int], count: int) -> list[int]:
    for size in range(min(LONGEST, len(text) - 1), 0, -1):
        for end in range(len(text) - 1, size - 1, -1):
            if text[end - size : end] == text[-size:]:
                period = len(text) - end
                return [text[end + place % period] for place in range(count)]
    return [text[-1]] * count


def generate(loaded: LoadedModel, models: Sequence[LoadedModel] = (), **settings: Any) -> list[Generation]:
    spec = GenerateSpec(kind="generate", drafters=[one.ref.name for one in models], **settings)
    return LocalGenerator(loaded, spec, Run(ModelPool("cpu")), models).generate(PROMPTS)


@pytest.fixture(scope="module")
def plainly(relatives: list[LoadedModel]) -> Plainly:
    """What the first of the relatives says by itself, by settings."""
    known: dict[str, Said] = {}

    def plain(settings: dict[str, Any]) -> Said:
        if str(settings) not in known:
            known[str(settings)] = said(generate(relatives[0], **settings))
        return known[str(settings)]

    return plain


def said(generations: list[Generation]) -> Said:
    return [(one.text, one.tokens, one.finish_reason) for one in generations]


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox", "gpt2"])
@pytest.mark.parametrize("settings", [{}, SAMPLED], ids=["greedy", "sampled"])
def test_answers_are_those_of_plain_decoding(
    models: dict[str, Path], architecture: str, settings: dict[str, Any]
) -> None:
    loaded = ModelPool("cpu").causal_lm(str(models[architecture]))
    assert passes_for(loaded) is PaddedPasses
    plain = generate(loaded, **settings)
    assert all((one.passes, one.drafted) == (len(one.tokens), 0) for one in plain)
    for tokens, batch_tokens in ((3, 1), (3, 16384), (31, 200), (31, 16384)):
        drafted = generate(loaded, draft_tokens=tokens, batch_tokens=batch_tokens, **settings)
        assert said(drafted) == said(plain)
        assert all(one.passes <= len(one.tokens) for one in drafted)
        assert all(one.drafted == tokens * (one.passes - 1) for one in drafted)


@pytest.mark.parametrize("settings", [{"draft_tokens": 3}, SAMPLED], ids=["copies", "sampled"])
def test_lines_begin_while_the_device_reads(
    models: dict[str, Path], settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would wait for all that comes before its first pass."""
    order: list[str] = []

    def noted(name: str, kept: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            order.append(name)
            return kept(*args)

        return call

    monkeypatch.setattr(Reader, "read", noted("read", Reader.read))
    monkeypatch.setattr(Lines, "begin", noted("begin", Lines.begin))
    generate(ModelPool("cpu").causal_lm(str(models["llama"])), batch_tokens=300, **settings)
    assert order and order == ["read", "begin"] * (len(order) // 2)


@pytest.fixture(scope="module")
def relatives(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> list[LoadedModel]:
    """The llama, two that resemble it less and less, and a GPT-2, all of one vocabulary."""
    pool, found = ModelPool("cpu", limit=4), []
    for noise in (0.0, 0.02, 0.06):
        folder = tmp_path_factory.mktemp("relative")
        shutil.copytree(models["llama"], folder, dirs_exist_ok=True)
        tensors = load_file(folder / "model.safetensors")
        drawn = torch.Generator().manual_seed(int(100 * noise))
        save_file(
            {name: one + noise * torch.randn(one.shape, generator=drawn) for name, one in tensors.items()},
            folder / "model.safetensors", metadata={"format": "pt"},
        )  # fmt: skip
        found.append(pool.causal_lm(str(folder)))
    return [*found, pool.causal_lm(str(models["gpt2"]))]


PLANS: list[tuple[list[int], dict[str, Any]]] = [
    ([1], {"draft_tokens": 0}),
    ([1], {"draft_tokens": 4, "draft_rounds": (3,)}),
    ([2], {"draft_tokens": 2, "draft_rounds": (4,), "draft_tail": 5, "draft_lenience": 3.0}),
    ([0], {"draft_tokens": 3, "draft_rounds": (1,), "draft_tail": 9}),
    ([1, 2], {"draft_tokens": 2, "draft_rounds": (2, 2)}),
    ([1, 3], {"draft_tokens": 1, "draft_rounds": (2, 3), "draft_tail": 2, "draft_lenience": 2.0}),
    ([0, 1, 2], {"draft_tokens": 1, "draft_rounds": (1, 2, 2)}),
    ([2], {"draft_tokens": 3, "draft_rounds": (2,), "draft_lenience": "auto"}),
    ([1], {"draft_matrix": ((3, 4), (2,))}),
    ([1, 2], {"draft_matrix": ((2, 1, 3), (2, 1), (2,))}),
    ([0, 1, 2], {"draft_matrix": ((1, 2, 1, 2), (1, 1, 1), (2, 0), (1,)), "draft_lenience": "auto"}),
]


@pytest.mark.parametrize("settings", [{}, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize(("which", "plan"), PLANS)
def test_whoever_drafts_answers_are_those_of_plain_decoding(
    relatives: list[LoadedModel], which: list[int], plan: dict[str, Any], settings: dict[str, Any], plainly: Plainly
) -> None:
    for batch_tokens in (1, 16384):
        found = generate(relatives[0], [relatives[at] for at in which], batch_tokens=batch_tokens, **plan, **settings)
        assert said(found) == plainly(settings)
        assert all(one.passes <= len(one.tokens) for one in found)


@pytest.fixture
def anyhow(relatives: list[LoadedModel], monkeypatch: pytest.MonkeyPatch) -> Iterator[set[Way]]:
    """Ways by chance instead of by what pays; those that were taken."""
    seen: set[Way] = set()
    drawn = np.random.default_rng(0)

    def any_way(self: Policy, ahead: Any, ready: Any) -> Way:
        ways = [*self._cascades, *(Way(0, width) for width in COPYING)]
        seen.add(way := ways[int(drawn.integers(len(ways)))])
        return way

    monkeypatch.setattr(Policy, "way", any_way)
    monkeypatch.setattr(engine, "kept_or_measured", lambda *_: Costs(np.ones((6, 6))))
    yield seen
    for one in relatives:
        vars(one.model).pop("contextmill_costs", None)
        vars(one.model).pop("contextmill_policies", None)


WAYS: list[tuple[list[int], dict[str, Any]]] = [
    ([1], {}),
    ([1], {"draft_rounds": (1,)}),
    ([2], {"draft_tail": 5, "draft_lenience": 3.0}),
    ([1, 2], {"draft_rounds": (3, 2)}),
    ([0, 1, 3], {"draft_rounds": (2, 1, 1), "draft_tail": 2}),
]


@pytest.mark.parametrize("settings", [{}, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize(("which", "plan"), WAYS)
def test_drafters_that_come_and_go_change_no_answer(
    relatives: list[LoadedModel], which: list[int], plan: dict[str, Any], settings: dict[str, Any], anyhow: set[Way],
    plainly: Plainly,
) -> None:  # fmt: skip
    """Whatever the policy wants from round to round: they read what they missed before they draft again."""
    for batch_tokens in (1, 300, 16384):
        models = [relatives[at] for at in which]
        found = generate(relatives[0], models, draft_tokens="auto", batch_tokens=batch_tokens, **plan, **settings)
        assert said(found) == plainly(settings)
    assert len({way.rounds for way in anyhow}) > 1 and len(anyhow) > 5


def test_nor_do_they_where_prompts_begin_alike(relatives: list[LoadedModel], anyhow: set[Way]) -> None:
    """What was read of one prompt is copied for others, by all models or by the target alone."""
    alike = [Prompt([*PROMPTS[1].ids, *one.ids], 30, one.seed) for one in PROMPTS]

    def found(models: Sequence[LoadedModel], **settings: Any) -> list[list[int]]:
        spec = GenerateSpec(kind="generate", drafters=[one.ref.name for one in models], **settings)
        return [one.tokens for one in LocalGenerator(relatives[0], spec, Run(ModelPool("cpu")), models).generate(alike)]

    for settings in ({}, {"batch_tokens": 500}):
        assert found(relatives[1:3], draft_tokens="auto", **settings) == found([])
    assert anyhow


def test_without_its_drafters_the_rest_is_copied_in_any_width(relatives: list[LoadedModel], anyhow: set[Way]) -> None:
    """Room is made for the widest: a drafter that is missing, and one that fails at once."""
    plain = said(generate(relatives[0]))
    spec = GenerateSpec(kind="generate", drafters=["x"], draft_rounds=(1,), draft_tokens="auto")
    assert said(LocalGenerator(relatives[0], spec, Run(ModelPool("cpu")), [None]).generate(PROMPTS)) == plain
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(engine, "kept_or_measured", _broken)
        vars(relatives[1].model).pop("contextmill_costs", None)
        vars(relatives[0].model)["contextmill_costs"] = {(PaddedPasses, False, None): Costs(np.ones((6, 6)))}
        assert said(generate(relatives[0], [relatives[1]], draft_rounds=(1,), draft_tokens="auto")) == plain
    assert {way.rounds for way in anyhow} == {0} and Way(0, 16) in anyhow


def _broken(*_: Any) -> Any:
    raise RuntimeError("the drafter is broken")


def test_a_drafter_that_is_the_target_is_always_right_whatever_it_missed(
    relatives: list[LoadedModel], anyhow: set[Way], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One wrong column, and it would say something else than the target."""
    told: list[tuple[Way, list[int], list[int]]] = []
    drawn = np.random.default_rng(0)

    def saw(self: Policy, way: Way, drafted: NDArray[np.int64], accepted: NDArray[np.int64], *_: Any) -> None:
        told.append((way, drafted.tolist(), accepted.tolist()))

    monkeypatch.setattr(
        Policy, "way", lambda self, *_: Way(0, 2) if drawn.random() < 0.6 else self._cascades[int(drawn.integers(2))]
    )
    monkeypatch.setattr(Policy, "saw", saw)
    generate(relatives[0], [relatives[0]], draft_tokens="auto", batch_tokens=300)
    by_drafter = [(drafted, accepted) for way, drafted, accepted in told if way.rounds]
    assert len(by_drafter) > 9 and len(by_drafter) < len(told)
    for drafted, accepted in by_drafter:
        assert accepted == drafted  # what goes beyond the end of an answer is forgotten later


@pytest.mark.parametrize("settings", [{}, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize(
    ("number", "plan", "most"),
    [
        (1, {"draft_rounds": (5,)}, 5),
        (1, {"draft_rounds": (5,), "draft_tail": 4}, 5),
        (2, {"draft_rounds": (2, 2)}, 6),
        (2, {"draft_rounds": (2, 2), "draft_tail": 4}, 6),
        (2, {"draft_matrix": ((2, 3, 0), (2, 0), (0,))}, 9),  # the smaller one drafts behind the larger one, too
        (2, {"draft_matrix": ((2, 3, 4), (2, 1), (2,))}, 2),
        (3, {"draft_matrix": ((2, 2, 1, 3), (1, 2, 0), (1, 0), (0,))}, 15),
    ],
)
def test_a_drafter_that_says_the_same_is_always_right(
    relatives: list[LoadedModel], settings: dict[str, Any], number: int, plan: dict[str, Any], most: int
) -> None:
    """Whatever was accepted of its drafts and of what came behind them, it knows what it has read: one wrong column,
    and it would say something else."""
    found = generate(relatives[0], [relatives[0]] * number, **plan, **settings)
    for one in found:
        assert one.passes <= 1 + -(-(len(one.tokens) - 1) // (most + 1))


def test_the_more_alike_the_more_is_accepted(relatives: list[LoadedModel]) -> None:
    passes = [
        sum(one.passes for one in generate(relatives[0], [relatives[at]], draft_rounds=(4,), **SAMPLED))
        for at in (0, 1, 2, 3)
    ]
    assert passes == sorted(passes) and passes[0] < 0.7 * passes[2]


def test_a_lenient_drafter_passes_more_of_what_is_copied_for_it(relatives: list[LoadedModel]) -> None:
    """At a lenience without bounds it passes all of it: what was copied from the wrong place is all that is drafted."""
    plan = {"draft_tokens": 5, "draft_rounds": (1,)}
    strict, lenient = (
        sum(one.passes for one in generate(relatives[0], [relatives[0]], draft_lenience=lenience, **plan))
        for lenience in (1.0, 1e30)
    )
    copying = sum(one.passes for one in generate(relatives[0], draft_tokens=5))
    assert strict < lenient <= copying


def test_lenience_goes_by_what_is_accepted(relatives: list[LoadedModel]) -> None:
    """The drafter is the target: what it would not say is never accepted. A stranger's own words are not, either."""
    for drafter, best in ((relatives[0], 0), (relatives[3], None)):
        vars(relatives[0].model).pop("contextmill_leniences", None)
        for _ in range(4):
            generate(relatives[0], [drafter], draft_tokens=5, draft_rounds=(1,), draft_lenience="auto")
        (known,) = vars(relatives[0].model)["contextmill_leniences"].values()
        assert (known._rounds > 24).all() and (best is None or known.accepted.argmax() == best)
        if best is not None:
            assert known.accepted[0] > known.accepted[-1]


def test_each_model_of_a_matrix_is_counted(relatives: list[LoadedModel]) -> None:
    matrix = ((2, 1, 2), (2, 1), (2,))
    found = generate(relatives[0], relatives[1:3], draft_matrix=matrix)
    for one in found:
        *_, larger, smaller = one.drafts.values()
        assert (larger.passes, smaller.passes) == (2 * (one.passes - 1), 5 * (one.passes - 1))
    assert sum(one.drafts["max-gram"].drafted for one in found)


def test_a_drafter_that_fails_is_given_up_and_answers_go_on(
    relatives: list[LoadedModel], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """In the middle of a batch, when some have ended."""
    plain, calls = generate(relatives[0]), []
    forward = relatives[1].model.get_decoder().forward

    def failing(**arguments: Any) -> Any:
        calls.append(1)
        if len(calls) > 20:
            raise RuntimeError("the drafter is broken")
        return forward(**arguments)

    assert passes_for(relatives[1])
    monkeypatch.setattr(relatives[1].model.get_decoder(), "forward", failing)
    found = generate(relatives[0], [relatives[1]], draft_tokens=2)
    assert said(found) == said(plain) and "drafters are given up for this batch: the drafter is broken" in caplog.text


def test_short_samples_with_a_long_tail(relatives: list[LoadedModel]) -> None:
    """A drafter reads back into the prompt, where no number is drawn."""
    spec = {"draft_rounds": (1,), "draft_tail": 9, **SAMPLED}
    prompts = [Prompt(one.ids, 3, one.seed) for one in PROMPTS]
    found = [
        LocalGenerator(relatives[0], GenerateSpec(kind="generate", drafters=names, **more), Run(ModelPool("cpu")), some)
        for names, more, some in (([], SAMPLED, []), (["x"], spec, [relatives[1]]))
    ]
    plain, drafted = (one.generate(prompts) for one in found)
    assert said(plain) == said(drafted) and any(one.drafted for one in drafted)


def test_all_rows_begin_at_once_with_drafts_too(relatives: list[LoadedModel], monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []
    begin = Ending.begin

    def noted(self: Ending, rows: Any) -> None:
        begun.append(len(list(rows)))
        begin(self, rows)

    monkeypatch.setattr(Ending, "begin", noted)
    generate(relatives[0], [relatives[1]], draft_tokens=5, draft_tail=3)
    assert begun == [len(PROMPTS)]


def test_rows_close_ranks_when_one_ends(relatives: list[LoadedModel], monkeypatch: pytest.MonkeyPatch) -> None:
    """Padded passes gather the stored columns of rows that are not the first ones."""
    seen: list[list[int]] = []
    read_on = PaddedPasses.read_on

    def noted(self: PaddedPasses, slots: torch.Tensor, *rest: Any) -> torch.Tensor:
        seen.append(slots.tolist())
        return read_on(self, slots, *rest)

    expected = said(generate(relatives[0], batch_tokens=1))
    monkeypatch.setattr(PaddedPasses, "read_on", noted)
    assert said(generate(relatives[0])) == expected
    in_front = [slots == list(range(len(slots))) for slots in seen]
    assert {len(slots) for slots in seen} >= {2, 4, 6, 8} and sum(in_front) > 0.8 * len(seen)


def test_what_was_drafted_is_counted_by_what_there_was(relatives: list[LoadedModel]) -> None:
    """A drafter of three rounds writes three tokens at least, and rarely what it could at most."""
    found = generate(relatives[0], [relatives[2]], draft_tokens=5, draft_rounds=(3,))
    for one in found:
        assert 3 * (one.passes - 1) <= one.drafted < 18 * (one.passes - 1)
        assert len(one.tokens) - one.passes <= one.drafted


def test_a_missing_drafter_takes_its_rounds_along(relatives: list[LoadedModel]) -> None:
    spec = GenerateSpec(kind="generate", drafters=["gone", "d"], draft_rounds=[1, 4])
    decoder = LocalGenerator(relatives[0], spec, Run(ModelPool("cpu")), [None, relatives[1]])._decoder()
    assert decoder and decoder.plan.rounds == (4,) and list(decoder.drafters) == [relatives[1]]


def test_stop_strings_and_stopping_are_heard_among_several_tokens(
    relatives: list[LoadedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    free = generate(relatives[0])
    for stop in {one.text[at : at + 3] for one in free[:3] for at in (2, 7, 13)}:
        if "\ufffd" not in stop:
            plain = generate(relatives[0], stop=[stop])
            assert said(generate(relatives[0], [relatives[0]], draft_rounds=(6,), stop=[stop])) == said(plain)
    monkeypatch.setattr("pipeline.generation.ending.LOOK_SECONDS", 0.0)
    asked: list[int] = []

    def stopping() -> bool:
        asked.append(1)
        return len(asked) > 5

    spec = GenerateSpec(kind="generate", drafters=["x"])
    with pytest.raises(Stopped):
        LocalGenerator(relatives[0], spec, Run(ModelPool("cpu"), stopping=stopping), [relatives[1]]).generate(PROMPTS)


def test_memory_that_only_drafters_lack_ends_no_shard(
    relatives: list[LoadedModel], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plain = generate(relatives[0])

    def full(**arguments: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    assert passes_for(relatives[1])
    monkeypatch.setattr(relatives[1].model.get_decoder(), "forward", full)
    assert said(generate(relatives[0], [relatives[1]])) == said(plain)
    assert "drafters are given up for this batch: CUDA out of memory" in caplog.text


def test_an_idle_row_has_room_for_all_drafts() -> None:
    assert SPARE >= MOST_DRAFTS + 2 + 3 + 1  # what it holds, what is read behind, and the target's own


def test_what_the_answer_copies_takes_a_pass_for_every_eight_tokens(models: dict[str, Path]) -> None:
    """As from the original of a compressed prompt."""
    loaded = ModelPool("cpu").causal_lm(str(models["llama"]))

    def one(copied: list[int], **settings: Any) -> Generation:
        generator = LocalGenerator(loaded, GenerateSpec(kind="generate", **settings), Run(ModelPool("cpu")))
        return generator.generate([Prompt(PROMPTS[0].ids, 140, copied=copied)])[0]

    for settings in ({}, SAMPLED):
        plain = one([], **settings)
        drafted = one([3, 4, *plain.tokens, 5], draft_tokens=7, **settings)
        assert drafted.tokens == plain.tokens and len(set(plain.tokens)) > 80
        assert drafted.passes < 140 / 8 + 4
