"""`contextmill tune-drafting`: plans of drafting measured over a job's first documents."""

from __future__ import annotations

import json
import shutil
import tomllib
from pathlib import Path
from typing import Any

from command import User
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

JOB = """name = "t"
[input]
path = "in.jsonl"
[target]
model = {model}
{compress}
[[stages]]
kind = "generate"
max_new_tokens = 12
{settings}
"""
COMPRESS = '[[stages]]\nkind = "compress"\nmethod = "random"\nrates = [0.5, 0.25]\n'
COPIES = ["plain", "copies 3", "copies 7", "copies 15", "copies as pay"]
DRAFTED = ["drafter 2", "cascade 2 over 3", "cascade 2 over 3, 7 behind", "drafter 4", "drafts as pay"]


def write(user: User, model: Path, *, compress: str = "", settings: str = "") -> None:
    user.write("job.toml", JOB.format(model=json.dumps(str(model)), compress=compress, settings=settings))
    rows: list[Any] = [
        {"id": f"q{at}", "text": f"Janet sold {at} clips in April, then half as many. " * 4} for at in range(4)
    ]
    rows.insert(1, {"id": "bad", "text": 7})
    user.write("in.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def test_the_first_documents_are_answered_by_every_plan(user: User, tiny_model: Path) -> None:
    """Compressed first at the job's first rate; what can be pasted into the job file is TOML that the job takes."""
    write(user, tiny_model, compress=COMPRESS)
    ended = user.says("tune-drafting", "job.toml", "--documents", "3", "--rows", "1", "--rows", "8", "--json")
    assert ended.code == 0, ended.err
    assert "left out: in.jsonl:2: " in ended.err and "documents through the stages before generate" in ended.err
    said = ended.json
    assert (said["documents"], said["max_new_tokens"], said["device"]) == (3, 12, "cpu")
    assert [(one["rows"], one["plan"]) for one in said["measured"]] == [(n, name) for n in (1, 3) for name in COPIES]
    assert all(one["same_answers"] == 3 for one in said["measured"])
    plain, copies = said["measured"][:2]
    assert (plain["tokens_per_pass"], plain["accepted"], plain["settings"]) == (1.0, None, {})
    assert copies["settings"] == {"draft_tokens": 3} and copies["tokens_per_pass"] >= 1
    assert [one["rows"] for one in said["fastest"]] == [1, 3] and not said["refused"]
    assert not list(user.folder.glob("runs")), "no job was made"


def test_a_drafter_is_measured_and_the_table_says_what_to_write(user: User, tiny_model: Path) -> None:
    """The target as its own drafter: all that it drafts is accepted."""
    write(user, tiny_model, settings=f"drafters = [{json.dumps(str(tiny_model))}]\ndraft_rounds = [3]\ndraft_tail = 1")
    words = "tune-drafting", "job.toml", "--documents", "2", "--max-new-tokens", "40"
    ended = user.says(*words)
    assert ended.code == 0, ended.err
    lines = ended.out.splitlines()
    assert lines[0].startswith("2 documents of ") and lines[0].endswith("up to 40 new ones each; cpu, float32")
    for name in [*COPIES, *DRAFTED, "the job's own"]:
        (line,) = (line for line in lines if f"  {name}  " in line)
        assert line.split()[0] == "2" and line.rstrip().endswith("2 of 2")
    (drafter,) = (line for line in lines if "  drafter 4  " in line)
    assert float(drafter.split()[5]) > 2
    (at,) = (at for at, line in enumerate(lines) if line.startswith("2 at once: "))
    found = tomllib.loads("\n".join(line for line in lines[at + 1 :] if "take out" not in line))
    assert set(found) <= {"drafters", "draft_rounds", "draft_tokens", "draft_tail"}
    assert bool(found) != ("plain decoding is fastest" in lines[at])


def test_drafters_that_cannot_be_used_are_told_with_their_reason(user: User, tiny_model: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_model, other)
    words = Tokenizer(WordLevel({"one": 0, "two": 1}, unk_token="one"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="one").save_pretrained(other)
    write(user, tiny_model, settings='drafters = ["other"]')
    ended = user.says("tune-drafting", "job.toml", "--documents", "1")
    assert ended.code == 0, ended.err
    told = [line for line in ended.out.splitlines() if "other cannot draft for" in line]
    assert len(told) == len(DRAFTED) and all("it is not known which tokens" in line for line in told)
    assert "1 at once: " in ended.out, "copies are measured all the same"


def test_what_cannot_be_tuned_is_an_error_of_one_sentence(user: User, tiny_model: Path) -> None:
    nothing = user.says("tune-drafting", "none.toml")
    assert (nothing.code, nothing.out) == (2, "") and "none.toml: No such file or directory" in nothing.err
    copied = user.says("tune-drafting", "job.toml")
    assert (copied.code, copied.out) == (2, "") and "the job has no stage of kind generate" in copied.err
    write(user, tiny_model, settings='backend = "openai"')
    hosted = user.says("tune-drafting", "job.toml")
    assert (hosted.code, hosted.out) == (2, "") and 'stages.0: drafts need backend = "local"' in hosted.err
    write(user, tiny_model)
    user.write("in.jsonl", json.dumps({"id": "a", "text": "Janet sold clips. " * 2_000}) + "\n")
    long = user.says("tune-drafting", "job.toml")
    assert (long.code, long.out) == (1, "") and "left out: in.jsonl:1: the prompt has " in long.err
    assert "there is no document that the generate stage would answer" in long.err
