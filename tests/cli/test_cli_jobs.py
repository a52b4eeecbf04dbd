"""Jobs from the command line, as processes: done, reported, exported, interrupted, run twice at once."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.dataset as pads
from command import User


def test_a_job_is_run_reported_and_exported(user: User) -> None:
    """One job through every command that looks at it; --json is JSON alone; files are found from anywhere."""
    first = user.says("run", "job.toml", "-o", "o", "--json")
    assert first.code == 0
    job_id = first.json["job_id"]
    assert first.json["documents"]["done"] == 3
    again = user.says("run", "job.toml", "-o", "o")
    assert again.code == 0
    assert "nothing is done twice" in " ".join(again.out.split())
    assert "nothing to resume" in user.says("resume", job_id, "-o", "o").out
    assert "is done already" in user.says("cancel", job_id, "-o", "o").out
    assert "no dead documents" in user.says("retry-dead", job_id, "-o", "o").out
    assert user.says("status", "-o", "o", "--json").json[0]["state"] == "done"
    assert user.says("status", "zz", "-o", "o").code == 2

    elsewhere = user.folder / "elsewhere"
    elsewhere.mkdir()
    where = str(user.folder / "o")
    assert user.says("export", job_id[:5], "all.jsonl", "-o", where, cwd=elsewhere).code == 0
    rows = [json.loads(line) for line in (elsewhere / "all.jsonl").read_text().splitlines()]
    assert [row["doc_id"] for row in rows] == ["a", "b", "c"]
    assert user.says("report", job_id, "-o", where, "--html", "r.html", cwd=elsewhere).code == 0
    assert (elsewhere / "r.html").read_text().startswith("<!")
    for words, said in (
        (("export", job_id, "all.xlsx"), "must end in .jsonl"),
        (("export", job_id, "none/all.csv"), "no folder none"),
        (("report", job_id, "--html", "none/r.html"), "none/r.html"),
    ):
        ended = user.says(*words, "-o", "o")
        assert ended.code == 1
        assert said in ended.err
    assert not list(elsewhere.glob(".*"))


def test_rows_that_cannot_be_used_are_named_with_file_and_line(user: User) -> None:
    """Every row ends as a document or as a rejection; where none is left, that is a failure, and a quick one."""
    good = '{"id":"a","text":"one"}\n{"id":"a","text":"one"}\n'
    bad = (
        b'{"id":"b","text":"\xff"}\n{"id":"c","text":"  "}\n{"id":"d"}\n{"id":"e","text":5}\n{"id":"a","text":"x"}\n7\n'
    )
    user.write("mix.jsonl", good.encode() + bad)
    began = time.monotonic()
    ended = user.says("run", "job.toml", "-o", "o", "-i", "mix.jsonl")
    whole = time.monotonic() - began
    assert ended.code == 0
    assert "done 1 " in ended.out
    assert "rejected 6 " in ended.out
    assert "mix.jsonl:3: byte" in ended.out
    user.write("bad.jsonl", bad.splitlines(keepends=True)[1])
    began = time.monotonic()
    none = user.says("run", "job.toml", "-o", "o", "-i", "bad.jsonl")
    assert time.monotonic() - began < min(90, 30 + 3 * whole)
    assert none.code == 1
    assert "bad.jsonl:1: " in none.out
    assert "no document came through" in none.err
    ahead = user.says("run", "job.toml", "-o", "o", "-i", "bad.jsonl", "--dry-run")
    assert ahead.code == 1 and "no document would come through" in ahead.err and "bad.jsonl:1: " in ahead.out


def test_an_interrupted_run_goes_on(user: User) -> None:
    """Ctrl-C ends it with a sentence, within its grace; the same command finishes it, each row once."""
    user.write("in.jsonl", "".join(json.dumps({"id": f"d{n}", "text": f"text {n}"}) + "\n" for n in range(5_000)))
    words = "run", "job.toml", "-o", "o", "--set", "stages.0.seconds_per_shard=0.00004"
    running = subprocess.Popen(
        user.command(*words), cwd=user.folder, env=user.environment(), stderr=subprocess.PIPE, text=True
    )
    while not list(user.folder.glob("o/t-*/_parts/*.parquet")):
        assert running.poll() is None
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=100)
    assert running.returncode == 1, said
    assert "the same command goes on from here" in said
    assert "Traceback" not in said
    assert user.says(*words).code == 0
    (data,) = user.folder.glob("o/t-*/data")
    ids = pads.dataset(data).to_table()["doc_id"].to_pylist()
    assert sorted(ids) == sorted(f"d{n}" for n in range(5_000))


def test_a_run_reads_its_corpus_for_its_digest_once(user: User) -> None:
    """Over a large corpus each reading is minutes, and over s3 money."""
    counted = (
        "import sys, pipeline.producer as p\n"
        "from pipeline.cli import main\n"
        "def once(spec, real=p.fingerprint):\n"
        "    open('digests', 'a').write('x')\n"
        "    return real(spec)\n"
        "p.fingerprint = once\n"
        "sys.argv = ['contextmill', 'run', 'job.toml', '-o', 'o']\n"
        "main()\n"
    )
    user.write("counted.py", counted)
    done = subprocess.run(
        [sys.executable, "counted.py"], cwd=user.folder, env=user.environment(), capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (user.folder / "digests").read_text() == "x"


def test_a_dry_run_says_what_its_times_rest_on(user: User, tiny_model: Path) -> None:
    """Assumed rates are called so until a run has measured, and whose they are; nothing is made."""
    model = json.dumps(str(tiny_model))
    stage = f'[[stages]]\nkind = "compress"\nmodel = {model}\nrate = 0.5\n'
    user.write("c.toml", f'name = "t"\n[input]\npath = "in.jsonl"\n[target]\nmodel = {model}\n{stage}')
    said = user.says("run", "c.toml", "-o", "o", "--dry-run")
    assert said.code == 0
    assert "basis: compress: time assumed, not measured yet: for cores that read 400" in " ".join(said.out.split())
    assert not (user.folder / "o").exists()


def test_two_runs_of_one_job_at_once_share_it(user: User) -> None:
    """Both end well, neither takes the other's port, and every row is there once."""
    words = user.command("run", "job.toml", "-o", "o")
    both = [subprocess.Popen(words, cwd=user.folder, env=user.environment(), stderr=subprocess.PIPE) for _ in range(2)]
    assert [(run.communicate(timeout=200)[1], run.returncode)[1] for run in both] == [0, 0]
    (data,) = user.folder.glob("o/t-*/data")
    assert sorted(pads.dataset(data).to_table()["doc_id"].to_pylist()) == ["a", "b", "c"]
