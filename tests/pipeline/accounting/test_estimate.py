"""Estimates: made without torch, honest about what they do not know, checked against formulas and a real model file."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from accounting_rows import job_values, usage
from safetensors import safe_open
from sqlalchemy import Engine, insert
from tiny_models import save_tiny_encoder

from pipeline.accounting.estimate import Estimate, estimate
from pipeline.accounting.footprint import RUNTIME, Shape, footprint, read_shape
from pipeline.accounting.prices import cost_microusd, price_of
from pipeline.accounting.speeds import Measured, measured
from pipeline.generation.bounds import FRAME_TOKENS
from pipeline.models.folder import window_of
from schemas.job import JobSpec
from schemas.tables import Job, Usage

DAY = date(2026, 11, 22)
HOSTED = {"kind": "generate", "backend": "openai", "max_new_tokens": 100}


def job(stages: list[dict[str, Any]], **target: Any) -> JobSpec:
    return JobSpec.model_validate({"input": {"path": "corpus"}, "target": target, "stages": stages})


def compress(model: Path | str, **more: Any) -> dict[str, Any]:
    return {"kind": "compress", "model": str(model), "rate": 0.25, "device": "cpu", **more}


def guess(*arguments: Any, **more: Any) -> Estimate:
    made = estimate(*arguments, when=DAY, **more)
    json.dumps(made.to_json(), allow_nan=False)
    return made


def test_tokens_follow_the_prompts_through_the_stages(tiny_model: Path) -> None:
    made = guess(job([compress(tiny_model), HOSTED], model="gpt-4.1-mini"), 100, 400_000)
    first, second = made.stages
    assert made.tokens == first.tokens_in == 100_000
    assert first.tokens_out == 25_000
    assert (second.tokens_in, second.tokens_out) == (25_000 + 100 * FRAME_TOKENS, 5_000)


def test_slots_are_what_is_read_behind_encode(tiny_model: Path, tmp_path: Path) -> None:
    encoder = save_tiny_encoder(tmp_path / "encoder", tiny_model)
    local = {"kind": "generate", "max_new_tokens": 100}
    for settings, slots in (({}, 25_000), ({"ratio": 2.0}, 50_000), ({"slots": 3}, 18_900)):
        encode = {"kind": "encode", "encoder": str(encoder), **settings}
        made = guess(job([encode, local], model=str(tiny_model)), 100, 400_000)
        first, second = made.stages
        assert (first.tokens_in, first.tokens_out, second.tokens_in) == (100_000, slots, slots)
        assert first.seconds and first.memory_bytes
    lost = guess(job([{"kind": "encode", "encoder": "nowhere"}, local], model=str(tiny_model)), 100, 400_000)
    assert "all contexts are counted here" in " ".join(lost.notes)
    assert "slots are unknown: no encoder 'nowhere'" in " ".join(lost.stages[0].notes)


def test_fitting_slots_takes_its_time(tiny_model: Path, tmp_path: Path) -> None:
    encoder = save_tiny_encoder(tmp_path / "encoder", tiny_model)
    seconds = []
    for settings in ({}, {"refine": 8}, {"refine": 8, "continuations": 4}):
        encode = {"kind": "encode", "encoder": str(encoder), **settings}
        seconds.append(guess(job([encode], model=str(tiny_model)), 100, 400_000).stages[0].seconds or 0.0)
    assert seconds[1] == pytest.approx(25 * seconds[0], rel=0.01) and seconds[2] == pytest.approx(
        73 * seconds[0], rel=0.01
    )


def test_no_answer_is_longer_than_the_window_and_who_drafts_takes_memory(tiny_model: Path) -> None:
    name, window = str(tiny_model), window_of(tiny_model)
    assert window is not None
    generate = {"kind": "generate", "max_new_tokens": 2**31 - 1}
    made = guess(job([generate], model=name), 10, 4_000).stages[0]
    assert made.tokens_out == 10 * window - made.tokens_in
    assert guess(job([{**generate, "max_new_tokens": 20}], model=name), 10, 4_000).stages[0].tokens_out == 100
    small = {"kind": "generate", "max_new_tokens": 20}
    alone, two, layers = (
        guess(job([{**small, "drafters": drafters}], model=name), 10, 4_000).stages[0]
        for drafters in ([], [name], ["layers:1"])
    )
    assert alone.weights_bytes and alone.memory_bytes and two.memory_bytes
    assert two.weights_bytes == 2 * alone.weights_bytes and two.memory_bytes > alone.memory_bytes + alone.weights_bytes
    assert (layers.weights_bytes, layers.memory_bytes) == (alone.weights_bytes, alone.memory_bytes)


def test_money_is_that_of_the_hosted_calls_at_the_days_price(tiny_model: Path) -> None:
    made = guess(job([compress(tiny_model), HOSTED], model="gpt-4.1-mini"), 100, 400_000)
    price = price_of("openai:gpt-4.1-mini", DAY)
    assert price is not None
    assert made.expected_microusd == cost_microusd(price, 31_400, 0, 5_000) == 12_560 + 8_000
    assert made.worst_microusd == 12_560 + 16_000
    assert made.stages[1].price == price.id


def test_a_long_prompt_is_priced_in_its_tier_and_many_short_ones_are_not() -> None:
    spec = job([HOSTED], model="claude-sonnet-4-5", prices=("anthropic:claude-sonnet-4-5",))
    short, long = guess(spec, 1_000, 4_000_000), guess(spec, 1, 4_000_000)
    assert short.stages[0].tokens_in == 1_000_000 + 1_000 * FRAME_TOKENS
    assert short.worst_microusd == pytest.approx(1_064_000 * 3.75 + 100_000 * 15)  # a cache write is the dearest input
    assert long.worst_microusd == pytest.approx((1_000_000 + FRAME_TOKENS) * 7.5 + 100 * 22.5, abs=1)


def test_an_unknown_price_leaves_the_money_unknown() -> None:
    made = guess(job([HOSTED], model="my-own-model"), 10, 4_000)
    assert (made.expected_microusd, made.worst_microusd) == (None, None)
    assert "unknown, not 0" in made.stages[0].notes[0]


def test_a_local_job_costs_no_calls(tiny_model: Path) -> None:
    made = guess(job([compress(tiny_model)], prices=("openai:gpt-4.1-mini",)), 10, 40_000)
    assert made.expected_microusd is None
    (saving,) = made.savings
    assert saving.tokens_removed == 7_500
    assert saving.gross_microusd == 3_000
    assert made.seconds is not None and made.seconds > 0
    assert saving.net_microusd == 3_000 - saving.worker_microusd


def test_a_missing_model_leaves_time_and_memory_unknown_and_says_so(tmp_path: Path) -> None:
    made = guess(job([compress(tmp_path / "nowhere")]), 10, 40_000)
    assert (made.seconds, made.memory_bytes) == (None, None)
    assert "nowhere" in made.stages[0].notes[0]


def test_a_sample_is_counted_with_the_targets_tokenizer(tiny_model: Path) -> None:
    from transformers import AutoTokenizer

    sample = ["The quick brown fox jumps over the lazy dog.", "12 + 30 = 42"]
    made = guess(job([compress(tiny_model)], model=str(tiny_model)), 2, 56, sample=sample)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    assert made.tokens == pytest.approx(sum(len(tokenizer(text)["input_ids"]) for text in sample), abs=1)
    assert "counted on 2 documents" in made.notes[0]


def test_only_what_may_be_taken_over_is_said_to_be(tiny_model: Path) -> None:
    for stage, taken in ((compress(tiny_model), True), ({"kind": "pretrain"}, False), ({"kind": "finetune"}, False)):
        made = guess(job([stage], model=str(tiny_model)), 10, 40_000)
        assert any("are taken over" in note for note in made.notes) is taken


def test_a_training_of_an_encoder_takes_as_long_as_its_steps(tiny_model: Path) -> None:
    def seconds(documents: int, **stage: Any) -> float:
        made = guess(job([{"device": "cpu", **stage}], model=str(tiny_model)), documents, 4_000 * documents)
        assert made.stages[0].seconds is not None and made.stages[0].memory_bytes is None
        return made.stages[0].seconds

    pretrain = [seconds(100, kind="pretrain", steps=steps, tokens_per_step=16_000) for steps in (10, 20, 30)]
    finetune = [seconds(100, kind="finetune", steps=steps, rows_per_step=16) for steps in (10, 20, 30)]
    steps = [later - sooner for rows in (pretrain, finetune) for sooner, later in pairwise(rows)]
    assert steps == pytest.approx([steps[0]] * 4) and steps[0] > 0  # rows have 1,000 tokens each


@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_what_is_measured_before_and_after_a_training_counts(tiny_model: Path, kind: str) -> None:
    """As many more texts that are held out, or written out, as many more seconds."""

    def seconds(documents: int, measured: int, held_out: float = 0.5) -> float:
        stage = {"device": "cpu", "kind": kind, "steps": 1, "measured": measured, "held_out": held_out}
        found = guess(job([stage], model=str(tiny_model)), documents, 4_000 * documents).seconds
        assert found is not None
        return found

    each = [seconds(200, written) for written in (20, 40, 60)]
    assert each[2] - each[1] == pytest.approx(each[1] - each[0]) and each[1] > each[0]
    held = [seconds(documents, 20) for documents in (200, 400, 600)]
    assert held[2] - held[1] == pytest.approx(held[1] - held[0]) and held[1] > held[0]
    assert seconds(200, 20, held_out=0.25) == pytest.approx(seconds(100, 20))
    assert seconds(10, 60) == seconds(10, 5)  # no more are written than are held out


def test_a_damaged_tokenizer_stops_no_estimate(tiny_model: Path, tmp_path: Path) -> None:
    """The job is there by then: it has to stop with what is wrong, not end in a traceback."""
    (tmp_path / "tokenizer.json").write_text('{"cut off')
    made = guess(job([compress(tiny_model)], model=str(tmp_path)), 2, 56, sample=["words"])
    assert made.tokens == 14
    assert "4 characters per token are assumed: the tokenizer of" in made.notes[0]
    assert "cannot be read" in made.notes[0]


def test_a_measurement_comes_before_the_built_in_rates(tiny_model: Path) -> None:
    spec = job([compress(tiny_model), {"kind": "generate", "device": "cpu"}], model=str(tiny_model))
    known = {0: Measured(10, 1_000, 250, 4.0), 1: Measured(10, 250, 70, 7.0)}
    made = guess(spec, 100, 400_000, measured=known)
    assert made.stages[0].seconds == pytest.approx(400.0)
    assert made.stages[1].tokens_out == 700
    assert made.stages[1].seconds == pytest.approx(7.0 / 250 * 25_000)


def test_measurements_come_from_the_work_done_not_from_what_was_taken_over(engine: Engine) -> None:
    rows = [
        usage(0, 0, (100, 50, 50), 1.0),
        usage(0, 1, (300, 50, 40), 2.0),
        usage(0, 2, (500, 50, 50), 0.0, reused_from="j0"),
        usage(0, 3, (4_000, 50, 50), 0.0),  # its contexts were known: nothing was done
    ]
    with engine.begin() as connection:
        connection.execute(insert(Job), [job_values()])
        connection.execute(insert(Usage), rows)
    assert measured(engine, ["c" * 32, "no such stage"]) == {0: Measured(2, 400, 90, 3.0)}


def test_the_shape_is_read_from_the_files_alone(tiny_model: Path) -> None:
    shape, config = read_shape(tiny_model), json.loads((tiny_model / "config.json").read_text())
    assert shape is not None
    with safe_open(tiny_model / "model.safetensors", framework="np") as file:
        elements = sum(file.get_tensor(name).size for name in file.keys())  # noqa: SIM118
    assert shape.parameters == elements
    assert (shape.layers, shape.vocabulary) == (config["num_hidden_layers"], config["vocab_size"])


def test_memory_is_the_sum_of_its_parts() -> None:
    shape = Shape(135_000_000, 30, 3 * 64, 576, 1536, 49_152)
    made = footprint(shape, "bfloat16", 16_384, 2_048)
    assert made.weights == 270_000_000
    assert made.kv == 2 * 30 * 192 * 16_384 * 2
    assert made.logits == 2 * 2_048 * 49_152 * 4
    assert made.activations == 16_384 * (4 * 576 + 2 * 1536) * 2
    assert made.peak == made.weights + made.kv + made.logits + made.activations + RUNTIME


@pytest.mark.parametrize("damage", [b"", b"\xff" * 8, b"\x02\0\0\0\0\0\0\0{]", b"\x02\0\0\0\0\0\0\0[]"])
def test_damaged_weights_give_no_shape(tiny_model: Path, tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "config.json").write_text((tiny_model / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes(damage)
    assert read_shape(tmp_path) is None


def test_an_empty_corpus_and_a_copy_stage() -> None:
    made = guess(job([{"kind": "copy"}]), 0, 0)
    assert (made.tokens, made.seconds, made.expected_microusd) == (0, 0.0, None)


def test_an_estimate_imports_no_framework(tiny_model: Path) -> None:
    code = (
        "import sys, json; from schemas.job import JobSpec; from pipeline.accounting.estimate import estimate\n"
        f"job = JobSpec.model_validate(json.loads({job([compress(tiny_model)]).model_dump_json()!r}))\n"
        "assert estimate(job, 3, 3000, sample=['hello world']).seconds\n"
        "print(sorted({'torch', 'transformers', 'openai', 'matplotlib', 'celery'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr
