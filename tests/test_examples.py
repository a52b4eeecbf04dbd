"""What ships as examples is valid, and says about itself only what is so."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from schemas.align_file import AlignFile
from schemas.compress import CompressSpec
from schemas.document import PromptParts
from schemas.job import JobSpec
from schemas.memory import EncodeSpec, FinetuneSpec, PretrainSpec
from schemas.stage import GenerateSpec

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
ALIGN = EXAMPLES / "align.toml"
JUDGE = EXAMPLES / "judge.toml"
JOBS = sorted(set(EXAMPLES.glob("*.toml")) - {ALIGN, JUDGE})
Row = dict[str, Any]


def job(path: Path) -> JobSpec:
    return JobSpec.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))


def rows(name: str) -> list[Row]:
    return [json.loads(line) for line in (EXAMPLES / name).read_text(encoding="utf-8").splitlines()]


def parts(row: Row) -> PromptParts:
    return PromptParts(row["instruction"], tuple(row["contexts"]), row["question"])


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_every_job_file_is_valid_and_its_input_exists(path: Path) -> None:
    spec = job(path)
    assert spec.name == path.stem
    shipped = [name for name in spec.input.path if name.startswith("examples/")]
    assert all((ROOT / name).is_file() for name in shipped)
    assert shipped or path.stem == "nightly"  # that one reads the user's own folder


def test_the_judge_needs_no_input() -> None:
    text = JUDGE.read_text(encoding="utf-8")
    for said in (text, re.sub(r"^# (?=backend|budget)", "", text, flags=re.MULTILINE)):
        judge = JobSpec.model_validate({**tomllib.loads(said), "input": {"path": "answers.jsonl"}})
        assert [stage.kind for stage in judge.stages] == ["generate"] and judge.name == "judge"


def test_the_alignment_file_is_valid_and_its_input_exists() -> None:
    text = ALIGN.read_text(encoding="utf-8")
    spec = AlignFile.model_validate(tomllib.loads(text))
    assert all((ROOT / name).is_file() for name in spec.input.path)
    assert len(spec.answer_jobs()) == 1 and f"{spec.align.model}+{spec.name}" in text
    more = re.sub(r"^# (?=\[|teacher|kl_weight|model|backend|max_new|budget)", "", text, flags=re.MULTILINE)
    assert len(AlignFile.model_validate(tomllib.loads(more)).targets) == 2


def test_the_prompts_are_24_and_one_all_different() -> None:
    corpus, more = rows("gsm8k.jsonl"), rows("gsm8k-one-more.jsonl")
    assert (len(corpus), len(more)) == (24, 1)
    assert len({row["id"] for row in corpus + more}) == 25
    assert len({parts(row).content_hash() for row in corpus + more}) == 25
    shown = [context for row in corpus + more for context in row["contexts"]]
    assert len(set(shown)) == len(shown)  # no worked example stands in two prompts


def test_every_prompt_is_a_worked_few_shot_prompt() -> None:
    for row in rows("gsm8k.jsonl") + rows("gsm8k-one-more.jsonl"):
        assert set(row) == {"id", "instruction", "contexts", "question", "answer"}
        assert re.fullmatch(r"-?\d+(\.\d+)?", row["answer"])
        assert row["question"] not in "".join(row["contexts"])
        for context in row["contexts"]:
            assert re.search(r"\nThe answer is .+\.$", context)
            assert "<<" not in context


def test_an_encoder_is_pretrained_then_fine_tuned_then_encoded_by() -> None:
    pretrain, finetune, encode = (job(EXAMPLES / f"{name}.toml") for name in ("icae", "icae-finetune", "encode"))
    (begun,), (taught,), (encoding, asking) = pretrain.stages, finetune.stages, encode.stages
    assert isinstance(begun, PretrainSpec) and isinstance(taught, FinetuneSpec)
    assert isinstance(encoding, EncodeSpec) and isinstance(asking, GenerateSpec)
    assert (taught.begin, encoding.encoder) == (pretrain.name, finetune.name)
    assert begun.encoder == taught.encoder and pretrain.target == finetune.target == encode.target
    assert (taught.chat, taught.system) == (asking.chat, asking.system)


def test_the_small_encoders_trainings_go_on_from_each_other_up_to_what_the_demo_reads() -> None:
    files = [job(path) for path in (ROOT / "benchmarks/smollm2_icae").glob("*.toml")]
    trainings = {one.name: one.stages[0] for one in files}
    demo = job(EXAMPLES / "memory.toml")
    encoding, asking, _ = demo.stages
    assert isinstance(encoding, EncodeSpec) and isinstance(asking, GenerateSpec)
    assert {one.target.model for one in files} == {demo.target.model}
    taught = trainings[encoding.encoder]
    assert isinstance(taught, FinetuneSpec) and (taught.chat, taught.system) == (asking.chat, asking.system)
    met, begin = 1, taught.begin
    while begin is not None:
        before = trainings[begin]
        assert isinstance(before, PretrainSpec) and before.encoder == taught.encoder
        met, begin = met + 1, before.begin
    assert met == len(files) > 1


def test_no_job_file_holds_a_key() -> None:
    for path in (*JOBS, ALIGN):
        assert not re.search(r"sk-|api_key\s*=", path.read_text(encoding="utf-8"))


@pytest.mark.usefixtures("model_cache")
@pytest.mark.model
def test_prompts_have_700_to_900_tokens_and_room_in_the_budget() -> None:
    from pipeline.models import load_tokenizer

    spec = job(EXAMPLES / "gsm8k.toml")
    compress, generate = spec.stages
    assert isinstance(generate, GenerateSpec) and isinstance(compress, CompressSpec) and compress.target_tokens
    tokenizer = load_tokenizer(spec.target.tokenizer_model)
    for row in rows("gsm8k.jsonl") + rows("gsm8k-one-more.jsonl"):
        whole = len(tokenizer.encode(parts(row).render(), add_special_tokens=False))
        assert 700 <= whole <= 900
        kept = PromptParts(row["instruction"], (), row["question"])  # verbatim, whatever the budget
        assert len(tokenizer.encode(kept.render(), add_special_tokens=False)) < compress.target_tokens * 2 // 3
