"""The local half of the generate stage against transformers' own unbatched ``generate``, on small random models."""

from __future__ import annotations

import copy
import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from pydantic import ValidationError
from tokenizers import Tokenizer, processors
from transformers import GenerationConfig

from pipeline.generation.ending import end_tokens
from pipeline.generation.local import Generation, LocalGenerator
from pipeline.generation.prompts import Prompt, PromptEncoder
from pipeline.models import ModelNotFound, ModelPool, load_tokenizer
from pipeline.stages import Halt, Outcome, Refusal, Result, Run, Stopped, build
from schemas.document import Document, PromptParts
from schemas.job import JobSpec
from schemas.records import STAGE_FIELDS
from schemas.stage import GenerateSpec

ARCHITECTURES = ["llama", "gpt_neox", "gpt2"]
TEXTS = [
    "Natalia sold clips to 48 of her friends in April.",
    "How many?",
    "Weng earns $12 an hour for babysitting. Yesterday, she just did 50 minutes of babysitting.",
    "Où est la bibliothèque ? 図書館はどこですか。",
    'def f(x):\n    return {"a": [1, 2, x]}\n',
    "x",
    "Betty is saving money for a new wallet which costs $100.",
    "7 + 8 = 15, 9 + 4 =",
]


def document(seq: int, text: str) -> Document:
    parts = PromptParts(contexts=(text,))
    return Document(seq, str(seq), parts, parts.content_hash())


DOCUMENTS = [document(seq, text) for seq, text in enumerate(TEXTS)]


@pytest.fixture(scope="module")
def pool() -> Iterator[ModelPool]:
    pool = ModelPool("cpu", limit=4)
    yield pool
    pool.close()


def run_stage(folder: Path, run: Run, documents: list[Document] = DOCUMENTS, **settings: Any) -> list[Outcome]:
    stage = {"kind": "generate", "max_new_tokens": 24, **settings}
    job = JobSpec.model_validate({"input": {"path": "x"}, "target": {"model": str(folder)}, "stages": [stage]})
    return build(job, 0).run(documents, run)


def answers(folder: Path, run: Run, documents: list[Document] = DOCUMENTS, **settings: Any) -> list[dict[str, Any]]:
    outcomes = run_stage(folder, run, documents, **settings)
    return [outcome.fields for outcome in outcomes if isinstance(outcome, Result)]


def texts(rows: list[dict[str, Any]]) -> list[str]:
    return [row["generated"] for row in rows]


def reference(pool: ModelPool, folder: Path, text: str, new_tokens: int, *, chat: bool) -> tuple[str, int]:
    """What transformers answers by itself: the text, and how many tokens it took."""
    loaded = pool.causal_lm(str(folder))
    tokenizer = loaded.tokenizer
    if chat:
        messages = [{"role": "user", "content": text}]
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=not chat)["input_ids"]
    config = GenerationConfig(max_new_tokens=new_tokens, do_sample=False, eos_token_id=2, pad_token_id=0)
    with torch.inference_mode():
        made = loaded.model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
    made = made[0, ids.shape[1] :]
    return tokenizer.decode(made, skip_special_tokens=True), len(made)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("chat", [True, False])
def test_greedy_batches_answer_as_transformers_does_one_by_one(
    models: dict[str, Path], pool: ModelPool, architecture: str, chat: bool
) -> None:
    rows = answers(models[architecture], Run(pool), chat=chat)
    expected = [reference(pool, models[architecture], text, 24, chat=chat) for text in TEXTS]
    assert [(row["generated"], row["tokens_generated"]) for row in rows] == expected
    assert len(set(texts(rows))) == len(TEXTS)  # a model that always says the same would prove nothing


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("settings", [{}, {"temperature": 0.8, "top_p": 0.9, "top_k": 40, "seed": 5}])
def test_neither_batch_size_nor_order_nor_company_changes_an_answer(
    models: dict[str, Path], pool: ModelPool, architecture: str, settings: dict[str, Any]
) -> None:
    folder, run = models[architecture], Run(pool)
    together = texts(answers(folder, run, **settings))
    assert texts(answers(folder, run, batch_tokens=1, **settings)) == together
    assert texts(answers(folder, run, batch_tokens=200, **settings)) == together
    assert texts(answers(folder, run, DOCUMENTS[::-1], **settings))[::-1] == together
    assert texts(answers(folder, run, DOCUMENTS[2:4], **settings)) == together[2:4]


def test_samples_change_with_the_seed_and_only_with_it(models: dict[str, Path], pool: ModelPool) -> None:
    first, again, other = (texts(answers(models["llama"], Run(pool), temperature=1.0, seed=seed)) for seed in (1, 1, 2))
    assert first == again
    assert all(one != two for one, two in zip(first, other, strict=True))
    assert texts(answers(models["llama"], Run(pool))) not in (first, other)


def test_columns_are_those_of_the_schema_and_the_seconds_are_shared(models: dict[str, Path], pool: ModelPool) -> None:
    run_stage(models["llama"], Run(pool))  # loaded, and looked at for the first time
    begun = time.perf_counter()
    outcomes = run_stage(models["llama"], Run(pool))
    whole = time.perf_counter() - begun
    results = [outcome for outcome in outcomes if isinstance(outcome, Result)]
    table = pa.Table.from_pylist([result.fields for result in results], schema=STAGE_FIELDS["generate"])
    assert table.num_rows == len(TEXTS)
    assert set(results[0].fields) == set(STAGE_FIELDS["generate"].names)
    elapsed = sum(result.seconds for result in results)
    assert max(result.latency_seconds or 0 for result in results) <= elapsed <= whole
    assert all(0 < (result.latency_seconds or 0) < elapsed for result in results)
    assert len({round(result.seconds / (result.tokens_in + result.tokens_out), 9) for result in results}) == 1
    assert all(result.cost_microusd is None and result.fields["cost_usd"] is None for result in results)
    assert all(result.tokens_in == result.fields["tokens_prompt"] for result in results)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_answer_gets_what_is_left_of_the_window(models: dict[str, Path], pool: ModelPool, architecture: str) -> None:
    """Prompts of window - 5, - 1 and one token too many, beside a short one whose answer is longer than theirs."""
    folder = models[architecture]
    loaded = pool.causal_lm(str(folder))
    sized = [f"{' 7' * count}" for count in (155, 159, 160, 3)]
    assert [len(ids) for ids in loaded.tokenizer(sized)["input_ids"]] == [155, 159, 160, 3]
    documents = [document(seq, text) for seq, text in enumerate(sized)]
    outcomes = run_stage(folder, Run(pool), documents, chat=False, max_new_tokens=50)
    made = [outcome.fields["tokens_generated"] if isinstance(outcome, Result) else outcome for outcome in outcomes]
    for index, room in ((0, 5), (1, 1), (3, 50)):
        outcome = outcomes[index]
        assert isinstance(outcome, Result)
        assert made[index] == reference(pool, folder, sized[index], room, chat=False)[1]
        assert outcome.fields["finish_reason"] == ("length" if made[index] == room else "stop")
    refusal = outcomes[2]
    assert isinstance(refusal, Refusal) and refusal.code == "prompt_too_long"
    assert "160 tokens" in refusal.reason and "holds 160" in refusal.reason and "compress" in refusal.reason


def test_empty_prompts_are_refused_and_the_rest_answered(models: dict[str, Path], pool: ModelPool) -> None:
    counted: list[int] = []
    run = Run(pool, progress=lambda documents, tokens: counted.append(documents))
    documents = [document(0, ""), document(1, "x"), document(2, " \n\t\u3000")]
    outcomes = run_stage(models["llama"], run, documents)
    assert [outcome.code if isinstance(outcome, Refusal) else "" for outcome in outcomes] == ["empty", "", "empty"]
    assert sum(counted) == 3
    assert run_stage(models["llama"], run, []) == []


def test_nothing_to_continue_and_nothing_to_continue_by_are_no_prompts() -> None:
    for ids, new_tokens in (([], 4), ([5, 6], 0), ([5], -1)):
        with pytest.raises(ValueError, match=rf"{len(ids)} tokens to be continued by {new_tokens}: each must be"):
            Prompt(ids, new_tokens)
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        GenerateSpec(kind="generate", max_new_tokens=0)


def test_stop_strings_across_tokens_end_the_answer_at_once(models: dict[str, Path], pool: ModelPool) -> None:
    """Every three characters of a free answer as the stop string: no token more is made, the text ends before it."""
    loaded, run = pool.causal_lm(str(models["llama"])), Run(pool)
    prompt = Prompt(loaded.tokenizer(TEXTS[0])["input_ids"], new_tokens=16)

    def generate(*stop: str) -> Generation:
        spec = GenerateSpec(kind="generate", stop=stop)
        return LocalGenerator(loaded, spec, run).generate([prompt])[0]

    free = generate()
    so_far = [loaded.tokenizer.decode(free.tokens[: count + 1]) for count in range(len(free.tokens))]
    spanning = 0
    for stop in {free.text[at : at + 3] for at in range(len(free.text) - 2)}:
        if "\ufffd" in stop:  # half a character, which the next token completes
            continue
        made = generate(stop, "never said")
        assert (made.text, made.finish_reason) == (free.text[: free.text.index(stop)], "stop")
        assert len(made.tokens) == 1 + next(count for count, text in enumerate(so_far) if stop in text)
        spanning += all(stop not in loaded.tokenizer.decode(token) for token in free.tokens)
    assert spanning > 5


def test_a_stopped_row_does_not_end_its_neighbours(models: dict[str, Path], pool: ModelPool) -> None:
    run, folder = Run(pool), models["llama"]
    free = answers(folder, run)
    stop = free[0]["generated"][4:7]
    rows = answers(folder, run, stop=[stop])
    for row, whole in zip(rows, free, strict=True):
        assert row["generated"] == whole["generated"].split(stop)[0]
        assert row["finish_reason"] == ("stop" if stop in whole["generated"] else whole["finish_reason"])
    assert rows[0]["tokens_generated"] < max(row["tokens_generated"] for row in rows)


def test_end_tokens_come_from_everywhere_a_model_may_name_them(models: dict[str, Path]) -> None:
    loaded = ModelPool("cpu").causal_lm(str(models["llama"]))
    loaded.model.generation_config.eos_token_id = [7, 9]
    assert end_tokens(loaded.model, loaded.tokenizer, ["\n", "<|endoftext|>"]) == {0, 2, 7, 9}


def test_a_listed_end_token_ends_the_answer_and_stays_out_of_it(models: dict[str, Path], tmp_path: Path) -> None:
    pool = ModelPool("cpu")
    free = answers(models["llama"], Run(pool), DOCUMENTS[:1])[0]
    loaded = pool.causal_lm(str(models["llama"]))
    third = loaded.tokenizer(free["generated"])["input_ids"][3]
    loaded.model.generation_config.eos_token_id = [2, third]
    row = answers(models["llama"], Run(pool), DOCUMENTS[:1])[0]
    assert row["finish_reason"] == "stop"
    assert free["generated"].startswith(row["generated"]) and row["tokens_generated"] <= 4


def test_the_models_own_sampling_defaults_do_not_reach_the_answers(models: dict[str, Path], pool: ModelPool) -> None:
    plain = answers(models["llama"], Run(pool))
    opinionated = ModelPool("cpu")
    model = opinionated.causal_lm(str(models["llama"])).model
    kept = model.generation_config
    kept.update(do_sample=True, temperature=2.0, repetition_penalty=1.9, max_length=7, min_new_tokens=20, num_beams=3)
    assert texts(answers(models["llama"], Run(opinionated))) == texts(plain)
    assert model.generation_config is kept


def test_the_system_message_reaches_the_model(models: dict[str, Path], pool: ModelPool) -> None:
    without, terse = (answers(models["llama"], Run(pool), system=system) for system in (None, "Be brief."))
    assert all(two["tokens_prompt"] > one["tokens_prompt"] for one, two in zip(without, terse, strict=True))
    assert texts(without) != texts(terse)


def test_a_model_without_a_chat_template_is_sent_plain_text_and_says_so_once(
    models: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = _copy(models["llama"], tmp_path / "base", template=None)
    pool = ModelPool("cpu")
    with caplog.at_level(logging.WARNING):
        chat, plain = (answers(base, Run(pool), chat=chat) for chat in (True, False))
        answers(base, Run(pool))
    assert texts(chat) == texts(plain)
    assert [record.getMessage() for record in caplog.records if "no chat template" in record.getMessage()] == [
        f"{base} has no chat template: its prompts are plain text (chat = false says so)"
    ]
    with pytest.raises(Halt, match="system message has no place to go"):
        run_stage(base, Run(pool), system="Be brief.")
    with pytest.raises(Halt, match="chat = false"):
        run_stage(models["llama"], Run(pool), system="Be brief.", chat=False)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('System role not supported') }}", "System role not supported"),
        ("{{ messages[0]['content'] + 1 }}", "can only concatenate str"),
        ("{{ 1 // 0 }}", "division"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{% for %}", "Expected an expression"),
    ],
)
def test_a_template_that_refuses_or_fails_is_a_refusal(
    models: dict[str, Path], tmp_path: Path, template: str, reason: str
) -> None:
    strict = _copy(models["llama"], tmp_path / "strict", template=template)
    outcomes = run_stage(strict, Run(ModelPool("cpu")), DOCUMENTS[:1], system="Be brief.")
    assert isinstance(outcomes[0], Refusal) and outcomes[0].code == "chat_template"
    assert reason in outcomes[0].reason


PLAIN = "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}"


def test_of_several_templates_the_default_one_is_applied(models: dict[str, Path], tmp_path: Path) -> None:
    named = [{"name": "default", "template": PLAIN}, {"name": "tool_use", "template": "{{ 1 // 0 }}"}]
    alone = answers(_copy(models["llama"], tmp_path / "one", template=PLAIN), Run(ModelPool("cpu")))
    assert texts(answers(_copy(models["llama"], tmp_path / "two", template=named), Run(ModelPool("cpu")))) == texts(
        alone
    )
    unnamed = _copy(models["llama"], tmp_path / "none", template=[{"name": "rag", "template": PLAIN}, named[1]])
    with pytest.raises(Halt, match=r"several chat templates \(rag, tool_use\)"):
        run_stage(unnamed, Run(ModelPool("cpu")))
    assert len(answers(unnamed, Run(ModelPool("cpu")), chat=False)) == len(TEXTS)


def test_a_template_with_a_calendar_gives_the_same_prompt_on_any_day(models: dict[str, Path], tmp_path: Path) -> None:
    dated = _copy(models["llama"], tmp_path / "dated", template="{{ strftime_now('%d %b %Y') }}" + PLAIN)
    fixed = _copy(models["llama"], tmp_path / "fixed", template="26 Jul 2024" + PLAIN)
    assert texts(answers(dated, Run(ModelPool("cpu")))) == texts(answers(fixed, Run(ModelPool("cpu"))))


def test_the_begin_of_text_of_a_template_stands_once(models: dict[str, Path], tmp_path: Path) -> None:
    """Some templates write it, and some of their tokenizers would add another."""
    folder = _copy(models["llama"], tmp_path / "bos", template="{{ bos_token }}" + PLAIN)
    inner = Tokenizer.from_file(str(folder / "tokenizer.json"))
    inner.post_processor = processors.TemplateProcessing("<|im_start|> $A", special_tokens=[("<|im_start|>", 1)])
    inner.save(str(folder / "tokenizer.json"))
    config = json.loads((folder / "tokenizer_config.json").read_text()) | {"bos_token": "<|im_start|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    loaded = ModelPool("cpu").causal_lm(str(folder))
    chat, plain = (
        PromptEncoder("bos", loaded.tokenizer, loaded.window, GenerateSpec(kind="generate", chat=chat)).encode(["x"])[0]
        for chat in (True, False)
    )
    assert isinstance(chat, list) and chat.count(1) == 1
    assert isinstance(plain, list) and plain[0] == 1


def test_a_missing_model_is_an_error_that_halts_the_job(pool: ModelPool) -> None:
    with pytest.raises(ModelNotFound, match="no model 'smolm2-135m-instruct'"):
        run_stage(Path("smolm2-135m-instruct"), Run(pool))


def test_stopping_is_heard_between_batches_and_within_a_long_one(
    models: dict[str, Path], pool: ModelPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr("pipeline.generation.ending.LOOK_SECONDS", 0.0)

    def stopping() -> bool:
        asked.append(1)
        return len(asked) > 5

    with pytest.raises(Stopped):
        run_stage(models["llama"], Run(pool, stopping=stopping), max_new_tokens=100)
    assert len(asked) == 6  # once before the batch, then after each token: the rest of the answer was not waited for
    with pytest.raises(Stopped):
        run_stage(models["llama"], Run(pool, stopping=lambda: True))
    assert len(texts(answers(models["llama"], Run(pool)))) == len(TEXTS)  # and the resident model is as it was


def test_progress_counts_every_token_and_document_once(
    models: dict[str, Path], pool: ModelPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.generation.ending.LOOK_SECONDS", 0.0)
    counted: list[tuple[int, int]] = []
    run = Run(pool, progress=lambda documents, tokens: counted.append((documents, tokens)))
    rows = answers(models["llama"], run, batch_tokens=200)
    assert sum(documents for documents, _ in counted) == len(TEXTS)
    assert sum(tokens for _, tokens in counted) == sum(row["tokens_prompt"] + row["tokens_generated"] for row in rows)
    assert len(counted) > 24  # also while decoding


def _copy(folder: Path, to: Path, template: str | list[dict[str, str]] | None) -> Path:
    to.mkdir()
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    (to / "chat_template.jinja").unlink(missing_ok=True)
    config = json.loads((to / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    if template is not None:
        config["chat_template"] = template
    (to / "tokenizer_config.json").write_text(json.dumps(config))
    return to


def test_an_answer_ends_as_the_chat_template_ends_a_turn(tiny_model: Path) -> None:
    tokenizer = copy.deepcopy(load_tokenizer(str(tiny_model)))
    tokenizer.eos_token = "<|endoftext|>"

    def end(**settings: Any) -> str:
        return PromptEncoder("tiny", tokenizer, 99, GenerateSpec(kind="generate", **settings)).end

    assert (end(), end(chat=False)) == ("<|im_end|>", "<|endoftext|>")
    tokenizer.chat_template = "{{ raise_exception('no assistant here') }}"
    assert end() == "<|endoftext|>"
