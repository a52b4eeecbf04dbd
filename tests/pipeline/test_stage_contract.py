"""The contract of a stage, one suite over every kind in ``STAGES``: a new method is added to ``CASES`` and passes.

Every stage gets the same awkward documents; what may differ between a batch and single documents is only the time.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from tiny_models import save_tiny_classifier, save_tiny_encoder

from pipeline.compression.registry import METHODS
from pipeline.models import ModelPool
from pipeline.stages import STAGES, Outcome, Refusal, Result, Run, Stage, Stopped, build, stage_hashes
from schemas.align import WHOLE_CORPUS
from schemas.compress import compress_tag
from schemas.document import Document, PromptParts
from schemas.job import JobSpec
from schemas.records import STAGE_FIELDS
from schemas.stage import SPECS

ALL_METRICS = ["exact_match", "token_f1", "contains_answer", "bleu4", "rouge1", "rouge2", "rougeL"]
CASES: dict[str, dict[str, Any]] = {
    "copy": {"kind": "copy"},
    "generate-greedy": {"kind": "generate", "max_new_tokens": 12},
    "generate-sampled": {"kind": "generate", "max_new_tokens": 12, "temperature": 1.0, "top_p": 0.9, "seed": 3},
    "generate-plain": {"kind": "generate", "max_new_tokens": 12, "chat": False, "stop": ["the"]},
    "compress-rate": {"kind": "compress", "rate": 0.5},
    "compress-tokens": {"kind": "compress", "target_tokens": 60},
    "compress-all": {"kind": "compress", "rate": 0.6, "tau_instruction": 0.85, "tau_question": 0.9},
    "compress-frame": {"kind": "compress", "rate": 0.5, "frame": True},
    "compress-reference": {"kind": "compress", "fidelity": "reference", "options": {"target_token": 60}},
    "longllmlingua": {"kind": "compress", "method": "longllmlingua", "rate": 0.5},
    "llmlingua2": {"kind": "compress", "method": "llmlingua2", "rate": 0.5},
    "selective-context": {"kind": "compress", "method": "selective-context", "rate": 0.5},
    "sentences": {"kind": "compress", "method": "sentences", "rate": 0.5},
    "truncation": {"kind": "compress", "method": "truncation", "rate": 0.5},
    "random": {"kind": "compress", "method": "random", "rate": 0.5},
    "tfidf": {"kind": "compress", "method": "tfidf", "rate": 0.5},
    "bm25": {"kind": "compress", "method": "bm25", "rate": 0.5},
    "recover": {"kind": "recover"},
    "evaluate-numbers": {"kind": "evaluate", "task": "gsm8k"},
    "evaluate-choices": {"kind": "evaluate", "task": "bbh"},
    "align": {"kind": "align", "epochs": 1, "documents_per_step": 4, "max_tokens": 64, "learning_rate": 1e-2},
    "distill": {
        "kind": "distill",
        "layers": 1,
        "epochs": 1,
        "documents_per_step": 4,
        "max_tokens": 64,
        "answers": {"kind": "generate", "max_new_tokens": 8},
    },
    "pretrain": {
        "kind": "pretrain",
        "encoder": {"rank": 4, "alpha": 8.0},
        "autoencoding": 1.0,
        "lessons": [{"tokens": 12, "ratio": 4.0, "share": 1.0}],
        "steps": 6,
        "tokens_per_step": 512,
        "warmup": 2,
        "learning_rate": 1e-3,
        "held_out": 0.3,
    },
    "finetune": {
        "kind": "finetune",
        "encoder": {"rank": 4, "alpha": 8.0},
        "lessons": [{"tokens": 64, "ratio": 4.0, "share": 1.0}],
        "steps": 4,
        "rows_per_step": 2,
        "warmup": 2,
        "learning_rate": 1e-3,
        "held_out": 0.3,
        "max_new_tokens": 8,
    },
    "encode": {"kind": "encode"},
    "encode-int4": {"kind": "encode", "precision": "int4", "span": 40, "ratio": 5.0, "keep_text": 30},
    "evaluate-all": {"kind": "evaluate", "task": "qa", "metrics": ALL_METRICS},
}
BY_ITSELF = [name for name, case in CASES.items() if case["kind"] not in WHOLE_CORPUS]
each_document_by_itself = pytest.mark.parametrize("settings", BY_ITSELF, indirect=True)
"""Cases of stages whose output for a document depends on it alone; the others make a promise of their own below."""

BEFORE: dict[str, list[dict[str, Any]]] = {
    "evaluate": [{"kind": "generate"}],
    "recover": [{"kind": "compress", "method": "random", "rate": 0.5}, {"kind": "generate"}],
}
"""What a job must do first for this kind of stage to make sense."""

CODE = 'def total(rows: list[int]) -> int:\n    """Sum."""\n    return sum(row for row in rows if row % 2 == 0)\n' * 3
TABLE = json.dumps({"id": 7, "tags": ["a", "b"], "nested": {"price": 1.5, "note": None}}) * 4
WORDS = "Janet sold 48 clips in April, and then she sold half as many clips in May for 3 dollars each. "
PARTS = {
    "prose": PromptParts("Answer the question.", (WORDS, WORDS * 2, WORDS), "How many clips did Janet sell?"),
    "empty": PromptParts(),
    "one letter": PromptParts(contexts=("x",)),
    "blank": PromptParts(contexts=(" \n\t ",)),
    "huge": PromptParts(contexts=(WORDS * 400,), question="How many?"),
    "french": PromptParts(contexts=("Où est passée la bibliothèque de l'été dernier ? " * 5,)),
    "chinese": PromptParts("请回答。", ("图书馆在火车站的左边，银行在右边。" * 6,), "银行在哪里？"),
    "japanese": PromptParts(contexts=("東京都は日本の首都です。カタカナとひらがな、「漢字」もあります。" * 5,)),
    "arabic": PromptParts(contexts=("المكتبة على يسار المحطة والبنك على يمينها. " * 5,)),
    "emoji": PromptParts(contexts=("👩‍👩‍👧 🇫🇷 ok 👍🏽 " * 10,)),
    "code": PromptParts("Explain this code.", (CODE,), "What does it return?"),
    "json": PromptParts(contexts=(TABLE,), question="What is the price?"),
    "question only": PromptParts(question="What is two plus two, and why?"),
    "special tokens": PromptParts(contexts=("<|im_end|> and <|endoftext|> are tokens. " * 4,)),
    "a null": PromptParts(contexts=("before\x00after " * 8,)),
}


def document(seq: int, name: str) -> Document:
    """As a stage gets it after ``generate``, whose answer is the prompt once more; half of it was kept."""
    text = PARTS[name].render()
    fields = {"generated": f"{text}\nThe answer is 48.", "kept": [0, len(text) // 2]}
    return Document(seq, name, PARTS[name], PARTS[name].content_hash(), answer=text, fields=fields)


DOCUMENTS = [document(seq, name) for seq, name in enumerate(PARTS)]


def job(settings: dict[str, Any], model: Path) -> JobSpec:
    tag = compress_tag(settings) if settings["kind"] == "compress" else settings["kind"]
    scorer = classifier_of(model) if tag == "llmlingua2" else model
    stage = settings | ({"model": str(scorer)} if "model" in SPECS[tag].model_fields else {})
    stage |= {"encoder": str(encoder_of(model))} if settings["kind"] == "encode" else {}
    stages = [*BEFORE.get(stage["kind"], []), stage]
    return JobSpec.model_validate({"input": {"path": "x"}, "target": {"model": str(model)}, "stages": stages})


def classifier_of(model: Path) -> Path:
    """A small random token classifier with the tokenizer of ``model``."""
    folder = model.parent / f"{model.name}-classifier"
    return folder if folder.exists() else save_tiny_classifier(folder, model)


def encoder_of(model: Path) -> Path:
    """A small random memory encoder for ``model``."""
    folder = model.parent / f"{model.name}-encoder"
    return folder if folder.exists() else save_tiny_encoder(folder, model)


def built(settings: dict[str, Any], model: Path) -> Stage:
    """The last stage of that job."""
    spec = job(settings, model)
    return build(spec, len(spec.stages) - 1)


@pytest.fixture(scope="module")
def pool() -> Iterator[ModelPool]:
    pool = ModelPool("cpu")
    yield pool
    pool.close()


@pytest.fixture(params=CASES)
def settings(request: pytest.FixtureRequest) -> dict[str, Any]:
    return CASES[request.param]


@pytest.fixture
def stage(settings: dict[str, Any], tiny_model: Path) -> Stage:
    return built(settings, tiny_model)


@pytest.fixture(scope="module")
def together(tiny_model: Path, pool: ModelPool) -> Callable[[dict[str, Any]], list[Outcome]]:
    """The outcomes of all documents in one call, worked out once per case."""
    known: dict[str, list[Outcome]] = {}

    def outcomes(settings: dict[str, Any]) -> list[Outcome]:
        key = json.dumps(settings)
        if key not in known:
            known[key] = built(settings, tiny_model).run(DOCUMENTS, Run(pool))
        return known[key]

    return outcomes


Together = Callable[[dict[str, Any]], list[Outcome]]


def output(outcome: Outcome) -> Any:
    """What an outcome says apart from the time it took, and from what the last bits of slots make of it."""
    if isinstance(outcome, Refusal):
        return outcome
    rounded = "seconds", "slots_sha256", "slots_loss"
    fields = {name: value for name, value in outcome.fields.items() if not name.endswith(rounded)}
    return fields, outcome.tokens_in, outcome.tokens_out, outcome.tokens_asked, outcome.cost_microusd


def test_every_kind_of_stage_is_under_contract() -> None:
    assert {case["kind"] for case in CASES.values()} == set(STAGES) == set(STAGE_FIELDS)
    assert {case.get("method", "llmlingua") for case in CASES.values() if case["kind"] == "compress"} == set(METHODS)


def test_one_outcome_per_document_with_the_columns_of_its_kind(settings: dict[str, Any], together: Together) -> None:
    outcomes = together(settings)
    assert len(outcomes) == len(DOCUMENTS)
    schema = STAGE_FIELDS[settings["kind"]]
    rows = [outcome.fields for outcome in outcomes if isinstance(outcome, Result)]
    assert all(set(row) == set(schema.names) for row in rows)
    table = pa.Table.from_pylist(rows, schema=schema)
    table.validate(full=True)
    assert all(field.nullable or not table[field.name].null_count for field in schema)


REFUSED: dict[str, dict[str, str]] = {
    "copy": {},
    "generate": {"empty": "empty", "blank": "empty", "huge": "prompt_too_long"},
    "compress": {"empty": "empty", "blank": "empty"},
    "encode": {"empty": "empty", "blank": "empty"},
    "align": {"empty": "empty", "blank": "empty"},
    "distill": {"empty": "empty", "blank": "empty"},
    "pretrain": {"empty": "empty", "blank": "empty", "one letter": "too_short"},
    "finetune": {
        "empty": "empty",
        "blank": "empty",
        "huge": "too_long",
        "question only": "no_context",
        **dict.fromkeys(
            ("one letter", "french", "japanese", "arabic", "emoji", "special tokens", "a null"), "no_question"
        ),
    },
    "recover": {},
    "evaluate": {"empty": "no_reference", "blank": "no_reference"},
}
NO_NUMBER = {
    "one letter",
    "french",
    "chinese",
    "japanese",
    "arabic",
    "emoji",
    "question only",
    "special tokens",
    "a null",
}
TOO_SMALL = {"one letter", "question only"}  # half of a single token; half of what must stay verbatim
ONE_SENTENCE = {"a null"}  # half of it is no sentence


def test_only_what_cannot_be_done_is_refused_and_with_a_reason(settings: dict[str, Any], together: Together) -> None:
    too_small = TOO_SMALL | (ONE_SENTENCE if settings.get("method") == "sentences" else set())
    refused = {
        name: outcome
        for name, outcome in zip(PARTS, together(settings), strict=True)
        if isinstance(outcome, Refusal)
        and not (outcome.code == "budget_too_small" and name in too_small)
        and not (outcome.code == "bad_reference" and name in NO_NUMBER)
    }
    assert {name: refusal.code for name, refusal in refused.items()} == REFUSED[settings["kind"]]
    assert all(len(refusal.reason) > 20 and not refusal.dead for refusal in refused.values())


@each_document_by_itself
def test_a_batch_is_as_many_single_documents(
    settings: dict[str, Any], stage: Stage, together: Together, pool: ModelPool
) -> None:
    for one, outcome in zip(DOCUMENTS, together(settings), strict=True):
        assert output(stage.run([one], Run(pool))[0]) == output(outcome), one.id


@each_document_by_itself
def test_order_and_company_do_not_matter(
    settings: dict[str, Any], stage: Stage, together: Together, pool: ModelPool
) -> None:
    few = [one for one in DOCUMENTS if one.id != "huge"][::-1]
    expected = {one.id: output(outcome) for one, outcome in zip(DOCUMENTS, together(settings), strict=True)}
    assert [output(outcome) for outcome in stage.run(few, Run(pool))] == [expected[one.id] for one in few]


@each_document_by_itself
def test_the_token_budget_of_a_batch_does_not_show(
    settings: dict[str, Any], tiny_model: Path, together: Together, pool: ModelPool
) -> None:
    narrow = built(settings | {"batch_tokens": 300}, tiny_model)
    few = [one for one in DOCUMENTS if one.id != "huge"]
    expected = [outcome for one, outcome in zip(DOCUMENTS, together(settings), strict=True) if one.id != "huge"]
    assert list(map(output, narrow.run(few, Run(pool)))) == list(map(output, expected))


@each_document_by_itself
def test_the_same_document_twice_is_answered_twice_alike(
    settings: dict[str, Any], stage: Stage, together: Together, pool: ModelPool
) -> None:
    twice = stage.run([document(0, "prose"), document(1, "prose")], Run(pool))
    assert [output(outcome) for outcome in twice] == [output(together(settings)[0])] * 2


@pytest.mark.parametrize("settings", sorted(CASES.keys() - set(BY_ITSELF)), indirect=True)
def test_a_stage_over_the_whole_corpus_asks_neither_for_order_nor_for_packing(
    settings: dict[str, Any], stage: Stage, tiny_model: Path, together: Together, pool: ModelPool
) -> None:
    expected = list(map(output, together(settings)))
    assert [output(outcome) for outcome in stage.run(DOCUMENTS[::-1], Run(pool))] == expected[::-1]
    narrow = built(settings | {"batch_tokens": 100}, tiny_model).run(DOCUMENTS, Run(pool))
    # Other sums, in another order: equal up to rounding.
    assert numbers(narrow) == pytest.approx(numbers(together(settings)), rel=1e-4)


def numbers(outcomes: list[Outcome]) -> list[float]:
    """All of them, seconds apart."""
    rows = [outcome.fields for outcome in outcomes if isinstance(outcome, Result)]
    return [
        value
        for row in rows
        for name, value in row.items()
        if isinstance(value, int | float) and not name.endswith("seconds")
    ]


def test_no_documents_no_outcomes(stage: Stage, pool: ModelPool) -> None:
    assert stage.run([], Run(pool)) == []


def test_tokens_and_seconds_are_accounted_for(settings: dict[str, Any], stage: Stage, pool: ModelPool) -> None:
    counted: list[tuple[int, int]] = []
    few = [one for one in DOCUMENTS if one.id != "huge"]
    start = time.perf_counter()
    outcomes = stage.run(few, Run(pool, progress=lambda documents, tokens: counted.append((documents, tokens))))
    elapsed = time.perf_counter() - start
    results = [outcome for outcome in outcomes if isinstance(outcome, Result)]
    assert sum(documents for documents, _ in counted) == len(few)
    assert all(documents >= 0 and tokens >= 0 for documents, tokens in counted)
    assert sum(result.seconds for result in results) <= elapsed
    if settings["kind"] in ("copy", "recover", "evaluate"):  # neither counts tokens
        return
    assert all(result.tokens_in > 0 and result.tokens_out > 0 for result in results)
    assert sum(result.seconds for result in results) > 0
    assert all(result.latency_seconds is not None and 0 < result.latency_seconds <= elapsed for result in results)
    unscored = len(results) if settings.get("fidelity") == "reference" else 0  # the library scores no first token
    assert sum(tokens for _, tokens in counted) >= sum(result.tokens_in for result in results) - unscored


def test_a_stopping_worker_is_let_go(stage: Stage, pool: ModelPool) -> None:
    with pytest.raises(Stopped):
        stage.run(DOCUMENTS, Run(pool, stopping=lambda: True))


def test_no_text_is_lost_silently(settings: dict[str, Any], together: Together) -> None:
    """What a stage hands on holds all the text it had no leave to drop."""
    for one, outcome in zip(DOCUMENTS, together(settings), strict=True):
        if isinstance(outcome, Refusal):
            continue
        after = Document(one.seq, one.id, one.parts, one.content_hash, fields=outcome.fields)
        if settings["kind"] != "compress":
            assert after.prompt == one.prompt
            continue
        if "tau_instruction" not in settings:
            assert after.prompt.startswith(one.parts.instruction)
        if "tau_question" not in settings:
            assert after.prompt.endswith(one.parts.question)
        assert outcome.tokens_asked is not None
        if settings.get("fidelity") != "reference":  # the library overshoots
            assert outcome.tokens_out <= outcome.tokens_asked


def test_identity_is_json_and_the_hash_of_a_stage_follows_its_settings(
    settings: dict[str, Any], stage: Stage, tiny_model: Path
) -> None:
    assert json.loads(json.dumps(stage.identity())) == stage.identity()
    same, faster = (stage_hashes(job(settings | extra, tiny_model)) for extra in ({}, {"batch_tokens": 99}))
    assert same == faster == stage_hashes(job(settings, tiny_model))
    others = [case for case in CASES.values() if case != settings]
    assert all(stage_hashes(job(other, tiny_model)) != same for other in others)


@pytest.mark.parametrize("case", [*CASES.values(), {"kind": "generate", "backend": "openai"}], ids=[*CASES, "hosted"])
def test_another_version_of_a_stage_has_another_hash(
    case: dict[str, Any], tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a night would take over what an older version wrote, and mix it with its own."""
    before = stage_hashes(job(case, tiny_model))
    module = importlib.import_module(STAGES[case["kind"]].partition(":")[0])
    monkeypatch.setattr(module, "VERSION", module.VERSION + 1)
    assert stage_hashes(job(case, tiny_model)) != before


def test_another_way_to_decode_here_leaves_hosted_answers_as_they_are(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They were paid for."""
    local, hosted = ({"kind": "generate", **backend} for backend in ({}, {"backend": "openai"}))
    before = [stage_hashes(job(case, tiny_model)) for case in (local, hosted)]
    monkeypatch.setattr("pipeline.generation.stage.LOCAL", 99)
    after = [stage_hashes(job(case, tiny_model)) for case in (local, hosted)]
    assert after[0] != before[0] and after[1] == before[1]


def test_more_text_is_more_work(stage: Stage) -> None:
    assert 0 < stage.work_seconds(100) < stage.work_seconds(100_000)


def test_a_stage_is_its_settings(settings: dict[str, Any], stage: Stage, tiny_model: Path) -> None:
    assert stage == built(settings, tiny_model)
    assert dataclasses.is_dataclass(stage) and hash(stage) == hash(built(settings, tiny_model))
