"""Spans laid end to end, with low-rank weights merged while they are read: the very slots of padded passes."""

from __future__ import annotations

import json
import logging
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from encoding_jobs import DOCUMENTS, TEXTS
from tiny_models import save_tiny_encoder, save_tiny_llama, save_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM
from written_out import write_out

from benchmarks import slot_encoding
from pipeline.memory import encoding, resident
from pipeline.memory.autoencoder import Autoencoder
from pipeline.memory.encode_stage import Encode
from pipeline.memory.encoder import load_encoder
from pipeline.memory.lowrank import LowRank
from pipeline.memory.merged import Merged, merging
from pipeline.memory.packing import measuring, unpack
from pipeline.memory.ragged import encode_spans
from pipeline.memory.spans import Ints
from pipeline.memory.widening import widen
from pipeline.models import ModelPool
from pipeline.passes.packable import reads_wide
from pipeline.stages import Result, Run, Stopped
from schemas.job import TargetSpec
from schemas.memory import EncoderSpec, EncodeSpec

KINDS: dict[str, dict[str, Any]] = {
    "interleaved": {},
    "appended": {"layout": "appended", "slots": 20, "targets": ["q_proj", "v_proj", "down_proj"]},
    "pooled": {"layout": "pooled"},
    "gates": {"targets": ["up_proj", "o_proj"]},
    "whole": {"rank": 0},
}
MODELS = "llama", "qwen2"
LENGTHS, COUNTS = (40, 1, 17, 16, 72, 17), (10, 1, 5, 4, 18, 2)


@pytest.fixture(autouse=True)
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU in half precision."""
    pytest.importorskip("triton", reason="Triton is for Linux on x86-64")
    write_out(monkeypatch)
    monkeypatch.setattr(resident, "worth_widening", lambda coder: True)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models, of which one has biases, with encoders of every kind."""
    found = {}
    for name in MODELS:
        found[name] = tmp_path_factory.mktemp(name)
        if name == "llama":
            save_tiny_llama(found[name])
        else:
            _save(name, found[name])
        for kind, spec in KINDS.items():
            save_tiny_encoder(found[name] / kind, found[name], **spec)
    return found


def _save(name: str, folder: Path) -> None:
    sizes: dict[str, Any] = {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "sliding_window": None, "initializer_range": 0.25,
    }  # fmt: skip
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, vocab_size=save_tokenizer(folder), **sizes))
    for weights in model.parameters():
        if weights.ndim == 1:  # biases begin as zeros
            weights.data += torch.randn(weights.shape) / 8
    model.save_pretrained(folder)


def stage(folder: Path, kind: str, **settings: Any) -> Encode:
    spec = {"kind": "encode", "encoder": str(folder / kind), **settings}
    return Encode(EncodeSpec.model_validate(spec), TargetSpec(model=str(folder)))


def coder_of(folder: Path, kind: str, pool: ModelPool) -> Autoencoder:
    return resident.resident(*stage(folder, kind).found(), str(folder), "float32", "cpu", pool).coder


def spans() -> list[Ints]:
    drawn = torch.Generator().manual_seed(3)
    return [torch.randint(3, 900, (length,), generator=drawn).numpy() for length in LENGTHS]


@torch.inference_mode()
def slots(coder: Autoencoder) -> torch.Tensor:
    found = encode_spans(coder, spans(), COUNTS)
    assert [len(one) for one in found] == list(COUNTS)
    return torch.cat(found)


def results(made: Encode, pool: ModelPool) -> list[Result]:
    outcomes = made.run(DOCUMENTS, Run(pool))
    assert all(isinstance(one, Result) and one.slots is not None for one in outcomes), outcomes
    return [one for one in outcomes if isinstance(one, Result)]


@pytest.mark.parametrize("joins", ["never", "before", "after"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MODELS)
def test_slots_are_those_of_padded_passes(
    folders: dict[str, Path], name: str, kind: str, joins: str, pool: ModelPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the model that answers has its products joined, before the encoder comes or later, or never."""
    folder, pool = folders[name], ModelPool("cpu")
    expected = slots(load_encoder(str(folder / kind), pool))
    trunk = pool.causal_lm(str(folder)).model.get_decoder()
    if joins == "before":
        assert reads_wide(trunk)
    coder = coder_of(folder, kind, pool)
    monkeypatch.setattr(coder, "read", None)  # padded passes
    if joins == "after":
        assert reads_wide(trunk)
    torch.testing.assert_close(slots(coder), expected, rtol=1e-4, atol=1e-4)
    assert coder.wide is not None and expected.std() > 0.1
    pool.close()


def test_low_rank_weights_count(folders: dict[str, Path], pool: ModelPool) -> None:
    coder = coder_of(folders["llama"], "interleaved", ModelPool("cpu"))
    before = slots(coder)
    for one in coder.modules():
        if isinstance(one, LowRank):
            one.lora_B.data = one.lora_B * 2
    assert (slots(coder) - before).norm() > 0.05 * before.norm()


def test_no_more_than_one_product_is_there_at_a_time(
    folders: dict[str, Path], pool: ModelPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the model, whose own tensors are read where nothing was learned: in place, once they are joined."""
    pool = ModelPool("cpu")
    loaded = pool.causal_lm(str(folders["qwen2"]))
    coder = coder_of(folders["qwen2"], "gates", pool)
    assert reads_wide(loaded.model.get_decoder())
    theirs = {one.untyped_storage().data_ptr() for one in loaded.model.parameters()}
    made: list[weakref.ref[torch.Tensor]] = []
    real: Any = Merged.weight

    def watched(one: Merged) -> torch.Tensor:
        assert not any(each() is not None for each in made)
        found: torch.Tensor = real.fget(one)
        if found.untyped_storage().data_ptr() not in theirs:
            made.append(weakref.ref(found))
        return found

    monkeypatch.setattr(Merged, "weight", property(watched))
    slots(coder)
    assert len(made) == 2 * 2  # gates and out of two layers
    pool.close()


@pytest.mark.parametrize("kind", ["interleaved", "pooled"])
def test_the_stage_makes_the_same_of_documents(folders: dict[str, Path], kind: str, pool: ModelPool) -> None:
    made, wide = stage(folders["llama"], kind), ModelPool("cpu")
    coder = coder_of(folders["llama"], kind, wide)
    for batch_tokens in (16_384, 100, 1):
        found = results(stage(folders["llama"], kind, batch_tokens=batch_tokens), wide)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(coder, "wide", None)
            expected = results(made, wide)
        for one, other in zip(found, expected, strict=True):
            assert one.slots is not None and other.slots is not None
            torch.testing.assert_close(unpack(one.slots), unpack(other.slots), rtol=2e-3, atol=2e-3)
            assert one.fields["context_slots"] == other.fields["context_slots"]
    wide.close()


def test_passes_are_filled_with_tokens_and_halved_where_memory_runs_out(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pool, passed, most = ModelPool("cpu"), list[int](), 10**9
    expected = results(stage(folders["llama"], "interleaved"), pool)

    def short(coder: Autoencoder, ids: Any, counts: Any) -> Any:
        passed.append(len(ids) + sum(map(len, ids)) + sum(counts))
        if passed[-1] > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return encode_spans(coder, ids, counts)

    monkeypatch.setattr(encoding, "encode_spans", short)
    monkeypatch.setattr(encoding, "_LOT", 10**9)
    results(stage(folders["llama"], "interleaved", batch_tokens=200), pool)
    assert all(180 < tokens <= 200 for tokens in passed[:-1])
    passed.clear()
    most = 110
    found = results(stage(folders["llama"], "interleaved", batch_tokens=200), pool)
    assert "out of memory: a batch of" in caplog.text
    for one, other in zip(found, expected, strict=True):
        assert one.slots is not None and other.slots is not None
        torch.testing.assert_close(unpack(one.slots), unpack(other.slots), rtol=2e-3, atol=2e-3)
    pool.close()


def test_slots_that_cannot_be_fetched_at_once_are_fetched_again(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By whoever is launched next, in smaller passes: no document goes without."""
    pool, made = ModelPool("cpu"), stage(folders["llama"], "interleaved", batch_tokens=400)
    expected, waits = results(made, pool), list[int]()

    def measured(*given: Any) -> Any:
        there = measuring(*given)

        def wait() -> Any:
            waits.append(1)
            if len(waits) == 2:
                raise MemoryError
            return there()

        return wait

    monkeypatch.setattr(encoding, "measuring", measured)
    for one, other in zip(results(made, pool), expected, strict=True):
        assert one.fields["slots_sha256"] is not None and one.slots is not None and other.slots is not None
        torch.testing.assert_close(unpack(one.slots), unpack(other.slots), rtol=2e-3, atol=2e-3)
    pool.close()


def test_a_pass_is_launched_before_the_slots_of_the_last_are_waited_for(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU; and nothing is lost of the last one, nor counted before it is there."""
    pool, seen = ModelPool("cpu"), list[str]()
    made = stage(folders["llama"], "interleaved", batch_tokens=400)
    expected = results(made, pool)

    def launched(*given: Any) -> Any:
        seen.append("launched")
        return encode_spans(*given)

    def measured(*given: Any) -> Any:
        there = measuring(*given)

        def wait() -> Any:
            seen.append("waited")
            return there()

        return wait

    monkeypatch.setattr(encoding, "encode_spans", launched)
    monkeypatch.setattr(encoding, "measuring", measured)
    monkeypatch.setitem(encoding._AHEAD, "cpu", 1)
    monkeypatch.setattr(encoding, "_LOT", 3)  # through several lots, too
    counted: list[int] = []
    found = made.run(DOCUMENTS, Run(pool, progress=lambda documents, tokens: counted.append(tokens)))
    passes = len(seen) // 2
    assert passes > 3 and seen == ["launched", *["launched", "waited"] * (passes - 1), "waited"]
    assert sum(counted) == sum(one.tokens_in for one in expected)
    for one, other in zip(found, expected, strict=True):
        assert isinstance(one, Result) and one.fields["slots_sha256"] == other.fields["slots_sha256"]
    stopping = iter([False, False, False, True])
    with pytest.raises(Stopped):
        made.run(DOCUMENTS, Run(pool, stopping=lambda: next(stopping)))
    pool.close()


def test_where_it_does_not_say_the_same_spans_are_padded_and_that_is_said(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from pipeline.passes import between

    real = between.gate
    monkeypatch.setattr(between, "gate", lambda given: real(given) * 1.5)
    pool = ModelPool("cpu")
    with caplog.at_level(logging.WARNING):
        coder = coder_of(folders["llama"], "interleaved", pool)
    assert coder.wide is None and "the encoder reads spans with padding, at about half the speed: it is" in caplog.text
    expected = slots(load_encoder(str(folders["llama"] / "interleaved"), pool))
    torch.testing.assert_close(slots(coder), expected, rtol=1e-5, atol=1e-5)
    pool.close()


@pytest.mark.parametrize("odd", ["another activation", "a sliding window", "norms of queries"])
def test_other_models_are_read_as_before(odd: str, caplog: pytest.LogCaptureFixture) -> None:
    """With nothing said: nothing failed."""
    kind = {"a sliding window": "mistral", "norms of queries": "qwen3"}.get(odd, "llama")
    more: dict[str, Any] = {"sliding_window": 8 if odd == "a sliding window" else None}
    if odd == "another activation":
        more["hidden_act"] = "gelu"
    config = AutoConfig.for_model(
        kind, vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, **more,
    )  # fmt: skip
    coder = Autoencoder(AutoModelForCausalLM.from_config(config, attn_implementation="sdpa"), EncoderSpec(rank=2))
    with caplog.at_level(logging.INFO):
        assert not widen(coder.eval().requires_grad_(False))
    assert coder.wide is None and not caplog.records


def test_projections_that_differ_are_no_product() -> None:
    plain, biased = torch.nn.Linear(8, 8, bias=False), torch.nn.Linear(8, 8)
    inside = SimpleNamespace(a=plain, b=biased, c=torch.nn.Linear(8, 4, bias=False), d=torch.nn.Identity())
    assert merging(inside, ("a", "b")) is merging(inside, ("a", "d")) is merging(inside, ("nowhere",)) is None
    assert merging(inside, ("a",)) is plain and isinstance(merging(inside, ("a", "c")), Merged)
    inside.c.register_forward_hook(lambda *_: None)
    assert merging(inside, ("a", "c")) is None


@pytest.mark.parametrize("wide", [True, False])
def test_its_benchmark_names_every_pass_it_is_set_against(
    folders: dict[str, Path], tmp_path: Path, wide: bool, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(resident, "worth_widening", lambda coder: wide)
    corpus, there = tmp_path / "texts.jsonl", tmp_path / "figures.json"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    sizes = ["--rank", "2", "--span", "16", "--batch-tokens", "200", "--runs", "1", "--json", str(there)]
    where = [str(corpus), "--model", str(folders["qwen2"]), "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["slot_encoding.py", *where, *sizes])
    slot_encoding.main()
    found, said = json.loads(there.read_text()), capsys.readouterr().out
    assert found["tokens"] < found["padded"] and found["more_bytes"] < found["model_bytes"]
    seconds = [found.get(name, 0.0) > 0 for name in ("encode", "bare", "tokenizer", "wide")]
    assert seconds == [True, True, True, wide]
    assert ("wide pass" in said) == wide and "bare pass" in said
