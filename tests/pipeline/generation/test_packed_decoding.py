"""What is decoded without padding is what ``generate`` says; what cannot be stays with ``generate``."""

from __future__ import annotations

import shutil
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import row_by_row  # noqa: F401  the kernel
import torch
from safetensors.torch import load_file, save_file
from test_prefixes import prompts_of
from tiny_models import save_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

from pipeline.generation import decoding
from pipeline.generation.decoding import passes_for
from pipeline.generation.ending import Ending
from pipeline.generation.engine import let_go
from pipeline.generation.lines import Lines
from pipeline.generation.local import Generation, LocalGenerator
from pipeline.generation.prompts import Prompt
from pipeline.models import LoadedModel, ModelPool
from pipeline.passes import packed, recorded
from pipeline.passes.packed import PackedPasses
from pipeline.passes.padded import PaddedPasses
from pipeline.stages import Run, Stopped
from schemas.stage import GenerateSpec

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")  # inductor's own

LENGTHS = (9, 70, 2, 41, 1, 40, 23, 23)
PROMPTS = [
    Prompt(torch.randint(3, 300, (length,), generator=torch.Generator().manual_seed(at)).tolist(), 24, seed=at)
    for at, length in enumerate(LENGTHS)
]
SAMPLED: dict[str, Any] = {"temperature": 0.8, "top_p": 0.9, "top_k": 40}


def traced(patched: pytest.MonkeyPatch) -> None:
    """As on a GPU in half precision, but traced alone: torch's own compiler would take half a minute."""
    patched.setattr(decoding, "_worth_packing", lambda loaded: True)
    patched.setattr(torch, "compile", partial(_COMPILE, backend="eager"))


_COMPILE = torch.compile


@pytest.fixture(scope="module")
def both(models: dict[str, Path]) -> Iterator[tuple[LoadedModel, LoadedModel]]:
    """One model twice: for ``generate``, and made ready for packed passes."""
    torch._dynamo.reset()
    plain, other = (ModelPool("cpu").causal_lm(str(models["llama"])) for _ in range(2))
    with pytest.MonkeyPatch.context() as patched:
        traced(patched)
        assert passes_for(other) is PackedPasses
    yield plain, other


@pytest.fixture(scope="module")
def drafters(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> list[LoadedModel]:
    """Ready for packed passes, too: the model itself, and one that resembles it."""
    folder = tmp_path_factory.mktemp("relative")
    shutil.copytree(models["llama"], folder, dirs_exist_ok=True)
    tensors, noise = load_file(folder / "model.safetensors"), torch.Generator().manual_seed(0)
    changed = {name: one + 0.03 * torch.randn(one.shape, generator=noise) for name, one in tensors.items()}
    save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
    found = [ModelPool("cpu").causal_lm(str(one)) for one in (models["llama"], folder)]
    with pytest.MonkeyPatch.context() as patched:
        traced(patched)
        assert all(passes_for(one) is PackedPasses for one in found)
    return found


Generate = Callable[..., list[Generation]]


@pytest.fixture
def generate(both: tuple[LoadedModel, LoadedModel], monkeypatch: pytest.MonkeyPatch) -> Generate:
    """Generations by either; the packed ones unless ``plain``. Nothing is kept of an earlier test's."""
    let_go()
    monkeypatch.setattr(decoding, "_worth_packing", lambda loaded: loaded is not both[0])

    def work(
        prompts: Sequence[Prompt], run: Run | None = None, plain: bool = False, models: Sequence[LoadedModel] = (),
        **settings: Any,
    ) -> Any:  # fmt: skip
        loaded = both[0] if plain else both[1]
        spec = GenerateSpec(kind="generate", drafters=["x"] * len(models), **settings)
        return LocalGenerator(loaded, spec, run or Run(ModelPool("cpu")), models).generate(prompts)

    return work


def said(generations: Sequence[Generation]) -> list[tuple[str, list[int], str]]:
    return [(one.text, one.tokens, one.finish_reason) for one in generations]


@pytest.mark.parametrize("settings", [{}, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("batch_tokens", [40, 100, 16384])
@pytest.mark.parametrize("draft_tokens", [0, 5])
def test_any_batch_says_what_padded_passes_say(
    generate: Generate, settings: dict[str, Any], batch_tokens: int, draft_tokens: int
) -> None:
    expected = said(generate(PROMPTS, plain=True, **settings))
    assert said(generate(PROMPTS, batch_tokens=batch_tokens, draft_tokens=draft_tokens, **settings)) == expected
    assert len({tuple(tokens) for _, tokens, _ in expected}) > 4  # else it would prove nothing


@pytest.mark.parametrize("settings", [{}, SAMPLED], ids=["greedy", "sampled"])
def test_vectors_are_read_among_tokens(
    generate: Generate, drafters: list[LoadedModel], settings: dict[str, Any]
) -> None:
    """Prompts of 70 vectors that begin alike, others with some between their tokens, and plain ones; with drafters that
    know these, and that do not."""
    drawn = torch.Generator().manual_seed(0)
    shared, other = torch.randn(70, 64, generator=drawn), torch.randn(3, 64, generator=drawn)
    prompts = [
        Prompt.of([shared, one.ids] if place % 3 == 0 else [one.ids, other] if place % 3 == 1 else [one.ids], 18, place)
        for place, one in enumerate(PROMPTS)
    ]
    expected = said(generate(prompts, plain=True, **settings))
    for batch_tokens in (100, 200, 16384):
        assert said(generate(prompts, batch_tokens=batch_tokens, draft_tokens=5, **settings)) == expected
        some = {"batch_tokens": batch_tokens, "draft_rounds": (2, 2), "draft_tokens": 1}
        assert said(generate(prompts, models=drafters, **some, **settings)) == expected
    found = generate(prompts, models=[drafters[0]], draft_rounds=(5,), **settings)  # the model itself is always right
    assert all(one.passes <= 1 + -(-(len(one.tokens) - 1) // 6) for one in found)


def test_rows_take_the_room_of_those_that_ended(generate: Generate, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts with room for three of them at once: the others begin while these go on, and read over what they left."""
    prompts = [Prompt(one.ids, 3 + 5 * (place % 4), one.seed) for place, one in enumerate(PROMPTS * 3)]
    begun: list[list[int]] = []
    begin = Ending.begin

    def noted(self: Ending, rows: list[int]) -> None:
        begun.append(rows)
        begin(self, rows)

    expected = said(generate(prompts, plain=True, **SAMPLED))
    monkeypatch.setattr(Ending, "begin", noted)
    assert said(generate(prompts, batch_tokens=200, **SAMPLED)) == expected
    assert sorted(row for rows in begun for row in rows) == list(range(len(prompts)))
    assert len(begun[0]) < 5 and len(begun) > 5


def test_what_prompts_have_in_common_is_copied(generate: Generate, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = prompts_of(160)
    copied: list[int] = []
    copy = PackedPasses.copy

    def counted(self: PackedPasses, sources: Any, targets: Any, counts: Any) -> None:
        copied.append(int(counts.sum()))
        copy(self, sources, targets, counts)

    expected = said(generate(prompts, plain=True))
    monkeypatch.setattr(PackedPasses, "copy", counted)
    for batch_tokens in (300, 16384):
        assert said(generate(prompts, batch_tokens=batch_tokens)) == expected
    assert len(copied) > 1 and sum(copied) > 600  # both times some, and with all of them here nearly all


def test_order_does_not_matter_and_other_batches_compile_nothing(generate: Generate) -> None:
    """Once there is a program for prompts and one for single tokens, whatever number of rows there are."""
    expected = said(generate(PROMPTS))
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert said(generate(PROMPTS[::-1]))[::-1] == expected
    assert said(generate(PROMPTS[2:5])) == expected[2:5]
    assert said(generate(PROMPTS[1:2])) == expected[1:2]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before


@pytest.fixture
def recording(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Passes are recorded here, too: as what runs once more. How many rows those had that were, and 0 for a replay."""
    rows: list[int] = []

    def record(run: recorded.Run) -> recorded.Recorded:
        found, logits = (one.clone() for one in run())
        rows.append(len(found))

        def again() -> None:
            rows.append(0)
            for one, other in zip((found, logits), run(), strict=True):
                one.copy_(other)

        return again, (found, logits)

    monkeypatch.setitem(recorded.RECORDERS, "cpu", lambda device: record)
    return rows


@pytest.mark.parametrize("settings", [{}, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("served", [True, False])
@pytest.mark.parametrize("count", [1, 5, 8])
def test_recorded_passes_say_the_same(
    generate: Generate, recording: list[int], settings: dict[str, Any], count: int, served: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Rows end one by one, so that there are idle ones beside them. What is recorded for more serves fewer, unless
    these are many steps: then more than one number is recorded."""
    if not served:
        monkeypatch.setattr(recorded, "_SERVED", 0)
    prompts = [Prompt(one.ids, 24 - 2 * place, one.seed) for place, one in enumerate(PROMPTS[:count])]
    expected = said(generate(prompts, plain=True, **settings))
    assert said(generate(prompts, **settings)) == expected
    assert [rows for rows in recording if rows] == ([2] if count == 1 else [8] if served else [8, 4, 2])
    assert recording.count(0) > 10  # most passes were replays
    recording.clear()
    assert said(generate(prompts, draft_tokens=3, **settings)) == expected
    assert recording.count(0) > 5


CASCADES: list[dict[str, Any]] = [
    {"draft_tokens": 3, "draft_rounds": (2,)},
    {"draft_tokens": 2, "draft_rounds": (2,), "draft_tail": 3, "draft_lenience": 2.0},
    {"draft_tokens": 1, "draft_rounds": (2, 2)},
]


@pytest.mark.parametrize("settings", [{}, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("cascade", CASCADES)
def test_cascades_are_recorded_and_say_the_same(
    generate: Generate, drafters: list[LoadedModel], recording: list[int], caplog: pytest.LogCaptureFixture,
    cascade: dict[str, Any], settings: dict[str, Any],
) -> None:  # fmt: skip
    """Drafts behind a rejected one are other tokens in a replay: what is compared does not hang on them."""
    models = [drafters[1], drafters[0]][: len(cascade["draft_rounds"])]
    prompts = [Prompt(one.ids, 60, one.seed) for one in PROMPTS]
    expected = said(generate(prompts, plain=True, **settings))
    for batch_tokens in (400, 16384):
        recording.clear()
        assert said(generate(prompts, models=models, batch_tokens=batch_tokens, **cascade, **settings)) == expected
        assert recording.count(0) > 5
    assert "kernel by kernel" not in caplog.text


def test_a_replay_that_rounds_otherwise_leaves_nothing_behind(
    generate: Generate, both: tuple[LoadedModel, LoadedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The replay that is compared writes other tokens: what was launched counts."""
    rolled: list[int] = []

    def record(run: recorded.Run) -> recorded.Recorded:
        output = [one.clone() for one in run()]

        def again() -> None:
            for one, other in zip(output, run(), strict=True):
                one.copy_(other)
            rolled.append(1)
            lines[0].tokens[:-1] = (lines[0].tokens[:-1] + 1) % 300

        return again, (output[0], output[1])

    lines: list[Lines] = []
    begin = Lines.__init__

    def noted(self: Lines, *arguments: Any) -> None:
        begin(self, *arguments)
        lines[:] = [self]

    expected = said(generate(PROMPTS, plain=True))
    monkeypatch.setattr(Lines, "__init__", noted)
    monkeypatch.setattr(recorded._Step, "forget_logits", lambda self: None)
    monkeypatch.setattr(recorded, "_TOLERANCE", -1.0)  # seen, compared, and not used
    monkeypatch.setattr(both[1].model, "contextmill_unrecorded", set(), raising=False)
    monkeypatch.setitem(recorded.RECORDERS, "cpu", lambda device: record)
    assert said(generate(PROMPTS, draft_tokens=3)) == expected
    assert rolled


def test_a_drafter_that_needs_other_passes_does_without(
    generate: Generate, both: tuple[LoadedModel, LoadedModel], caplog: pytest.LogCaptureFixture
) -> None:
    expected = said(generate(PROMPTS, plain=True))
    found = generate(PROMPTS, models=[both[0]])
    assert said(found) == expected and not any(one.drafted for one in found)
    assert "does not draft: it needs PaddedPasses, its target PackedPasses" in caplog.text


def test_idle_rows_stay_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also after they were not, and a step that is recorded once more changes nothing by that."""
    told: list[list[int]] = []
    state = torch.zeros(5)

    def step(slots: torch.Tensor, width: int, most: int) -> recorded.Output:
        told.append(slots.tolist())
        state[slots] += 1
        return slots[:, None].clone(), torch.ones(len(slots), 3)

    def record(run: recorded.Run) -> recorded.Recorded:
        output = run()
        return run, output

    monkeypatch.setitem(recorded.RECORDERS, "cpu", lambda device: record)
    steps = recorded.Steps(recorded.Work(step, [state], idle=4), records=True, refused=set(), kind=0)
    for _ in range(4):
        steps(np.array([0, 1, 3]), 1, 9)
    steps(np.array([2, 1, 0, 3]), 1, 9)
    steps(np.array([3, 0, 1]), 1, 9)
    assert told[:3] == [[0, 1, 3], [0, 1, 3], [4, 4, 4, 4]]  # launched twice, then recorded
    assert told[3:5] == [[0, 1, 3, 4], [0, 1, 3]]  # replayed to compare, and launched again from where it was
    assert told[5:] == [[0, 1, 3, 4], [2, 1, 0, 3], [3, 0, 1, 4]]
    assert state[:4].tolist() == [6, 6, 1, 6]


def _off_in_one_row(run: recorded.Run) -> recorded.Recorded:
    found, logits = (one.clone() for one in run())
    logits[0] = 0
    return lambda: None, (found, logits)


def _refused(run: recorded.Run) -> recorded.Recorded:
    raise RuntimeError("operation not permitted\nwhen stream is capturing")


@pytest.mark.parametrize(("record", "says"), [(_refused, "operation not permitted"), (_off_in_one_row, "is 1.00 off")])
def test_what_cannot_be_recorded_or_says_something_else_is_launched(
    generate: Generate, both: tuple[LoadedModel, LoadedModel], monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture, record: recorded.Recorder, says: str,
) -> None:  # fmt: skip
    """By every later batch of the model, too, which is told of once."""
    tried: list[int] = []

    def counted(run: recorded.Run) -> recorded.Recorded:
        tried.append(1)
        return record(run)

    monkeypatch.setitem(recorded.RECORDERS, "cpu", lambda device: counted)
    monkeypatch.setattr(both[1].model, "contextmill_unrecorded", set(), raising=False)
    expected = said(generate(PROMPTS, plain=True))
    assert said(generate(PROMPTS)) == said(generate(PROMPTS)) == expected
    assert tried == [1] and caplog.text.count(says) == 1


@pytest.mark.parametrize("full", [torch.OutOfMemoryError("CUDA out"), RuntimeError("CUDA error: out of memory Search")])
def test_a_batch_that_leaves_no_memory_to_record_is_launched_whole(
    generate: Generate, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, full: Exception
) -> None:
    tried: list[int] = []

    def record(run: recorded.Run) -> recorded.Recorded:
        tried.append(1)
        raise full

    caplog.set_level("INFO")
    monkeypatch.setitem(recorded.RECORDERS, "cpu", lambda device: record)
    expected = said(generate(PROMPTS, plain=True))
    assert said(generate(PROMPTS)) == said(generate(PROMPTS)) == expected
    assert tried == [1, 1]  # each batch may try
    assert "no memory is left to record" in caplog.text and "a batch of 8 rows" not in caplog.text


@pytest.mark.parametrize("most", [7, 40])
def test_prompts_are_read_in_pieces(generate: Generate, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    monkeypatch.setattr(decoding, "PASS_TOKENS", most)
    assert said(generate(PROMPTS)) == said(generate(PROMPTS, plain=True))


def test_every_row_ends_at_its_own_step(generate: Generate, both: tuple[LoadedModel, LoadedModel]) -> None:
    """By its limit, by an end token that others meet at other steps, or by a stop string."""
    rows = [Prompt(one.ids, limit, one.seed) for one, limit in zip(PROMPTS, (1, 5, 24, 1, 3, 24, 24, 2), strict=True)]
    free = generate(PROMPTS, plain=True)
    stop = next(one.text for one in free if len(one.text) > 9)[4:7]
    kept = [loaded.model.generation_config.eos_token_id for loaded in both]
    try:
        for loaded in both:
            loaded.model.generation_config.eos_token_id = [2, free[2].tokens[7], free[5].tokens[3]]
        expected = generate(rows, plain=True, stop=[stop])
        found = generate(rows, stop=[stop])
    finally:
        for loaded, ids in zip(both, kept, strict=True):
            loaded.model.generation_config.eos_token_id = ids
    assert said(found) == said(expected)
    assert len({len(one.tokens) for one in found}) > 3
    assert {one.finish_reason for one in found} == {"stop", "length"}
    assert said(generate([Prompt(one.ids, 1) for one in PROMPTS])) == [
        (one.text, one.tokens, one.finish_reason)
        for one in generate([Prompt(one.ids, 1) for one in PROMPTS], plain=True)
    ]


def test_a_row_may_fill_the_window(generate: Generate, both: tuple[LoadedModel, LoadedModel]) -> None:
    ids, window = PROMPTS[1].ids, both[0].window
    rows = [Prompt((ids * 3)[: window - room], room) for room in (1, 2, 30)]
    assert said(generate(rows)) == said(generate(rows, plain=True))


def test_seconds_are_shared_and_progress_counts_once(generate: Generate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.generation.ending.LOOK_SECONDS", 0.0)
    counted: list[tuple[int, int]] = []
    run = Run(ModelPool("cpu"), progress=lambda documents, tokens: counted.append((documents, tokens)))
    found = generate(PROMPTS, run=run)
    assert sum(documents for documents, _ in counted) == len(PROMPTS)
    assert sum(tokens for _, tokens in counted) == sum(LENGTHS) + sum(len(one.tokens) for one in found)
    assert all(0 < one.latency_seconds < sum(one.seconds for one in found) for one in found)
    early, late = generate([Prompt(PROMPTS[0].ids, 2), Prompt(PROMPTS[1].ids, 24)])
    assert early.latency_seconds < late.latency_seconds


def test_it_stops_within_a_batch_when_told(generate: Generate, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr("pipeline.generation.ending.LOOK_SECONDS", 0.0)

    def stopping() -> bool:
        asked.append(1)
        return len(asked) > 5

    with pytest.raises(Stopped):
        generate(PROMPTS, run=Run(ModelPool("cpu"), stopping=stopping))
    assert len(asked) == 6
    assert said(generate(PROMPTS)) == said(generate(PROMPTS, plain=True))


def test_where_memory_runs_out_less_is_done_at_once_and_the_store_let_go(
    generate: Generate, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It runs out halfway: what had ended by then stays, the rest begins anew."""
    begun: list[Any] = []
    counted_tokens: list[int] = []
    read_on, reserve = PackedPasses.read_on, PackedPasses.reserve

    def counted(self: PackedPasses, columns: int, longest: int) -> None:
        assert not any(one() is not None for one in begun)
        begun.append(weakref.ref(self))
        reserve(self, columns, longest)

    def narrow(
        self: PackedPasses, slots: torch.Tensor, ids: torch.Tensor, stored: torch.Tensor, most: int
    ) -> torch.Tensor:
        if len(slots) > 3 and stored.min() > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return read_on(self, slots, ids, stored, most)

    prompts = [Prompt(PROMPTS[0].ids, 3), *PROMPTS[1:]]
    expected = said(generate(prompts, plain=True))
    monkeypatch.setattr(PackedPasses, "reserve", counted)
    monkeypatch.setattr(PackedPasses, "read_on", narrow)
    run = Run(ModelPool("cpu"), progress=lambda documents, tokens: counted_tokens.append(tokens))
    assert said(generate(prompts, run=run)) == expected
    assert len(begun) > 1 and "out of memory: 7 rows in room for" in caplog.text
    assert sum(counted_tokens) == sum(len(one.ids) for one in prompts) + sum(len(tokens) for _, tokens, _ in expected)


def save_other(folder: Path, name: str, **settings: Any) -> LoadedModel:
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    sizes["num_key_value_heads"] = 2
    config = AutoConfig.for_model(name, vocab_size=save_tokenizer(folder), bos_token_id=1, **sizes, **settings)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return ModelPool("cpu").causal_lm(str(folder))


@pytest.mark.parametrize(
    ("name", "settings"),
    [("granite", {"logits_scaling": 8.0}), ("mistral", {"sliding_window": 16}), ("gpt2", {})],
)
def test_what_cannot_be_decoded_so_stays_with_generate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, settings: dict[str, Any]
) -> None:
    loaded = save_other(tmp_path, name, **settings)
    generator = LocalGenerator(loaded, GenerateSpec(kind="generate"), Run(ModelPool("cpu")))
    expected = said(generator.generate(PROMPTS[:3]))
    traced(monkeypatch)
    assert passes_for(loaded) is not PackedPasses
    assert said(generator.generate(PROMPTS[:3])) == expected


def test_a_kernel_that_lies_about_single_tokens_is_not_used(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    attend = packed.attend_few

    def broken(query: torch.Tensor, *rest: Any) -> torch.Tensor:
        found: torch.Tensor = attend(query, *rest)
        return found * 2

    loaded = ModelPool("cpu").causal_lm(str(models["llama"]))
    traced(monkeypatch)
    monkeypatch.setattr(packed, "attend_few", broken)
    assert passes_for(loaded) is not PackedPasses
    assert "the model writes with padding" in caplog.text


def test_the_cpu_and_float32_read_padded(models: dict[str, Path]) -> None:
    for dtype in ("float32", "bfloat16"):
        assert passes_for(ModelPool("cpu").causal_lm(str(models["llama"]), dtype)) is PaddedPasses
