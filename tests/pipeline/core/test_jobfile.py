"""Job files: what is read, what wins over what, and errors that say where and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel, ValidationError

from pipeline.jobfile import JobFileError, load_job
from schemas.compress import CompressSpec, LLMLinguaSpec
from schemas.job import InputSpec
from schemas.settings import Settings
from schemas.stage import CopySpec, GenerateSpec

GOOD = """
name = "night"
[input]
path = "corpus.jsonl"
[[stages]]
kind = "compress"
rate = 0.5
[[stages]]
kind = "generate"
max_new_tokens = 8
"""


@pytest.fixture
def job(tmp_path: Path) -> Path:
    path = tmp_path / "job.toml"
    path.write_text(GOOD)
    return path


def test_flags_win_over_the_environment_and_that_over_the_file(job: Path) -> None:
    environment = {"CONTEXTMILL_JOB__STAGES__0__RATE": "0.25", "CONTEXTMILL_JOB__NAME": "day", "OTHER": "x"}
    spec = load_job(job, ["stages.0.rate=0.125", 'input.path=["a.jsonl", "b.jsonl"]'], environment)
    assert spec.name == "day"
    assert spec.input.path == ("a.jsonl", "b.jsonl")
    assert isinstance(spec.stages[0], CompressSpec)
    assert spec.stages[0].rate == 0.125
    assert isinstance(spec.stages[1], GenerateSpec)


def test_a_plain_word_needs_no_quotes_on_the_command_line(job: Path) -> None:
    assert load_job(job, ["target.model=some/model"], {}).target.model == "some/model"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "rate = 0.5\ntarget_token = 3",
            r"job\.toml:7: unknown key stages\.0\.target_token; did you mean target_tok",
        ),
        ("rate = 0", r"job\.toml:6: stages\.0\.rate: .*greater than 0, not 0"),
        ("rate = 2", r"job\.toml:6: stages\.0\.rate: .*less than or equal to 1, not 2"),
        ("rate = nan", r"job\.toml:6: stages\.0\.rate: .*finite number"),
        ("rate = '0.5'", r"job\.toml:6: stages\.0\.rate: must be a number, without quotes, not '0.5'"),
        ("rate = true", r"job\.toml:6: stages\.0\.rate: must be a number, without quotes, not true"),
        ("target_tokens = true", r"job\.toml:6: stages\.0\.target_tokens: must be a whole number.*, not true"),
        ("target_tokens = 3.0", r"job\.toml:6: stages\.0\.target_tokens: must be a whole number.*, not 3\.0"),
        ("rate = 0.5\nchat = 1\nkind = 2", r"not valid TOML: .*line 8"),
        ("rate = 0.5\ntau_question = 'yes'", r"job\.toml:7: .*tau_question: must be a number.*'yes'"),
        ("target_tokens = 1" + "0" * 5000, r"job\.toml: not valid TOML: "),
        ("x = " + "[" * 9000, r"job\.toml: not valid TOML: "),
        ("model = 5\nrate = 0.5", r"job\.toml:6: stages\.0\.model: must be text in quotes, not 5"),
        ("rate = 0.5\ntarget_tokens = 3", "exactly one of rate, target_tokens and rates"),
        ("method = 'zip'\nrate = 0.5", r"job\.toml:6: stages\.0\.method: must be one of .*llmlingua.*, not 'zip'"),
        ("rate = = 1", r"job\.toml: not valid TOML: .*line 6"),
        ("rate = 0.5\nkeep = {patterns = ['" + "(" * 500 + "']}", r":7: .*patterns\[0\] is no regular expression"),
        ("rate = 0.5\ndevice = 'gpu'", r":7: stages\.0\.device: must be auto, cpu, cuda or cuda:N, not 'gpu'"),
        ("rate = 0.5\nmodel = ''", r":7: stages\.0\.model: must not be empty"),
        ("rate = 0.5\nremoved_phrases = 101", r":7: .*removed_phrases: must be less than or equal to 100, not 101"),
        ("rate = 0.5\nstructure = 'json'\nkey_rates = 0.5", r":8: .*key_rates: must be a table of keys and rates"),
        ("rate = 0.5\nseed = 1", r"job\.toml:7: unknown key stages\.0\.seed; it is an option of random"),
        ("method = 'bm25'\nrate = 0.5\ncut = 'tail'", r":8: unknown key stages\.0\.cut; it is an option of truncation"),
        ("rate = 0.5\nfidelity = 'libary'", r":7: stages\.0\.fidelity: must be 'paper' or 'reference', not 'libary'"),
        (
            "fidelity = 'reference'\nrate = 0.5",
            r":7: unknown key stages\.0\.rate; .* it is rate under \[stages\.options\]",
        ),
        ("fidelity = 'reference'\ntarget_tokens = 9", r"it is target_token under \[stages\.options\]"),
        (
            "fidelity = 'reference'\n[stages.options]\n\nrate = 2",
            r":9: stages\.0\.options\.rate: must be less than or equal to 1, not 2$",
        ),
        (
            "fidelity = 'reference'\n[stages.options]\nhigh_priority_bonus = nan",
            r"^[^\n]*:8: stages\.0\.options\.high_priority_bonus: must be a finite number, not nan$",
        ),
        (
            "fidelity = 'reference'\n[stages.options]\nrates = 0.5",
            r":8: unknown key stages\.0\.options\.rates; did you mean rate\?",
        ),
    ],
)
def test_errors_name_file_line_and_remedy(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "job.toml"
    path.write_text(f'[input]\npath = "c.jsonl"\n\n[[stages]]\nkind = "compress"\n{line}\n')
    with pytest.raises(JobFileError, match=message):
        load_job(path, environment={})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "input is missing"),
        (b"\x00\xff\xfe binary", "not UTF-8 text"),
        (b"# " + b"x" * 2**21, "is this a job file"),
        (
            b'[input]\npath = "c"\n[[stages]]\nkind = "shrink"\n',
            r"job\.toml:4: stages\.0\.kind: must be one of .*compress.*generate.*, not .shrink.",
        ),
        (
            b'[input]\npath = "c"\n[[stages]]\nkind = "copy"\n[[stages]]\nkind = "copy"\n',
            "copy stands there more often",
        ),
        (b'stages = []\n[input]\npath = "c"\n', "stages"),
        (b'[inptu]\npath = "c"\n[[stages]]\nkind = "copy"\n', "unknown key inptu; did you mean input"),
    ],
)
def test_files_that_are_no_job_files(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "job.toml"
    path.write_bytes(content)
    with pytest.raises(JobFileError, match=message):
        load_job(path, environment={})


@pytest.mark.parametrize("rate", ["0", "2", "nan", '"x"'])
def test_a_wrong_rate_is_told_once_with_its_line(tmp_path: Path, rate: str) -> None:
    """The same key under another table, and what only follows from the error, mislead nobody."""
    text = '[input]\npath = "in.jsonl"\n[target]\nmodel = "x"\n[[stages]]\nkind = "compress"\nmodel = "y"\n'
    path = tmp_path / "rate.toml"
    path.write_text(f"{text}rate = {rate}\n")
    with pytest.raises(JobFileError, match=r"rate\.toml:8: stages\.0\.rate: ") as told:
        load_job(path, environment={})
    assert "stages: " not in str(told.value)


def test_a_line_is_found_under_its_own_table(tmp_path: Path) -> None:
    """``model`` stands in [target] too."""
    text = '[input]\npath = "i"\n[target]\nmodel = "x"\n[[stages]]\nkind = "compress"\nrate = 0.5\nmodel = 5\n'
    path = tmp_path / "model.toml"
    path.write_text(text)
    with pytest.raises(JobFileError, match=r"model\.toml:8: stages\.0\.model"):
        load_job(path, environment={})


def test_an_empty_stop_string_which_would_end_every_answer_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    path.write_text('[input]\npath = "c"\n[[stages]]\nkind = "generate"\nstop = ["Q:", ""]\n')
    with pytest.raises(JobFileError, match=r"job\.toml:5: stages\.0\.stop\.1: must not be empty"):
        load_job(path, environment={})


def test_a_missing_file_and_impossible_overrides(job: Path) -> None:
    with pytest.raises(JobFileError, match="No such file"):
        load_job(job.with_name("none.toml"), environment={})
    for override in ("rate", "stages.7.rate=1", "name.x.y=1"):
        with pytest.raises(JobFileError, match=override.partition("=")[0].replace(".", r"\.")):
            load_job(job, [override], {})


def _numbers() -> Iterator[tuple[str, str]]:
    """Every setting of a job file that is a number, as (kind of stage or table, name)."""
    models: list[type[BaseModel]] = [LLMLinguaSpec, GenerateSpec, CopySpec, InputSpec]
    for kind, model in zip(("compress", "generate", "copy", "input"), models, strict=True):
        for name, field in model.model_fields.items():
            if {int, float} & set(_leaves(field.annotation)):
                yield kind, name


def _leaves(annotation: Any) -> Iterator[Any]:
    if not get_args(annotation):
        yield annotation
    for part in get_args(annotation):
        yield from _leaves(part)


@pytest.mark.parametrize(("kind", "name"), list(_numbers()))
def test_no_number_is_guessed_from_something_else(tmp_path: Path, kind: str, name: str) -> None:
    """A boolean, a text, NaN, an infinity, a negative and an absurd number: each is refused with its line."""
    path = tmp_path / "job.toml"
    for value in ("true", "'1'", "nan", "inf", "-1", "1" + "0" * 30 if name not in FLOATS else "-inf"):
        line = f"{name} = {value}\n"
        stage = f"[[stages]]\nkind = '{kind}'\n{line}" if kind != "input" else f"{line}[[stages]]\nkind = 'copy'\n"
        path.write_text(f"[input]\npath = 'c'\n{stage}")
        with pytest.raises(JobFileError, match=rf"job\.toml:\d: .*{name}: must be .*, not "):
            load_job(path, environment={})


FLOATS = {"seconds_per_shard", "rate", "granular_k", "temperature", "top_p", "draft_lenience", "deadline_seconds"}


def test_what_a_flag_or_the_environment_set_is_not_blamed_on_the_file(job: Path) -> None:
    with pytest.raises(JobFileError, match=r"^--set stages\.0\.rate: must be .*, not 2$"):
        load_job(job, ["stages.0.rate=2"], {"CONTEXTMILL_JOB__STAGES__0__RATE": "3"})
    with pytest.raises(JobFileError, match=r"^CONTEXTMILL_JOB__STAGES__0__RATE: stages\.0\.rate: .*, not 3$"):
        load_job(job, [], {"CONTEXTMILL_JOB__STAGES__0__RATE": "3"})
    with pytest.raises(JobFileError, match=r"^--set inputs\.path: unknown key inputs; did you mean input"):
        load_job(job, ["inputs.path=c"], {})
    with pytest.raises(JobFileError, match=r"^--set stages\.0\.rats: unknown key; did you mean rates\?$"):
        load_job(job, ["stages.0.rats=c"], {})
    with pytest.raises(JobFileError, match=r"^--set input\.path: it is missing$"):
        load_job(job, ["input.path="], {})
    with pytest.raises(JobFileError, match=r"^--set input: unknown key input\.paths; did you mean path"):
        load_job(job, ["input={path='c', paths=1}"], {})


@pytest.mark.parametrize("value", ["nan", "inf", "-1", "true"])
def test_no_timing_of_the_environment_is_absurd(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("CONTEXTMILL_LEASE_SECONDS", value)
    with pytest.raises(ValidationError, match="lease_seconds"):
        Settings()


@pytest.mark.parametrize("money", ["1.0000001", "12345678901", "1e3", "-1", "x"])
def test_money_is_exact_or_refused(job: Path, money: str) -> None:
    flags = [f"stages.1.budget_usd='{money}'", "stages.1.backend=openai"]
    with pytest.raises(JobFileError, match="budget_usd"):
        load_job(job, flags, {})


def test_what_changes_no_output_changes_no_hash(job: Path) -> None:
    spec = load_job(job, environment={})
    prices = 'target.prices=["openai:gpt-4.1"]'
    for same in ("output.path=elsewhere", "stages.0.batch_tokens=99", prices, "priority=high"):
        assert load_job(job, [same], {}).spec_hash() == spec.spec_hash()
    for other in ("stages.0.rate=0.4", "stages.1.seed=7", "target.model=x", "input.columns.text=body"):
        assert load_job(job, [other], {}).spec_hash() != spec.spec_hash()
