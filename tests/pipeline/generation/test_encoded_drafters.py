"""Encoder-decoders that draft for a larger one: each reads the prompt with an encoder of its own."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_encoder_decoders import CARRIED, SAMPLED, job, reference, save
from test_encoder_decoders import PROMPTS as LONGER
from transformers import PreTrainedModel

from pipeline.generation import engine
from pipeline.generation.costs import Costs
from pipeline.generation.local import Generation, LocalGenerator
from pipeline.generation.paces import Way
from pipeline.generation.policy import Policy
from pipeline.generation.prompts import Prompt
from pipeline.models import LoadedModel, ModelPool
from pipeline.passes.encoded import EncodedPasses
from pipeline.stages import Result, Run, build, check
from schemas.document import Document, PromptParts
from schemas.stage import GenerateSpec

NEW = 24
PROMPTS = [Prompt(one.ids, NEW - place, one.seed) for place, one in enumerate(LONGER[:6])]

Family = list[LoadedModel]
"""A target, itself once more, one that resembles it, and a stranger."""


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Family]:
    pool = ModelPool("cpu", limit=4 * len(CARRIED))
    made = {}
    for name in CARRIED:
        folders = [save(tmp_path_factory.mktemp(name), name)]
        for noise in (0.0, 0.02, 1.0):
            folders.append(tmp_path_factory.mktemp(name))
            shutil.copytree(folders[0], folders[-1], dirs_exist_ok=True)
            drawn = torch.Generator().manual_seed(1)
            tensors = {
                key: one * (1 + noise * torch.randn(one.shape, generator=drawn)) + 1e-9 * noise
                for key, one in load_file(folders[0] / "model.safetensors").items()
            }
            save_file(tensors, folders[-1] / "model.safetensors", metadata={"format": "pt", "noise": str(noise)})
        made[name] = [pool.target(str(folder)) for folder in folders]
    return made


@pytest.fixture(scope="module")
def expected(families: dict[str, Family]) -> dict[str, list[list[int]]]:
    return {name: [reference(family[0], prompt) for prompt in PROMPTS] for name, family in families.items()}


def generate(
    loaded: LoadedModel, drafters: Sequence[LoadedModel] = (), prompts: Sequence[Prompt] = PROMPTS, **settings: Any
) -> list[Generation]:
    spec = GenerateSpec(kind="generate", drafters=[str(at) for at, _ in enumerate(drafters)], **settings)
    return LocalGenerator(loaded, spec, Run(ModelPool("cpu")), drafters).generate(prompts)


def tokens(*given: Any, **settings: Any) -> list[list[int]]:
    return [one.tokens for one in generate(*given, **settings)]


PLANS: list[tuple[list[int], dict[str, Any]]] = [
    ([2], {"draft_rounds": (3,), "draft_tokens": 2}),
    ([3], {"draft_rounds": (2,), "draft_tail": 4, "draft_tokens": 1, "draft_lenience": 3.0}),
    ([2, 3], {"draft_rounds": (2, 2)}),
]


@pytest.mark.parametrize(
    ("name", "which", "plan"),
    [*((name, *PLANS[0]) for name in CARRIED), *((name, *plan) for name in ("t5", "bart") for plan in PLANS[1:])],
)
def test_greedy_answers_are_those_of_transformers(
    families: dict[str, Family], expected: dict[str, list[list[int]]], name: str, which: list[int], plan: dict[str, Any]
) -> None:
    loaded, *_ = family = families[name]
    for batch_tokens in (1, 16384):
        found = generate(loaded, [family[at] for at in which], batch_tokens=batch_tokens, **plan)
        assert [one.tokens for one in found] == expected[name]
        assert all(one.drafted for one in found if len(one.tokens) > 1)


@pytest.mark.parametrize("name", CARRIED)
def test_samples_too_are_what_they_were(families: dict[str, Family], name: str) -> None:
    loaded, same, like, _ = families[name]
    plain = tokens(loaded, **SAMPLED)
    for drafter in (same, like):
        assert tokens(loaded, [drafter], draft_rounds=(3,), draft_tokens=1, batch_tokens=300, **SAMPLED) == plain


@pytest.mark.parametrize("name", CARRIED)
@pytest.mark.parametrize("settings", [{}, SAMPLED], ids=["greedy", "sampled"])
def test_one_that_says_the_same_is_always_right(
    families: dict[str, Family], name: str, settings: dict[str, Any]
) -> None:
    """It has read the prompt, and all that was written: one wrong column, and it would say something else."""
    loaded, same, *_ = families[name]
    for tail in (0, 4):
        for one in generate(loaded, [same], draft_rounds=(5,), draft_tail=tail, **settings):
            assert one.passes <= 1 + -(-(len(one.tokens) - 1) // 6)


def forget(*models: LoadedModel) -> None:
    """What was measured and learned of them, or made up."""
    for one in models:
        for known in ("contextmill_costs", "contextmill_policies"):
            vars(one.model).pop(known, None)


@pytest.fixture
def by_chance(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[Way, list[int], list[int]]]]:
    """Rounds go by chance through the drafter or past it: what came of them."""
    told: list[tuple[Way, list[int], list[int]]] = []
    drawn = np.random.default_rng(0)

    def saw(self: Policy, way: Way, drafted: Any, accepted: Any, *_: Any) -> None:
        told.append((way, drafted.tolist(), accepted.tolist()))

    monkeypatch.setattr(
        Policy, "way", lambda self, *_: Way(0, 2) if drawn.random() < 0.6 else self._cascades[int(drawn.integers(2))]
    )
    monkeypatch.setattr(Policy, "saw", saw)
    monkeypatch.setattr(engine, "kept_or_measured", lambda *_: Costs(np.ones((6, 6))))
    yield told


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_one_that_comes_and_goes_reads_what_it_missed(
    families: dict[str, Family], expected: dict[str, list[list[int]]],
    by_chance: list[tuple[Way, list[int], list[int]]], name: str,
) -> None:  # fmt: skip
    """Prompts included, where it was not there when these began."""
    loaded, same, *_ = families[name]
    for batch_tokens in (1, 300):
        assert tokens(loaded, [same], draft_tokens="auto", batch_tokens=batch_tokens) == expected[name]
    drafted = [(some, accepted) for way, some, accepted in by_chance if way.rounds]
    assert 9 < len(drafted) < len(by_chance)
    assert all(some == accepted for some, accepted in drafted)
    forget(loaded, same)


def test_as_much_as_pays(families: dict[str, Family], expected: dict[str, list[list[int]]]) -> None:
    """By passes that were timed, of both."""
    loaded, same, *_ = families["t5"]
    assert tokens(loaded, [same], draft_tokens="auto") == expected["t5"]
    costs: dict[Any, Costs] = vars(same.model)["contextmill_costs"]
    assert 0 < costs[EncodedPasses, False, None].at(1, 4) < 1.0  # seconds; one is what was made up above
    forget(loaded, same)


def test_vectors_are_read_by_whom_they_are_for(families: dict[str, Family]) -> None:
    """The stranger has another table, and reads the text alone; where there is none, what the decoder begins with."""
    loaded, same, _, stranger = families["t5"]
    drawn = torch.Generator().manual_seed(0)
    pieces: list[list[list[int] | torch.Tensor]] = [
        [torch.randn(place + 1, 64, generator=drawn), one.ids if place else []] for place, one in enumerate(PROMPTS)
    ]
    prompts = [Prompt.of(one, NEW) for one in pieces]
    plain = tokens(loaded, (), prompts)
    assert tokens(loaded, [stranger], prompts, draft_rounds=(3,)) == plain
    found = generate(loaded, [same], prompts, draft_rounds=(5,))
    assert [one.tokens for one in found] == plain
    assert all(one.passes <= 1 + -(-(len(one.tokens) - 1) // 6) for one in found)


def test_an_encoder_that_fails_is_given_up(
    families: dict[str, Family], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    loaded, same, *_ = families["t5"]
    model: PreTrainedModel = same.model

    def broken(**_: Any) -> Any:
        raise RuntimeError("the encoder is broken")

    plain = tokens(loaded)
    monkeypatch.setattr(model.get_encoder(), "forward", broken)
    assert tokens(loaded, [same], draft_rounds=(2,)) == plain
    assert "drafters are given up for this batch: the encoder is broken" in caplog.text


def test_by_its_folder_in_a_job(families: dict[str, Family]) -> None:
    loaded, same, *_ = families["t5"]
    spec = job(loaded.ref.folder, drafters=[str(same.ref.folder)], max_new_tokens=20)
    check(spec)
    (outcome,) = build(spec, 0).run(
        [Document(0, "0", PromptParts(contexts=("one two three",)), "h")], Run(ModelPool("cpu"))
    )
    assert isinstance(outcome, Result)
    drafts = outcome.fields["drafts"]
    assert [one["model"] for one in drafts[1:]] == ["max-gram", str(same.ref.folder)] and drafts[2]["passes"] > 0
