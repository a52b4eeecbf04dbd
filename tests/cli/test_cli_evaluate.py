"""`contextmill icae evaluate` as a user has it: what was measured is told, also where it is interrupted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from command import Said, User
from tiny_models import lines, save_tiny_encoder

EVALUATE = "icae", "evaluate", "encoder", "-t", "prose=texts.jsonl", "--rows", "3", "--continued", "8"
PARTS = ["prose", "what follows prose", "numbers", "patterned", "random", "seconds"]  # with one precision
ONE = "--precision", "float16"

INTERRUPTED = """
import signal, sys
from pipeline.cli import main
from pipeline.memory import evaluating

whole, sign, part = evaluating.evaluate, signal.Signals[sys.argv[1]], int(sys.argv[2])

def evaluate(coder, tokenizer, kinds, asked, told):
    heard = []

    def now(done, total, what):
        told(done, total, what)
        if done == part:
            heard.append(what)
            if len(heard) == 3:
                signal.raise_signal(sign)

    return whole(coder, tokenizer, kinds, asked, now)

evaluating.evaluate = evaluate
sys.argv = ["contextmill", *sys.argv[3:]]
main()
"""


@pytest.fixture
def prepared(user: User, tiny_model: Path) -> User:
    save_tiny_encoder(user.folder / "encoder", tiny_model)
    rows = [{"text": "\n".join(lines()[at * 6 : at * 6 + 6])} for at in range(8)]
    user.write("texts.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    return user


def interrupted(user: User, sign: str, part: int, *words: str) -> Said:
    """The command, which gets a signal in the midst of measuring a part, counted from 0."""
    command = [sys.executable, "-c", INTERRUPTED, sign, str(part), *words]
    done = subprocess.run(
        command, cwd=user.folder, env=user.environment(), capture_output=True, text=True, timeout=400, check=False
    )
    return Said(done.returncode, done.stdout, done.stderr)


def test_an_interrupted_evaluation_gives_what_was_measured(prepared: User) -> None:
    """In exit code 1, and marked; no row of it differs from that of a whole one, and none is missing."""
    whole = prepared.says(*EVALUATE, *ONE, "--json").json
    assert (whole["measured"], whole["total"], whole["unfinished"]) == (len(PARTS), len(PARTS), False)
    ended = interrupted(prepared, "SIGINT", PARTS.index("patterned"), *EVALUATE, *ONE, "--json")
    assert ended.code == 1 and ended.err.endswith("\ninterrupted\n"), ended.err
    found = ended.json
    assert (found["measured"], found["total"], found["unfinished"]) == (3, len(PARTS), True)
    for name, rows in {"repeated": 2, "stored": 2, "continued": 1, "latencies": 0}.items():
        assert found[name] == whole[name][:rows], name

    ended = interrupted(prepared, "SIGTERM", 3, *EVALUATE, *ONE, "--html", "r.html")
    assert ended.code == 1 and ended.err.endswith("\ninterrupted\n"), ended.err
    marked = "interrupted after 3 of 6: the tables are of those"
    said = ended.out.splitlines()
    assert said[0] == marked and said[-1] == "report: r.html"
    for shown in (ended.out, (prepared.folder / "r.html").read_text()):
        assert marked in shown and "numbers" in shown and "what follows" in shown.lower()
    assert "patterned  " not in ended.out and "seconds for one context" not in ended.out


def test_nothing_is_told_where_nothing_was_measured(prepared: User) -> None:
    """An older report stays."""
    prepared.write("r.html", "older")
    ended = interrupted(prepared, "SIGINT", 0, *EVALUATE, "--json", "--html", "r.html")
    assert (ended.code, ended.out) == (1, "") and ended.err.endswith("\ninterrupted\n"), ended.err
    assert (prepared.folder / "r.html").read_text() == "older"


def test_texts_of_which_none_is_long_enough(prepared: User) -> None:
    """Are told, and no success for the script that looks at nothing else."""
    ended = prepared.says(*EVALUATE, *ONE, "--kind", "prose", "--tokens", "700", "--ratio", "2", "--json")
    assert ended.code == 1 and "no text of prose is long enough" in ended.err, ended.err
    assert ended.json["short"] == [["prose", 700]]


def test_some_kinds_alone(prepared: User) -> None:
    """Those of texts first, whatever the order of asking; no other is measured, counted or read."""
    words = *EVALUATE, *ONE, "-t", "code=nowhere.jsonl", "--kind"
    ended = prepared.says(*words, "random", "--kind", "prose", "--kind", "random", "--json")
    assert ended.code == 0, ended.err
    assert [one["kind"] for one in ended.json["repeated"]] == ["prose", "random"]
    assert (ended.json["measured"], ended.json["total"]) == (4, 4) and "0 of 4 measured: prose" in ended.err
    alone = prepared.says("icae", "evaluate", "encoder", *ONE, "--rows", "3", "--kind", "random", "--json").json
    assert alone["repeated"] == ended.json["repeated"][1:], "whichever others are asked for"
    unknown: list[tuple[tuple[str, ...], str]] = [
        ((*words, "verse"), "--kind verse: there is none; there are prose, code, numbers, patterned, random"),
        (
            ("icae", "evaluate", "encoder", "--kind", "patterned"),
            "--kind patterned: there is none; there are numbers, random",
        ),
    ]
    for asked, there in unknown:
        ended = prepared.says(*asked)
        assert (ended.code, there in " ".join(ended.err.split())) == (2, True), ended.err
