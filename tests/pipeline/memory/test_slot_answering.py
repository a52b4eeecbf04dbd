"""The benchmark of answers from slots runs to its end, and its floor counts what a model really does."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import row_by_row  # noqa: F401  the kernel
import torch
from tiny_models import save_tiny_encoder, save_tiny_llama
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import slot_answering
from benchmarks.roofline import LowRanks, Machine, Shapes, Work
from benchmarks.slot_answering import pays
from pipeline.generation import decoding
from pipeline.memory.encoder import load_encoder
from pipeline.memory.lowrank import LowRank
from pipeline.memory.ragged import encode_spans
from pipeline.models import LoadedModel, ModelPool
from pipeline.passes.packed import SPARE
from pipeline.passes.padded import PaddedPasses


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def loaded(folder: Path, pool: ModelPool) -> LoadedModel:
    return pool.causal_lm(str(folder))


def products(counter: FlopCounterMode) -> int:
    """Without attention, of which every kernel counts something else."""
    return sum(count for one, count in counter.get_flop_counts()["Global"].items() if "attention" not in str(one))


@torch.inference_mode()
def test_operations_are_those_of_the_products(loaded: LoadedModel) -> None:
    shapes, model = Shapes.of(loaded.model), loaded.model
    pairs = 4 * shapes.layers * shapes.heads * shapes.size
    for rows, places in ((1, 40), (3, 7)):
        with FlopCounterMode(display=False) as counter:
            hidden = model.get_decoder()(input_ids=torch.ones(rows, places, dtype=torch.int64)).last_hidden_state
            model.get_output_embeddings()(hidden[:, -1])
        reading = shapes.reading(rows, places)
        assert reading.operations == products(counter) + pairs * rows * sum(range(1, places + 1))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.ones(5, 1, dtype=torch.int64))
    assert shapes.step(5, 33).operations == products(counter) + pairs * 5 * 33
    works = shapes.answering(5, 33, 4)
    assert works == [shapes.reading(5, 33), *(shapes.step(5, columns) for columns in (34, 35, 36))]


@torch.inference_mode()
def test_a_step_reads_all_weights_and_all_that_is_stored(loaded: LoadedModel) -> None:
    shapes, model = Shapes.of(loaded.model), loaded.model
    passes = PaddedPasses(model.get_decoder(), 3, loaded.window)
    passes.run(np.arange(3), torch.ones(3 * 256, dtype=torch.int64), np.zeros(3, np.int64), np.full(3, 256))
    stored = sum(one.nbytes for held in passes._store._layers.values() for one in held)
    layers = [one.weight for one in model.modules() if isinstance(one, torch.nn.Linear)]
    assert shapes.step(3, 256).bytes == stored + sum(one.nbytes for one in layers)


def test_encoding_counts_memory_tokens_and_low_rank_weights(folder: Path, pool: ModelPool, tmp_path: Path) -> None:
    """With gradients: products that are added in place are not counted. Of many places they are merged first."""
    coder = load_encoder(str(save_tiny_encoder(tmp_path, folder)), pool)
    spans, many, counted = [(16, 4), (9, 3)], [(100, 25)] * 9, 0
    shapes, low, size = Shapes.of(pool.causal_lm(str(folder)).model), LowRanks.of(coder), coder.map.weight.numel()
    for tokens, slots in spans:  # together they would be padded
        with torch.enable_grad(), FlopCounterMode(display=False) as counter:
            encode_spans(coder, [np.arange(5, 5 + tokens)], [slots])
        counted += products(counter)
    pairs = 4 * shapes.layers * shapes.heads * shapes.size * (21 * 22 / 2 + 13 * 14 / 2)
    assert shapes.encoding(spans, low, size).operations == counted + pairs
    with FlopCounterMode(display=False) as counter:
        for one in coder.modules():
            if isinstance(one, LowRank):
                _ = one.lora_B @ one.lora_A
    found, without = (shapes.encoding(many, one, size) for one in (low, LowRanks(0, 0)))
    assert found.operations - without.operations == products(counter) > 0
    held = [one.nbytes for name, one in coder.named_parameters() if "lora_" in name]
    assert found.bytes - without.bytes == sum(held) > 0


def test_what_takes_longer_counts_pass_by_pass() -> None:
    machine = Machine(operations=100.0, bytes=10.0)
    assert machine.seconds([Work(200.0, 5.0), Work(50.0, 40.0)]) == 2.0 + 4.0


@pytest.mark.parametrize(
    ("first", "more", "count"),
    [(11.0, 1.0, "5 answers "), (3.0, 1.0, "1 answer "), (3.1, 1.0, "2 answers "), (4.0, 3.0, "no "), (2.0, 3.0, "1 ")],
)
def test_encoding_pays_from_so_many_answers_on(first: float, more: float, count: str) -> None:
    assert pays(first, more, 3.0).startswith(count)


Command = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def command(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Its figures for contexts of 300 tokens, or 75 slots, questions of 16 and answers of 5."""
    there, sizes = tmp_path / "figures.json", ["--tokens", "300", "--span", "100", "--new", "5", "--rank", "2"]
    where = ["--model", str(folder), "--device", "cpu", "--dtype", "float32", "--json", str(there)]

    def work(*more: str) -> list[dict[str, Any]]:
        monkeypatch.setattr(sys, "argv", ["slot_answering.py", *where, *sizes, "--runs", "1", *more])
        slot_answering.main()
        found: list[dict[str, Any]] = json.loads(there.read_text())["rows"]
        return found

    return work


def test_all_sides_are_measured_and_set_against_the_text(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    """A store of padded passes has columns by the 256: two of them for a text, one for slots."""
    rows = command("--rows", "1", "3")
    places = [(rows, places) for rows in (1, 3) for places in (316, 92, 92)]
    assert [(one["rows"], one["places"]) for one in rows] == places
    for full, cached, encoded in (rows[:3], rows[3:]):
        assert [one["answers/GB times"] for one in (full, cached, encoded)] == [1.0, 2.0, 2.0]
        assert full["share"] == 1.0 < cached["by roofline"] and encoded["floor s"] > cached["floor s"]
        assert cached["share"] == pytest.approx(full["s"] / cached["s"] / (full["floor s"] / cached["floor s"]))
        assert all(one["s"] > one["floor s"] > 0 for one in (full, cached, encoded))
    assert "operations, more than the" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2069 places, and the model holds 2048"):
        command("--tokens", "2048")


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")  # inductor's own
def test_packed_passes_have_room_for_slots_and_not_for_what_they_stand_for(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, traced alone; an answer's last token is not stored."""
    monkeypatch.setattr(decoding, "_worth_packing", lambda loaded: True)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    full, cached, encoded = (one["MB an answer"] * 3e6 for one in command("--rows", "3"))
    column = 2 * 2 * 2 * 16 * 4
    assert full == pytest.approx((3 * (316 + 4) + SPARE) * column)
    assert cached == encoded == pytest.approx((3 * (92 + 4) + SPARE) * column)
