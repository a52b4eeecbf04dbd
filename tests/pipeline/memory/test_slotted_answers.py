"""Answers from slots are what transformers says behind the very vectors that an encoder was trained to put there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import finetuning_jobs
import pretraining_jobs
import pyarrow.fs as pafs
import pytest
import torch
from encoding_jobs import TEXTS, document, encoder_of, stage
from tiny_models import save_tiny_llama

from pipeline.generation.local import prompts_of as asked_of
from pipeline.generation.prompts import PromptEncoder
from pipeline.generation.slotted import Slotted
from pipeline.generation.stage import Generate
from pipeline.generation.tuning import prepare
from pipeline.memory.asking import SLOTS, Piece, asked
from pipeline.memory.encoder import load_encoder
from pipeline.memory.examples import examples
from pipeline.memory.questions import Question, prompts_of, slots_of_all
from pipeline.memory.store import SlotsError, read_slots, write_slots
from pipeline.models import ModelError, ModelPool
from pipeline.stages import Outcome, Refusal, Result, Run, stage_hashes
from schemas.document import Document
from schemas.job import JobSpec, TargetSpec
from schemas.memory import FinetuneSpec
from schemas.stage import GenerateSpec

NEW = 12
MIXED = [
    document(0, TEXTS[0], question="How many?"),
    document(1, TEXTS[1], "Seven.", TEXTS[2], question="Why?", instruction="Answer."),
    document(2, question="What is two and two?"),
    document(3, TEXTS[3], TEXTS[4], question="Who?", instruction="Be short."),
    document(4, TEXTS[5], " \n ", question=""),
]
KEPT = {"keep_text": 10}


def after_encoding(
    documents: Sequence[Document], model: Path, pool: ModelPool, folder: Path, **settings: Any
) -> list[Document]:
    """As a stage gets them, their slots in a file of ``folder``."""
    made = [one for one in stage(model, **settings).run(documents, Run(pool)) if isinstance(one, Result)]
    slots = {one.content_hash: result.slots for one, result in zip(documents, made, strict=True) if result.slots}
    revision = made[0].fields["encoder_revision"]
    write_slots(pafs.LocalFileSystem(), str(folder / "slots" / "s.safetensors"), slots, revision)
    where = {"slots_file": "slots/s.safetensors"}
    return [
        replace(one, fields={**result.fields, **where, "slots_key": one.content_hash})
        for one, result in zip(documents, made, strict=True)
    ]


def generate(model: Path, **settings: Any) -> Generate:
    given = {"kind": "generate", "max_new_tokens": NEW, **settings}
    return Generate(GenerateSpec.model_validate(given), TargetSpec(model=str(model)))


def answers(outcomes: Sequence[Outcome]) -> list[str]:
    assert all(isinstance(one, Result) for one in outcomes), outcomes
    return [one.fields["generated"] for one in outcomes if isinstance(one, Result)]


def expected(
    one: Document, model: Path, pool: ModelPool, folder: Path, spec: GenerateSpec, encoder_: Path | None = None
) -> str:
    """By transformers, from what the autoencoder says that a decoder reads."""
    coder, loaded = load_encoder(str(encoder_ or encoder_of(model)), pool), pool.causal_lm(str(model))
    counts = one.fields["context_slots"]
    contexts: list[Piece] = [
        SLOTS if n else text for text, n in zip(one.parts.contexts, counts, strict=True) if text.strip()
    ]
    encoder = PromptEncoder(str(model), loaded.tokenizer, loaded.window, spec)
    runs = asked(encoder, [one.parts.instruction, *contexts, one.parts.question])
    assert not isinstance(runs, Refusal)
    blocks = torch.split(read_slots(str(folder), one.fields), [n for n in counts if n]) if any(counts) else []
    embeds = coder.prompt(runs, blocks)[None]
    model_: Any = loaded.model
    with torch.inference_mode():
        ids = model_.generate(
            inputs_embeds=embeds, attention_mask=torch.ones(embeds.shape[:2], dtype=torch.int64),
            max_new_tokens=NEW, do_sample=False, pad_token_id=0,
        )  # fmt: skip
    text: str = loaded.tokenizer.decode(ids[0], skip_special_tokens=True)
    return text


@pytest.mark.parametrize("settings", [{}, {"chat": False}, {"draft_tokens": 4}], ids=["chat", "plain", "drafted"])
@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_they_are_those_of_the_decoder_behind_the_slots(
    settings: dict[str, Any], precision: str, tiny_model: Path, pool: ModelPool, tmp_path: Path
) -> None:
    documents = after_encoding(MIXED, tiny_model, pool, tmp_path, precision=precision, **KEPT)
    assert [one.fields["context_slots"] != [] and any(one.fields["context_slots"]) for one in documents] == [
        True, True, False, True, True,
    ]  # fmt: skip
    made = generate(tiny_model, **settings)
    found = answers(made.run(documents, Run(pool, output=str(tmp_path))))
    assert found == [expected(one, tiny_model, pool, tmp_path, made.spec) for one in documents]
    assert len(set(found)) > 2


@pytest.mark.parametrize("layout", ["interleaved", "appended", "pooled"])
@pytest.mark.parametrize("rank", [4, 0])
def test_encoders_of_all_makes_are_trained_stored_and_answered_from(
    layout: str, rank: int, tiny_model: Path, pool: ModelPool, tmp_path: Path
) -> None:
    """Pretrained, fine-tuned from there, and read by a stage, which knows it by its folder alone."""
    own: dict[str, Any] = {
        "encoder": {"layout": layout, "rank": rank, "alpha": 8.0, "slots": 16},
        "learning_rate": 3e-3,
    }
    pretrained, tuned = str(tmp_path / "p" / "encoder"), tmp_path / "f" / "encoder"
    first = pretraining_jobs.stage(tiny_model, **own, steps=3, mixed=True)
    first.run(pretraining_jobs.TEXTS, Run(pool, folder=str(tmp_path / "p")))
    then = finetuning_jobs.stage(tiny_model, **own, steps=3, begin=pretrained, measured=1)
    then.run(finetuning_jobs.ROWS, Run(pool, folder=str(tmp_path / "f")))
    documents = after_encoding(MIXED, tiny_model, pool, tmp_path, encoder=str(tuned), precision="int4", **KEPT)
    made = generate(tiny_model, draft_tokens=3)
    found = answers(made.run(documents, Run(pool, output=str(tmp_path))))
    assert found == [expected(one, tiny_model, pool, tmp_path, made.spec, tuned) for one in documents]


def test_a_prompt_without_slots_is_asked_as_ever(tiny_model: Path, pool: ModelPool, tmp_path: Path) -> None:
    kept = after_encoding(MIXED, tiny_model, pool, tmp_path, **KEPT)
    plain = generate(tiny_model).run(MIXED, Run(pool))
    slotted = generate(tiny_model).run(kept, Run(pool, output=str(tmp_path)))
    assert answers(plain)[2] == answers(slotted)[2]
    assert answers(plain) != answers(slotted)


def test_slots_count_as_places_of_the_prompt(tiny_model: Path, pool: ModelPool, tmp_path: Path) -> None:
    documents = after_encoding(MIXED, tiny_model, pool, tmp_path, **KEPT)
    target = generate(tiny_model, chat=False)
    for one, outcome in zip(documents, target.run(documents, Run(pool, output=str(tmp_path))), strict=True):
        assert isinstance(outcome, Result)
        row, made = one.fields, outcome.fields
        tag = 1 if row["slots"] else 0
        # Slots, their tag and the text; blank lines beside slots and blank contexts cost a token less, or more.
        assert made["tokens_prompt"] == outcome.tokens_in
        assert abs(made["tokens_prompt"] - row["tokens_compressed"] - tag) <= 3
        assert made["tokens_prompt"] < row["tokens_original"] or not row["slots"]


def test_copies_are_of_the_original_text(tiny_model: Path, pool: ModelPool, tmp_path: Path) -> None:
    """What the contexts say, and slots do not show, is there to be drafted."""
    (one,) = after_encoding(MIXED[:1], tiny_model, pool, tmp_path)
    loaded = pool.causal_lm(str(tiny_model))
    for settings, copies in (({"draft_tokens": 4}, True), ({}, False)):
        spec = generate(tiny_model, **settings).spec
        (prompt,) = asked_of([one], str(tiny_model), loaded, spec, str(tmp_path))
        assert not isinstance(prompt, Refusal)
        assert prompt.copied == (loaded.tokenizer(one.parts.render())["input_ids"] if copies else [])
        assert prompt.vectors is not None and len(prompt.vectors) == one.fields["slots"] + 1


def test_a_prompt_that_does_not_fit_is_refused_and_no_other(tmp_path: Path, pool: ModelPool) -> None:
    (tmp_path / "narrow").mkdir()
    model = save_tiny_llama(tmp_path / "narrow", window=128)
    long = document(0, " ".join(TEXTS), question="Who?")
    documents = after_encoding([long, MIXED[0]], model, pool, tmp_path, ratio=2.0)
    refused, answered = generate(model).run(documents, Run(pool, output=str(tmp_path)))
    assert isinstance(refused, Refusal) and refused.code == "prompt_too_long" and isinstance(answered, Result)
    assert "shorten it, encode it into fewer slots (a higher ratio), or choose" in refused.reason


def test_slots_that_were_touched_are_never_read(tiny_model: Path, pool: ModelPool, tmp_path: Path) -> None:
    documents = after_encoding(MIXED[:1], tiny_model, pool, tmp_path)
    path = tmp_path / "slots" / "s.safetensors"
    data = path.read_bytes()
    for damaged, said in ((data[:-1] + bytes([data[-1] ^ 1]), "not what was written"), (data[:-2], "cut short")):
        path.write_bytes(damaged)
        with pytest.raises(SlotsError, match=said):
            generate(tiny_model).run(documents, Run(pool, output=str(tmp_path)))
    path.unlink()
    with pytest.raises(SlotsError, match="is gone"):
        generate(tiny_model).run(documents, Run(pool, output=str(tmp_path)))


def test_another_target_is_refused_before_anything_runs(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = save_tiny_llama(tmp_path / "other", seed=1)
    encode = {"kind": "encode", "encoder": str(encoder_of(tiny_model))}
    job = {"input": {"path": "x"}, "stages": [encode, {"kind": "generate"}]}
    hashes = stage_hashes(JobSpec.model_validate({**job, "target": {"model": str(tiny_model)}}))
    assert len(hashes) == 2
    with pytest.raises(ModelError, match=r"was made for .* and .*other has digest .*the very model"):
        stage_hashes(JobSpec.model_validate({**job, "target": {"model": str(other)}}))


def test_drafting_is_tuned_on_slots_that_no_file_holds(tiny_model: Path, pool: ModelPool) -> None:
    encode = {"kind": "encode", "encoder": str(encoder_of(tiny_model))}
    job = JobSpec.model_validate(
        {"input": {"path": "x"}, "target": {"model": str(tiny_model)}, "stages": [encode, {"kind": "generate"}]}
    )
    ready, refused = prepare(job, 1, MIXED, Run(pool))
    assert not refused and len(ready) == len(MIXED)
    prompts = asked_of(ready, str(tiny_model), pool.causal_lm(str(tiny_model)), generate(tiny_model).spec)
    assert [getattr(one, "vectors", None) is not None for one in prompts] == [True, True, False, True, True]


@pytest.mark.parametrize("chat", [True, False])
def test_what_is_asked_is_what_fine_tuning_learned_from(
    chat: bool, tiny_model: Path, pool: ModelPool, tmp_path: Path
) -> None:
    rows = [replace(one, answer="7") for one in MIXED if one.parts.contexts and one.parts.question]
    loaded = pool.causal_lm(str(tiny_model))
    lessons = [{"tokens": 16, "ratio": 4.0, "share": 1.0}]
    spec = FinetuneSpec.model_validate({"kind": "finetune", "lessons": lessons, "most_spans": 64, "chat": chat})
    learned = [one for one in examples(rows, spec, loaded, lambda: None) if not isinstance(one, Refusal)]
    assert len(learned) == len(rows)
    coder = load_encoder(str(encoder_of(tiny_model)), pool)
    questions = [Question.of(one, spec.lessons[0]) for one in learned]
    with torch.inference_mode():
        expected = prompts_of(coder, questions, slots_of_all(coder, questions))
    encoder = PromptEncoder(str(tiny_model), loaded.tokenizer, loaded.window, generate(tiny_model, chat=chat).spec)
    slotted = Slotted(encoder, str(tmp_path))
    for one, prompt in zip(after_encoding(rows, tiny_model, pool, tmp_path), expected, strict=True):
        pieces = slotted.pieces(one)
        assert not isinstance(pieces, Refusal)
        read = [
            piece if isinstance(piece, torch.Tensor) else coder.embed(torch.tensor(piece, dtype=torch.int64))
            for piece in pieces
        ]
        torch.testing.assert_close(torch.cat(read), prompt, rtol=2e-3, atol=2e-3)
