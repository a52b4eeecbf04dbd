"""Contexts become slots: the very ones that their spans have alone, in whatever company they are encoded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from encoding_jobs import DOCUMENTS, TEXTS, document, encoder_of, stage
from pydantic import ValidationError
from tiny_models import save_tiny_llama

from pipeline.compression.tokens import Tokenising
from pipeline.memory.autoencoder import Autoencoder
from pipeline.memory.encode_stage import Encode
from pipeline.memory.encoder import filled, load_encoder
from pipeline.memory.packing import unpack
from pipeline.memory.ragged import encode_spans
from pipeline.memory.spans import cut
from pipeline.models import ModelDamaged, ModelError, ModelNotFound, ModelPool, load_tokenizer
from pipeline.models.encoders import MANIFEST, WEIGHTS, read_manifest
from pipeline.stages import Refusal, Result, Run
from schemas.document import Document
from schemas.memory import slots_of

KINDS: dict[str, dict[str, Any]] = {
    "interleaved": {},
    "appended": {"layout": "appended", "slots": 8, "targets": ["q_proj", "v_proj"]},
    "pooled": {"layout": "pooled"},
    "whole": {"rank": 0},
}


def results(made: Encode, documents: Sequence[Document], pool: ModelPool) -> list[Result]:
    outcomes = made.run(documents, Run(pool))
    assert all(isinstance(one, Result) for one in outcomes), outcomes
    return [one for one in outcomes if isinstance(one, Result)]


def slots(result: Result) -> torch.Tensor:
    assert result.slots is not None
    return unpack(result.slots)


@pytest.mark.parametrize("kind", KINDS)
def test_slots_are_those_of_each_span_alone(kind: str, tiny_model: Path, pool: ModelPool) -> None:
    encoder = encoder_of(tiny_model, kind, **KINDS[kind])
    coder, tokeniser = load_encoder(str(encoder), pool), Tokenising(load_tokenizer(str(tiny_model)))
    for one, result in zip(DOCUMENTS, results(stage(tiny_model, encoder), DOCUMENTS, pool), strict=True):
        expected, counts = [], []
        for tokens in tokeniser.tokenise(one.parts.contexts):
            ids, begin = torch.from_numpy(tokens.ids.astype("int64")), 0
            own = [slots_of(size, 4.0) for size in cut(len(ids), 16)]
            for size, count in zip(cut(len(ids), 16), own, strict=True):
                with torch.inference_mode():
                    expected.append(coder.encode(ids[None, begin : begin + size], count)[0])
                begin += size
            counts.append(sum(own))
        torch.testing.assert_close(slots(result), torch.cat(expected).half().float(), rtol=2e-3, atol=2e-3)
        assert result.fields["context_slots"] == counts and result.fields["slots"] == sum(counts)
        assert result.fields["slot_spans"] == len(expected)


@pytest.mark.parametrize("kind", KINDS)
def test_company_and_the_size_of_batches_do_not_show(kind: str, tiny_model: Path, pool: ModelPool) -> None:
    encoder = encoder_of(tiny_model, kind, **KINDS[kind])
    together = results(stage(tiny_model, encoder), DOCUMENTS, pool)
    narrow = stage(tiny_model, encoder, batch_tokens=1)
    for one, result in zip(DOCUMENTS, together, strict=True):
        (alone,) = results(narrow, [one], pool)
        torch.testing.assert_close(slots(alone), slots(result), rtol=1e-3, atol=1e-3)


def test_nothing_grows(tiny_model: Path, pool: ModelPool) -> None:
    texts = ["x", "a b", " ".join(TEXTS), " ".join(TEXTS[0].split()[:8]), *TEXTS[0].split()]
    for result in results(stage(tiny_model), [document(at, one) for at, one in enumerate(texts)], pool):
        row = result.fields
        assert 0 < row["slots"] <= row["tokens_encoded"]
        assert row["slots"] <= row["tokens_encoded"] / 4 + row["slot_spans"]
        assert row["tokens_compressed"] <= row["tokens_original"]
        assert result.tokens_in == row["tokens_original"] and result.tokens_out == row["tokens_compressed"]
    (one,) = results(stage(tiny_model), [document(0, "x")], pool)
    assert (one.fields["slots"], one.fields["tokens_encoded"], one.fields["slot_spans"]) == (1, 1, 1)


def test_ratio_and_span_are_the_stages_where_it_names_them(tiny_model: Path, pool: ModelPool) -> None:
    (text,) = results(stage(tiny_model, span=1000, ratio=2.0), [document(0, TEXTS[0])], pool)
    row = text.fields
    assert (row["slot_spans"], row["slots"]) == (1, -(-row["tokens_encoded"] // 2))
    for settings in ({}, {"span": 17}, {"ratio": 2.0}):
        assert stage(tiny_model, **settings).identity() == stage(tiny_model, **settings, batch_tokens=3).identity()
    assert stage(tiny_model).identity() != stage(tiny_model, span=17).identity()


def test_a_span_may_have_so_many_slots_whatever_its_length(tiny_model: Path, pool: ModelPool) -> None:
    """The paper's k, but that a span of fewer tokens has no more slots than these."""
    texts = ["x", " ".join(TEXTS[0].split()[:8]), " ".join(TEXTS)]
    fixed = stage(tiny_model, slots=7, span=32)
    short, middle, long = results(fixed, [document(at, one) for at, one in enumerate(texts)], pool)
    assert (short.fields["slots"], middle.fields["slots"]) == (1, 7) and middle.fields["tokens_encoded"] < 32
    assert long.fields["slots"] == 7 * long.fields["slot_spans"] > 70
    assert fixed.identity() != stage(tiny_model, span=32).identity() != stage(tiny_model, span=32, ratio=2.0).identity()
    assert "slots" not in stage(tiny_model).spec.output_settings(), "what was encoded before is still known"
    with pytest.raises(ValidationError, match="name slots or ratio"):
        stage(tiny_model, slots=7, ratio=2.0)
    with pytest.raises(
        ModelError, match=r"a span of 16 tokens takes 9 slots, and encoder .* makes 8 at most: lower slots"
    ):
        stage(tiny_model, encoder_of(tiny_model, "appended", **KINDS["appended"]), slots=9).check()


def test_slots_are_as_many_as_in_the_last_lesson(tiny_model: Path) -> None:
    """To the token: 16 at 3 a slot take 6 slots, and yet 6 take 2."""
    manifest = read_manifest(encoder_of(tiny_model))
    figures = replace(manifest.figures, tokens=16, slots=6, ratio=3.0)
    cut_ = stage(tiny_model).cut(replace(manifest, figures=figures))
    assert (cut_.span, cut_.slots(16), cut_.slots(6)) == (16, 6, 2)


def test_tokens_are_those_of_the_whole_prompt(
    tiny_model: Path, pool: ModelPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However they were added up: of one text, of several, of one that is too long to be read at once."""
    monkeypatch.setattr("pipeline.compression.tokens.PIECE", 200)
    documents = [
        *DOCUMENTS,
        document(20, TEXTS[1], "Seven.", TEXTS[2], "Seven.", instruction="Answer in a word."),
        document(21, *TEXTS, question=""),
        document(22, "  spaces ", "\n\nlines\n", question=" and more "),
        document(23, " ".join(TEXTS), question=""),
        document(24, question="Only this?"),
    ]
    tokeniser = Tokenising(load_tokenizer(str(tiny_model)))
    for one, result in zip(documents, results(stage(tiny_model, keep_text=10), documents, pool), strict=True):
        counts = result.fields["context_slots"]
        kept = tuple(text for text, n in zip(one.parts.contexts, counts, strict=True) if not n)
        left = replace(one.parts, contexts=kept).render()
        assert [result.fields["tokens_original"], result.fields["tokens_compressed"]] == [
            tokeniser.count([one.prompt])[0], sum(counts) + tokeniser.count([left])[0]
        ]  # fmt: skip


def test_short_contexts_may_stay_text(tiny_model: Path, pool: ModelPool) -> None:
    long, short = TEXTS[1], "Seven."
    one = document(0, short, long, " \n ", question="")
    (all_of_it,) = results(stage(tiny_model), [one], pool)
    (some,) = results(stage(tiny_model, keep_text=10), [one], pool)
    assert [count > 0 for count in all_of_it.fields["context_slots"]] == [True, True, False]
    assert [count > 0 for count in some.fields["context_slots"]] == [False, True, False]
    assert some.fields["tokens_encoded"] < all_of_it.fields["tokens_encoded"]
    (none,) = results(stage(tiny_model, keep_text=10_000), [one], pool)
    assert none.slots is None and none.fields["slots"] == none.fields["slots_bytes"] == 0
    assert none.fields["slots_sha256"] is none.fields["slots_loss"] is None
    assert none.tokens_in == none.tokens_out > 0


@pytest.mark.parametrize("group", [32, 64])
def test_fewer_bytes_lose_little_and_say_how_much(group: int, tiny_model: Path, pool: ModelPool) -> None:
    found = {}
    for precision in ("float16", "int8", "int4"):
        made = results(stage(tiny_model, precision=precision, group=group), DOCUMENTS, pool)
        found[precision] = [(one.fields["slots_bytes"], one.fields["slots_loss"]) for one in made]
        exact = results(stage(tiny_model), DOCUMENTS, pool)
        for one, whole in zip(made, exact, strict=True):
            off = float((slots(one) - slots(whole)).norm() / slots(whole).norm())
            assert off == pytest.approx(one.fields["slots_loss"], abs=1e-3)
    for half, eight, four in zip(*found.values(), strict=True):
        assert four[0] < eight[0] < half[0] and half[1] < 1e-3 < eight[1] < 0.02 < four[1] < 0.2


def test_an_encoder_is_loaded_once_over_the_weights_that_answer(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, loads = ModelPool("cpu", limit=1), list[Autoencoder]()

    def counted(*given: Any) -> Autoencoder:
        loads.append(filled(*given))
        return loads[-1]

    monkeypatch.setattr("pipeline.memory.resident.filled", counted)
    target = pool.causal_lm(str(tiny_model))
    before = {name: one.clone() for name, one in target.model.named_parameters()}
    for _ in range(3):
        results(stage(tiny_model), DOCUMENTS[:2], pool)
    (coder,) = loads
    assert pool.causal_lm(str(tiny_model)) is target
    theirs = {one.data_ptr() for one in target.model.parameters()}
    own = [name for name, one in coder.model.named_parameters() if one.data_ptr() not in theirs]
    assert own and all("lora_" in name for name in own)
    assert target.model.model.layers[0].self_attn.q_proj.__class__.__name__ == "Linear"
    assert all(torch.equal(one, before[name]) for name, one in target.model.named_parameters())
    pool.close()


def test_equal_prompts_are_encoded_once(tiny_model: Path, pool: ModelPool) -> None:
    passed: list[int] = []
    twice = [DOCUMENTS[0], document(1, TEXTS[5]), document(2, *DOCUMENTS[0].parts.contexts)]
    made = stage(tiny_model).run(twice, Run(pool, progress=lambda documents, tokens: passed.append(tokens)))
    one, other, same = (each for each in made if isinstance(each, Result))
    assert one.slots is same.slots and (same.seconds, one.seconds > 0) == (0.0, True)
    assert same.fields == {**one.fields, "encode_seconds": 0.0} and one.fields["encode_seconds"] == one.seconds
    assert sum(passed) == one.tokens_in + other.tokens_in


def test_what_is_asked_about_the_same_contexts_is_encoded_once(
    tiny_model: Path, pool: ModelPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever the questions stand; and each document has its slots, its tokens and its share of the time."""
    asked = [document(at, *TEXTS[at % 2 : at % 2 + 2], question=f"Number {at}?") for at in range(6)]
    alone = [results(stage(tiny_model), [one], pool)[0] for one in asked]
    read, counted = list[bytes](), list[int]()

    def reading(coder: Autoencoder, ids: Any, counts: Any) -> Any:
        read.extend(one.tobytes() for one in ids)
        return encode_spans(coder, ids, counts)

    monkeypatch.setattr("pipeline.memory.encoding.encode_spans", reading)
    made = stage(tiny_model, batch_tokens=64)
    found = made.run(asked, Run(pool, progress=lambda documents, tokens: counted.append(tokens)))
    assert len(read) == len(set(read)) > 3 and sum(counted) == sum(one.tokens_in for one in alone)
    for one, other in zip(found, alone, strict=True):
        assert isinstance(one, Result) and one.fields["tokens_encoded"] == other.fields["tokens_encoded"]
        torch.testing.assert_close(slots(one), slots(other), rtol=2e-3, atol=2e-3)
        assert one.seconds > 0


def test_slots_that_are_no_numbers_are_a_dead_document(
    tiny_model: Path, pool: ModelPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(coder: Any, spans: Any, counts: Any) -> Any:
        made = zip(spans, encode_spans(coder, spans, counts), strict=True)
        return [one * (float("nan") if len(ids) > 1 else 1.0) for ids, one in made]

    monkeypatch.setattr("pipeline.memory.encoding.encode_spans", broken)
    whole, short = stage(tiny_model).run([document(0, TEXTS[0]), document(1, "x")], Run(pool))
    assert isinstance(short, Result) and isinstance(whole, Refusal)
    assert (whole.code, whole.dead) == ("not_finite", True)


def test_its_name_is_nothing_and_its_weights_are_all(tiny_model: Path, tmp_path: Path) -> None:
    one, again, other = (encoder_of(tiny_model, name, **spec) for name, spec in
                         (("encoder", {}), ("again", {}), ("other", {"alpha": 9.0})))  # fmt: skip
    first, same, another = (stage(tiny_model, folder) for folder in (one, again, other))
    assert first.identity() == same.identity() != another.identity()
    assert first.spec.output_settings() == same.spec.output_settings()
    assert "group" not in first.spec.output_settings()
    assert stage(tiny_model, precision="int4").spec.output_settings()["group"] == 64


def test_what_cannot_be_is_said_before_anything_runs(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="no encoder 'nowhere'"):
        stage(tiny_model, "nowhere").identity()
    (tmp_path / "other").mkdir()
    other = save_tiny_llama(tmp_path / "other", seed=1)
    with pytest.raises(ModelError, match=r"was made for .*other has digest .*the very model"):
        stage(other, encoder_of(tiny_model)).identity()
    with pytest.raises(ModelError, match=r"a span of 17 tokens takes 9 slots, and encoder .* makes 8 at most"):
        stage(tiny_model, encoder_of(tiny_model, "appended", **KINDS["appended"]), span=17, ratio=2.0).check()
    with pytest.raises(ModelError, match=r"takes 8251 places with its slots, and .* reads .* at most: lower span"):
        stage(tiny_model, span=8000, ratio=32.0).check()
    stage(tiny_model).check()


def test_contexts_are_cut_as_in_the_encoders_last_lesson(tiny_model: Path, tmp_path: Path) -> None:
    """By its ratio, which the slots of its one span do not tell: 16 tokens at 3 a slot are 6 slots, and 15 are 5."""
    made = stage(tiny_model)
    _, manifest = made.found()
    known = replace(manifest, figures=replace(manifest.figures, slots=6, ratio=3.0))
    assert [made.cut(known).slots(tokens) for tokens in (16, 15, 12)] == [6, 5, 4]
    said = json.loads(known.to_json())
    del said["figures"]["ratio"]
    (tmp_path / MANIFEST).write_text(json.dumps(said))
    older = made.cut(read_manifest(tmp_path))
    assert (older.span, older.slots(16)) == (16, 6)


def test_a_damaged_encoder_is_said(tiny_model: Path, tmp_path: Path, pool: ModelPool) -> None:
    from tiny_models import save_tiny_encoder

    folder = save_tiny_encoder(tmp_path / "e", tiny_model)
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[:-1] + b"?")
    with pytest.raises(ModelDamaged, match="not what was written"):
        stage(tiny_model, folder).run(DOCUMENTS, Run(pool))
    (folder / MANIFEST).unlink()
    with pytest.raises(ModelDamaged, match=f"{MANIFEST} is missing"):
        stage(tiny_model, folder).run(DOCUMENTS, Run(pool))
    (folder / WEIGHTS).unlink()
    with pytest.raises(ModelNotFound):
        stage(tiny_model, folder).run(DOCUMENTS, Run(pool))
