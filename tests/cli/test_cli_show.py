"""`contextmill show`: one document, what was cut of it, on a terminal, in a pipe and for programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from by_hand import Silent, work_through
from command import User

from pipeline.producer import submit
from pipeline.storage.jobs import find_job
from pipeline.storage.schema import migrate
from pipeline.storage.sql import open_engine
from schemas.job import JobSpec

TEXT = "Janet sold \x1b]0;owned\x07 48 clips in April, \x9b31mand then she sold half as many clips in May. " * 4
LONG = "All the clips that Janet sold in April and in May. " * 2_000


def job(user: User, model: Path, output: str, /, **settings: Any) -> str:
    """A job over two documents, worked through in this process; returns its id."""
    rows = [{"id": "a", "text": TEXT}, {"id": "long", "text": LONG}]
    user.write("in.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    stage = {"kind": "compress", "method": "random", **settings}
    made = {"name": "t", "input": {"path": str(user.folder / "in.jsonl")}, "target": {"model": str(model)}}
    spec = JobSpec.model_validate({**made, "output": {"path": str(user.folder / output)}, "stages": [stage]})
    (user.folder / output).mkdir(exist_ok=True)
    engine = open_engine(f"sqlite:///{user.folder / output}/contextmill.db")
    migrate(engine)
    job_id = submit(engine, spec, Silent()).job_id
    work_through(engine, job_id)
    assert find_job(engine, job_id).state == "done"
    engine.dispose()
    return job_id


def unmarked(shown: str) -> str:
    """What was shown without its marks, as the text it was."""
    return shown.replace("[-", "").replace("-]", "")


@pytest.mark.filterwarnings("ignore::DeprecationWarning:multiprocessing")
def test_a_document_is_shown_with_what_was_cut(user: User, tiny_model: Path) -> None:
    first = job(user, tiny_model, "o", rates=[0.5, 0.25])
    job_id = job(user, tiny_model, "o", rates=[0.5])

    told = user.says("show", "a@0.5", "-o", "o", "--json").json
    assert told["job_id"] == job_id
    assert told["text"] == TEXT
    assert "".join(TEXT[begin:end] for begin, end in told["kept"]) == told["compressed"]
    both = sorted([*told["kept"], *told["removed"]])
    assert "".join(TEXT[begin:end] for begin, end in both) == TEXT

    plain = user.says("show", "a@0.5", "-o", "o")
    assert plain.code == 0
    assert f"also in 1 older job (--job): {first}" in " ".join(plain.err.split())
    head, _, body = plain.out.partition("\n\n")
    assert f"a@0.5 in job {job_id}, by random" in head
    assert f"{told['tokens_compressed']} kept" in head
    assert f"characters cut, at {len(told['removed'])} place" in head
    assert body.count("[-") == body.count("-]") == len(told["removed"])
    shown = TEXT.replace("\x1b", "␛").replace("\x07", "␇").replace("\x9b", "\\x9b")
    assert unmarked(body).rstrip("\n") == shown.rstrip("\n")

    colours = user.says("show", "a@0.25", "-o", "o", "--job", first[:6], FORCE_COLOR="1", TERM="xterm-256color")
    assert "\x1b[2;9;31m" in colours.out
    assert "[-" not in colours.out
    assert "\x1b]0" not in colours.out and "\x9b" not in colours.out
    assert not colours.err

    cut_off = user.says("show", "long@0.5", "-o", "o", "--job", job_id, FORCE_COLOR="1", TERM="xterm-256color")
    assert f"the first 20,000 of {len(LONG):,} characters; --all shows the rest" in " ".join(cut_off.err.split())
    whole = user.says("show", "long@0.5", "-o", "o", "--job", job_id)
    assert unmarked(whole.out).rstrip("\n").endswith(LONG.rstrip("\n"))

    unknown = user.says("show", "a", "-o", "o")
    assert unknown.code == 2
    assert "no document 'a' in this database; there are a@0.25, a@0.5" in " ".join(unknown.err.split())


@pytest.mark.filterwarnings("ignore::DeprecationWarning:multiprocessing")
def test_a_list_of_what_was_removed_is_shown_beside_the_cut(user: User, tiny_model: Path) -> None:
    job(user, tiny_model, "o", rate=0.6, removed_phrases=2)
    told = user.says("show", "a", "-o", "o", "--json").json
    begin, end = told["listed"]
    joined = "".join(TEXT[begin:end] for begin, end in told["kept"])
    assert joined == told["compressed"][:begin] + told["compressed"][end:]
    plain = user.says("show", "a", "-o", "o").out
    assert "\nadded: Left out above: " in plain
    assert "[-" in plain


@pytest.mark.filterwarnings("ignore::DeprecationWarning:multiprocessing")
def test_what_the_library_leaves_as_it_is_is_not_said_to_fit(user: User, tiny_model: Path) -> None:
    options = {"target_token": 5, "use_token_level_filter": False}
    job(user, tiny_model, "o", method="llmlingua", fidelity="reference", model=str(tiny_model), options=options)
    head = user.says("show", "a", "-o", "o").out.partition("\n\n")[0]
    assert "5 asked for" in head
    assert head.endswith("\nunchanged: nothing was cut")
