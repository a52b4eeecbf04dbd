"""Job files: what is read, what wins over what, and errors that say where and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.jobfile import JobFileError, load_job
from schemas.stage import CompressSpec, GenerateSpec

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
        ("rate = '0.5x'", r"job\.toml:6: stages\.0\.rate: .*valid number.*not '0.5x'"),
        ("rate = 0.5\ntarget_tokens = 3", "exactly one of rate and target_tokens"),
        ("method = 'zip'\nrate = 0.5", r"job\.toml:6: stages\.0\.method: .*'llmlingua', not 'zip'"),
        ("rate = = 1", r"job\.toml: not valid TOML: .*line 6"),
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
        (b'[input]\npath = "c"\n[[stages]]\nkind = "shrink"\n', "'compress', 'generate', 'copy'"),
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


def test_a_missing_file_and_impossible_overrides(job: Path) -> None:
    with pytest.raises(JobFileError, match="No such file"):
        load_job(job.with_name("none.toml"), environment={})
    for override in ("rate", "stages.7.rate=1", "name.x.y=1"):
        with pytest.raises(JobFileError, match=override.partition("=")[0].replace(".", r"\.")):
            load_job(job, [override], {})


def test_what_changes_no_output_changes_no_hash(job: Path) -> None:
    spec = load_job(job, environment={})
    prices = 'target.prices=["openai:gpt-4.1"]'
    for same in ("output.path=elsewhere", "stages.0.batch_tokens=99", prices, "priority=high"):
        assert load_job(job, [same], {}).spec_hash() == spec.spec_hash()
    for other in ("stages.0.rate=0.4", "stages.1.seed=7", "target.model=x", "input.columns.text=body"):
        assert load_job(job, [other], {}).spec_hash() != spec.spec_hash()
