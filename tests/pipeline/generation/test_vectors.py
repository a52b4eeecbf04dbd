"""Vectors among the tokens of a prompt, against transformers' own unbatched ``generate(inputs_embeds=...)``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from other_models import save_other
from tiny_models import save_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from pipeline.generation import decoding, engine, local
from pipeline.generation.costs import Costs
from pipeline.generation.decoding import passes_for
from pipeline.generation.early_exit import early_exit
from pipeline.generation.generated import no_defaults
from pipeline.generation.lines import Lines, Some
from pipeline.generation.local import Generation, LocalGenerator
from pipeline.generation.maxgram import PADDING
from pipeline.generation.numbered import comparable
from pipeline.generation.paces import Way
from pipeline.generation.policy import Policy
from pipeline.generation.prompts import VECTOR, Prompt, too_long
from pipeline.generation.rounds import Checking
from pipeline.generation.texts import Text
from pipeline.models import LoadedModel, ModelError, ModelPool
from pipeline.passes.padded import PaddedPasses
from pipeline.passes.transfers import together
from pipeline.stages import Run
from schemas.stage import GenerateSpec

NEW = 30
SIZE = 64
CARRIED = ["llama", "qwen2", "gpt_neox", "gpt2"]
SAMPLED: dict[str, Any] = {"temperature": 0.8, "top_p": 0.9, "top_k": 40}


def ids(count: int, seed: int) -> list[int]:
    found: list[int] = torch.randint(3, 300, (count,), generator=torch.Generator().manual_seed(seed)).tolist()
    return found


def vectors(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, SIZE, generator=torch.Generator().manual_seed(seed)) / 4


DOCUMENT, OTHER = vectors(70, 1), vectors(70, 2)
Pieces = list[list[int] | torch.Tensor]
PIECES: list[Pieces] = [
    [vectors(5, 3), ids(10, 3)],
    [ids(40, 4)],  # a plain one
    [ids(4, 5), vectors(3, 5), ids(6, 6), vectors(7, 6), ids(2, 7)],  # of two documents
    [DOCUMENT, ids(5, 8)],
    [vectors(1, 9)],  # no text at all
    [DOCUMENT, ids(3, 10), vectors(4, 11)],  # ends with vectors
    [OTHER, ids(5, 8)],
    [ids(1, 12)],
    [ids(30, 13), DOCUMENT],
]
PROMPTS = [Prompt.of(one, NEW - place, seed=place) for place, one in enumerate(PIECES)]


@pytest.fixture(scope="module")
def targets(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, LoadedModel]:
    folders = dict(models)
    for name in ("qwen2", "gemma", "granite"):
        folders[name] = save_other(tmp_path_factory.mktemp(name), name)
    pool = ModelPool("cpu", limit=len(folders))
    return {name: pool.causal_lm(str(folder)) for name, folder in folders.items()}


def table(loaded: LoadedModel) -> Any:
    model: Any = loaded.model
    return model.get_input_embeddings()


def reference(loaded: LoadedModel, pieces: Pieces, new: int) -> list[int]:
    """What transformers answers by itself, greedily."""
    with no_defaults(loaded.model), torch.inference_mode():
        parts = [one if isinstance(one, torch.Tensor) else table(loaded)(torch.tensor(one)) for one in pieces]
        words = torch.cat(parts)[None]
        model: Any = loaded.model
        made = model.generate(
            inputs_embeds=words, attention_mask=torch.ones(words.shape[:2], dtype=torch.int64),
            generation_config=GenerationConfig(max_new_tokens=new, eos_token_id=2, pad_token_id=0),
        )  # fmt: skip
    found: list[int] = made[0].tolist()
    return found


def generate(
    loaded: LoadedModel, prompts: Sequence[Prompt] = PROMPTS, drafters: Sequence[LoadedModel] = (), **settings: Any
) -> list[Generation]:
    spec = GenerateSpec(kind="generate", drafters=[one.ref.name for one in drafters], **settings)
    return LocalGenerator(loaded, spec, Run(ModelPool("cpu")), drafters).generate(prompts)


def tokens(loaded: LoadedModel, prompts: Sequence[Prompt] = PROMPTS, *rest: Any, **settings: Any) -> list[list[int]]:
    return [one.tokens for one in generate(loaded, prompts, *rest, **settings)]


@pytest.mark.parametrize("name", CARRIED)
def test_greedy_answers_are_those_of_transformers(targets: dict[str, LoadedModel], name: str) -> None:
    """In batches of one to nine, beside plain prompts, whoever drafts."""
    loaded = targets[name]
    right = [reference(loaded, one, NEW - place) for place, one in enumerate(PIECES)]
    assert passes_for(loaded) is PaddedPasses and len({token for one in right for token in one}) > 50
    first = early_exit(loaded, 1)
    for rows in range(1, len(PROMPTS) + 1):
        assert tokens(loaded, PROMPTS[:rows]) == right[:rows]
        assert tokens(loaded, PROMPTS[-rows:], draft_tokens=7) == right[-rows:]
        assert tokens(loaded, PROMPTS[:rows], [first], draft_rounds=(3,), draft_tokens=2) == right[:rows]
    for batch_tokens in (1, 300):
        assert tokens(loaded, batch_tokens=batch_tokens) == right
        found = generate(loaded, drafters=[first], draft_rounds=(2,), draft_tail=3, batch_tokens=batch_tokens)
        assert [one.tokens for one in found] == right
        assert all(one.drafts["layers:1"].passes for one in found)


@pytest.mark.parametrize("name", [*CARRIED, "gemma", "granite"])
@pytest.mark.parametrize("settings", [{}, SAMPLED], ids=["greedy", "sampled"])
def test_vectors_that_are_embeddings_say_what_their_tokens_say(
    targets: dict[str, LoadedModel], name: str, settings: dict[str, Any]
) -> None:
    """As the model's own table has them: Gemma's has scaled them by then, Granite itself does so afterwards."""
    loaded = targets[name]
    texts = [ids(count, count) for count in (9, 40, 2, 90)]
    plain = tokens(loaded, [Prompt(one, NEW, seed) for seed, one in enumerate(texts)], **settings)
    assert len({token for one in plain for token in one}) > 20
    with torch.no_grad():
        words = [table(loaded)(torch.tensor(one)) for one in texts]
    for begin, end in ((0, 1), (1, 60), (0, 90)):
        prompts = [
            Prompt.of([one[:begin], known[begin:end], one[end:]], NEW, seed)
            for seed, (one, known) in enumerate(zip(texts, words, strict=True))
        ]
        assert tokens(loaded, prompts, **settings) == plain
        assert tokens(loaded, prompts, draft_tokens=5, **settings) == plain


@pytest.mark.parametrize("name", ["llama", "gpt_neox"])
def test_samples_belong_to_their_document(
    targets: dict[str, LoadedModel], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Whatever the batch, whatever is drafted, and whoever decodes."""
    loaded = targets[name]
    together = tokens(loaded, **SAMPLED)
    assert tokens(loaded, PROMPTS[::-1], **SAMPLED)[::-1] == together
    assert tokens(loaded, batch_tokens=1, draft_tokens=3, **SAMPLED) == together
    assert tokens(loaded, PROMPTS, [early_exit(loaded, 1)], draft_rounds=(3,), **SAMPLED) == together
    monkeypatch.setattr(local, "passes_for", lambda loaded: None)
    assert tokens(loaded, **SAMPLED) == together


@pytest.mark.parametrize("name", ["llama", "gpt2", "lfm2"])
def test_what_generate_decodes_it_reads_with_vectors_too(
    targets: dict[str, LoadedModel], monkeypatch: pytest.MonkeyPatch, name: str, tmp_path: Path
) -> None:
    """Models among them that keep something else than columns, here a short convolution's state."""
    if name == "lfm2":
        config = AutoConfig.for_model(
            name, vocab_size=save_tokenizer(tmp_path), hidden_size=SIZE, intermediate_size=128, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, layer_types=["conv", "full_attention"],
            initializer_range=0.25, eos_token_id=2, pad_token_id=0, bos_token_id=1,
        )  # fmt: skip
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
        loaded = ModelPool("cpu").causal_lm(str(tmp_path))
        assert passes_for(loaded) is None
    else:
        loaded = targets[name]
    monkeypatch.setattr(local, "passes_for", lambda loaded: None)
    right = [reference(loaded, one, NEW - place) for place, one in enumerate(PIECES)]
    assert tokens(loaded, draft_tokens=3) == right


def test_equal_vectors_are_read_once_and_others_are_not_shared(
    targets: dict[str, LoadedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, read = targets["llama"], []
    close = DOCUMENT.clone()
    close[0, 0] = torch.nextafter(close[0, 0], torch.tensor(9.0))
    prompts = [Prompt.of([one, ids(5, place)], NEW) for place, one in enumerate([DOCUMENT, DOCUMENT.clone(), close])]
    run = PaddedPasses.run

    def counted(self: PaddedPasses, rows: Any, some: torch.Tensor, cached: Any, counts: Any, *rest: Any) -> Any:
        read.append(counts.tolist())
        return run(self, rows, some, cached, counts, *rest)

    alone = tokens(loaded, prompts, batch_tokens=1)
    monkeypatch.setattr(PaddedPasses, "run", counted)
    assert tokens(loaded, prompts) == alone
    assert sorted(count for one in read for count in one) == [5, 75, 75]


def test_texts_have_equal_numbers_as_long_as_they_are_equal() -> None:
    """Vectors that only begin alike, those of another type, and half of a document's among them."""
    close = DOCUMENT.clone()
    close[40, -1] += 1  # beyond what is looked at first
    some: list[Pieces] = [
        [[7], DOCUMENT, [9]], [[7], OTHER], [[7], DOCUMENT, [8]], [[7], close], [[7], DOCUMENT[:50], OTHER[:9]],
        [[7], DOCUMENT.half()], [DOCUMENT], [[7, 8]], [[7], OTHER[:1], DOCUMENT], [[7], close, [9]],
    ]  # fmt: skip
    texts = [Text.of(Prompt.of(pieces, 1)) for pieces in some]
    found = comparable(texts)
    for one, pieces in zip(found, some, strict=True):
        assert (one >= 2**31).sum() == sum(len(piece) for piece in pieces if isinstance(piece, torch.Tensor))
    lengths = [[_as_long(one, other) for other in found] for one in found]
    assert lengths[0] == [72, 1, 71, 41, 51, 1, 0, 1, 1, 41]
    assert lengths[1] == [1, 71, 1, 1, 1, 1, 0, 1, 2, 1]
    assert lengths[3] == [41, 1, 41, 71, 41, 1, 0, 1, 1, 71]
    assert lengths[7] == [1, 1, 1, 1, 1, 1, 0, 2, 1, 1]


def _as_long(one: NDArray[np.int64], other: NDArray[np.int64]) -> int:
    size = min(len(one), len(other))
    return int(np.append(one[:size] == other[:size], False).argmin())


def test_a_prompt_takes_the_room_of_its_places(
    targets: dict[str, LoadedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """64 vectors count as these, whatever they stand for: as many more rows are worked on at once."""
    sizes: list[engine.Size] = []
    real = engine.engine_for

    def noted(kind: Any, size: engine.Size, look: Callable[[], None]) -> Any:
        sizes.append(size)
        return real(kind, size, look)

    monkeypatch.setattr(decoding, "engine_for", noted)
    prompts = [Prompt.of([vectors(64, seed), ids(5, seed)], 9) for seed in range(4)]
    generate(targets["llama"], prompts, batch_tokens=3 * (64 + 5 + 8))
    assert [(one.rows, one.columns, one.longest) for one in sizes] == [(3, 3 * 77, 77), (1, 77, 77)]


@pytest.mark.parametrize("most", [7, 64])
def test_passes_may_end_between_the_vectors_of_a_prompt(
    targets: dict[str, LoadedModel], monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    right = tokens(targets["llama"])
    monkeypatch.setattr(decoding, "PASS_TOKENS", most)
    assert tokens(targets["llama"]) == right


def test_parts_are_laid_end_to_end_whatever_their_types() -> None:
    cpu = torch.device("cpu")
    assert torch.equal(together([DOCUMENT, OTHER[:3]], cpu), torch.cat([DOCUMENT, OTHER[:3]]))
    mixed = together([DOCUMENT.half(), OTHER[:3]], cpu)
    assert mixed.dtype == torch.float32 and torch.equal(mixed, torch.cat([DOCUMENT.half().float(), OTHER[:3]]))


@pytest.fixture
def copy(targets: dict[str, LoadedModel], models: dict[str, Path]) -> LoadedModel:
    """The llama once more, with a table of its own."""
    return ModelPool("cpu").causal_lm(str(models["llama"]))


def test_a_drafter_with_the_same_table_reads_them_too(targets: dict[str, LoadedModel], copy: LoadedModel) -> None:
    """One wrong column, and it would say something else than the target."""
    for one in generate(targets["llama"], drafters=[copy], draft_rounds=(5,)):
        assert one.passes <= 1 + -(-(len(one.tokens) - 1) // 6)


Drafts = list[tuple[list[int], list[int]]]


@pytest.fixture
def drafts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Drafts]:
    """The tokens of prompt and answer, and what was drafted behind them."""
    told: Drafts = []
    draft = Checking.draft

    def noted(self: Checking, some: Some, length: torch.Tensor, most: int) -> torch.Tensor:
        end = draft(self, some, length, most)
        read_from = length - some.columns(length, blind=True)
        for slot, begin, here, there in torch.stack([some.slots, read_from, length, end], 1).tolist():
            line = some.lines.tokens[slot].tolist()
            told.append((line[begin:here], line[here:there]))
        return end

    monkeypatch.setattr(Checking, "draft", noted)
    yield told


def said_alone(drafter: LoadedModel, drafts: Drafts) -> bool:
    """Whether a drafter said what it says by itself behind these tokens."""
    return all(drafted[0] == reference(drafter, [read], 1)[0] for read, drafted in drafts[::7])


@pytest.mark.parametrize("blind", [False, True])
def test_whoever_comes_and_goes_answers_stay(
    targets: dict[str, LoadedModel], copy: LoadedModel, drafts: Drafts, monkeypatch: pytest.MonkeyPatch, blind: bool
) -> None:
    """Drafters read what they missed, vectors included, or all but these."""
    loaded, told, drawn = targets["llama"], [], np.random.default_rng(0)

    def saw(self: Policy, way: Way, drafted: Any, accepted: Any, *_: Any) -> None:
        told.append((way.rounds, drafted.tolist(), accepted.tolist()))

    monkeypatch.setattr(
        Policy, "way", lambda self, *_: Way(0, 2) if drawn.random() < 0.6 else self._cascades[int(drawn.integers(2))]
    )
    monkeypatch.setattr(Policy, "saw", saw)
    monkeypatch.setattr(engine, "kept_or_measured", lambda *_: Costs(np.ones((6, 6))))
    monkeypatch.setattr(engine, "knows_vectors", lambda drafter, target: drafter is target or not blind)
    alike = [Prompt.of([ids(66, 14), vectors(3, 15), ids(2, 16), one], NEW) for one in (ids(1, 17), vectors(2, 18))]
    expected = tokens(loaded, [*PROMPTS, *alike])
    for batch_tokens in (1, 300, 16384):
        found = tokens(loaded, [*PROMPTS, *alike], [copy], draft_tokens="auto", batch_tokens=batch_tokens)
        assert found == expected
    by_drafter = [(drafted, accepted) for rounds, drafted, accepted in told if rounds]
    assert 9 < len(by_drafter) < len(told)
    right = [accepted == drafted for drafted, accepted in by_drafter]
    assert said_alone(copy, drafts) and not all(right) if blind else all(right)
    for one in (loaded, copy):
        for known in ("contextmill_costs", "contextmill_policies"):  # made up
            vars(one.model).pop(known, None)


def test_a_drafter_with_another_table_reads_the_text_alone(targets: dict[str, LoadedModel], drafts: Drafts) -> None:
    """Its drafts are what it would say by itself behind the tokens of prompt and answer."""
    loaded, drafter = targets["llama"], targets["gpt2"]
    expected = tokens(loaded)
    for batch_tokens in (1, 16384):
        some = {"draft_rounds": (3,), "batch_tokens": batch_tokens}
        assert tokens(loaded, PROMPTS, [drafter], **some) == expected
    assert len(drafts) > 100 and said_alone(drafter, drafts)
    assert all(len(drafted) == 3 and min(read) >= 0 for read, drafted in drafts)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[list[int]]]:
    """All that may be copied when an answer begins."""
    noted: list[list[int]] = []
    begin = Lines.begin

    def spied(self: Lines, slots: Any, *rest: Any) -> None:
        begin(self, slots, *rest)
        noted.extend(self.tokens[slot, PADDING : int(self.length[slot])].tolist() for slot in slots)

    monkeypatch.setattr(Lines, "begin", spied)
    yield noted


def test_nothing_is_copied_from_a_vector(targets: dict[str, LoadedModel], seen: list[list[int]]) -> None:
    pieces: Pieces = [ids(4, 5), vectors(3, 5), ids(6, 6)]
    tokens(targets["llama"], [Prompt.of(pieces, 9, copied=[5, 6])], draft_tokens=3)
    assert seen == [[5, 6, *ids(4, 5), *ids(6, 6)]]
    with pytest.raises(ValueError, match="none to copy from"):
        Prompt([7], 9, copied=[VECTOR])


def test_the_text_that_slots_hold_may_be_copied(targets: dict[str, LoadedModel]) -> None:
    pieces: Pieces = [vectors(9, 0), ids(4, 0)]
    (plain,) = generate(targets["llama"], [Prompt.of(pieces, 140)])
    (drafted,) = generate(targets["llama"], [Prompt.of(pieces, 140, copied=[3, *plain.tokens, 5])], draft_tokens=7)
    assert drafted.tokens == plain.tokens and len(set(plain.tokens)) > 60
    assert drafted.passes < len(plain.tokens) / 8 + 4


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        (
            lambda: Prompt.of([vectors(3, 0)[:, :60]], 5),
            r"reads vectors of 64 numbers, and a prompt has \[3, 60\] of them: make",
        ),
        (
            lambda: Prompt.of([vectors(100, 0), ids(60, 0)], 5),
            "160 places and .* holds 160, one of them for the answer: give it fewer",
        ),
    ],
)
def test_what_cannot_be_read_is_said(targets: dict[str, LoadedModel], prompt: Callable[[], Prompt], says: str) -> None:
    with pytest.raises(ModelError, match=says):
        generate(targets["llama"], [PROMPTS[0], prompt()])


def test_as_many_places_as_vectors() -> None:
    for given in (None, vectors(2, 0)):
        with pytest.raises(ValueError, match=r"a prompt has 1 places for vectors and [02] of these"):
            Prompt([VECTOR, 7], 5, vectors=given)
    refusal = too_long(160, "llama", 160)
    assert refusal and refusal.code == "prompt_too_long" and too_long(159, "llama", 160) is None


def test_a_model_that_looks_tokens_up_again_is_refused(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = ModelPool("cpu").causal_lm(str(models["llama"]))
    model: Any = loaded.model
    forward = model.model.forward

    def again(input_ids: torch.Tensor | None = None, **options: Any) -> Any:
        found = forward(input_ids=input_ids, **options)
        if input_ids is not None:
            found.last_hidden_state = found.last_hidden_state + 0.1
        return found

    monkeypatch.setattr(model.model, "forward", again)
    with pytest.raises(ModelError, match="reads no vectors: choose a target that takes inputs_embeds"):
        generate(loaded)


def test_places_are_what_is_counted(targets: dict[str, LoadedModel]) -> None:
    """Room in the store, in the batch, and for the answer in the window."""
    loaded = targets["llama"]
    room = Prompt.of([DOCUMENT, OTHER, ids(15, 1)], loaded.window - 155)
    assert len(room.ids) == 155
    (found,) = generate(loaded, [room], draft_tokens=15)
    assert found.tokens == reference(loaded, [DOCUMENT, OTHER, ids(15, 1)], 5)
