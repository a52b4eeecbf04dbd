"""`contextmill compare --judge` as a user has it: a judge here or behind an endpoint, paid once, in both orders."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path

import pytest
from command import User
from openai_server import FakeOpenAI, Served

from pipeline.accounting.wording import counted

JOB = """name = "{name}"
[input]
path = "{name}.jsonl"
[target]
model = {model}
[[stages]]
kind = "generate"
max_new_tokens = 4
[[stages]]
kind = "evaluate"
metrics = ["token_f1"]
"""
HOSTED = """name = "judge"
[target]
model = "gpt-4"
[[stages]]
kind = "generate"
backend = "openai"
base_url = "{url}"
max_new_tokens = 32
concurrency = 1
"""
ROWS = 6


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> User:
    return User.with_a_job(tmp_path_factory.mktemp("judged"), tiny_model)


@pytest.fixture(scope="module")
def jobs(user: User, tiny_model: Path) -> list[str]:
    """Two, which read the same question behind different contexts: their ids."""
    found = []
    for name, context in (("full", "Ann sold {} clips in April, and half as many in May."), ("cut", "{} clips.")):
        user.write(f"{name}.toml", JOB.format(name=name, model=json.dumps(str(tiny_model))))
        rows = [
            {"id": f"q{n}", "contexts": [context.format(n)], "question": f"How many are {n}?", "answer": f"{n} clips"}
            for n in range(ROWS)
        ]
        user.write(f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        ended = user.says("run", f"{name}.toml", "-o", "o", "--json")
        assert ended.code == 0, ended.err
        found.append(ended.json["job_id"])
    return found


def second_answer(prompt: str) -> str:
    """What a judge says that likes the answer of which the digest is larger: whichever, the same in both orders."""
    a, b = re.findall(r"\[Answer of assistant [AB]\]\n(.*?)\n\[End", prompt, re.DOTALL)
    return "so it is [[A]]" if a > b else "so it is [[B]]"


def test_a_judge_behind_an_endpoint_is_paid_once_and_never_beyond_its_budget(user: User, jobs: list[str]) -> None:
    server = FakeOpenAI(says=second_answer)
    with Served(server) as url:
        user.write("judge.toml", HOSTED.format(url=url) + 'budget_usd = "0.04"\n')
        words = "compare", *jobs, "-o", "o", "--judge", "judge.toml"
        ahead = user.says(*words, "--dry-run")
        assert ahead.code == 0, ahead.err
        assert re.search(r"gpt-4 would be asked \d+ times about 6 pairs", ahead.out) and not server.bill
        short = user.says(*words, CONTEXTMILL_API_KEY="sk-12345678")
        assert short.code == 4 and "budget reached" in " ".join(short.out.split()), short.err
        paid = len(server.bill)
        user.write("judge.toml", HOSTED.format(url=url) + 'budget_usd = "2"\n')
        ended = user.says(*words, "--html", "c.html", CONTEXTMILL_API_KEY="sk-12345678")
        assert ended.code == 0, ended.err
        again = user.says(*words, "--json", CONTEXTMILL_API_KEY="sk-12345678")
    prompts = {line["prompt"] for line in server.bill}
    assert 0 < paid < len(server.bill) == len(prompts), "nothing is asked twice"
    found = again.json
    baseline, cut = found["sides"]
    one = cut["judged"]
    assert (found["judge"], baseline["judged"], one["pairs"]) == ("gpt-4", None, ROWS)
    assert one["unread"] == one["unanswered"] == one["first"] == one["second"] == 0
    assert 2 * (ROWS - one["equal"]) >= len(server.bill) and one["order"]["value"] == 0.0
    assert one["win"]["value"] + one["tie"]["value"] + one["lose"]["value"] == pytest.approx(1)
    assert all("in April, and half as many" in prompt for prompt in prompts), "the longer prompt is told"
    assert all(re.search(r"\[A right answer\]\n\d clips\n", prompt) for prompt in prompts)
    assert "against full, judged by gpt-4" in ended.out and "6 of 6" in ended.out
    html = (user.folder / "c.html").read_text()
    assert "Judged by gpt-4" in html and "Win − lose" in html


def test_a_judge_of_this_machine_that_cannot_judge_is_said_to_be_none(
    user: User, jobs: list[str], tiny_model: Path
) -> None:
    """A random model never writes a verdict."""
    judge = f'[target]\nmodel = {json.dumps(str(tiny_model))}\n[[stages]]\nkind = "generate"\nmax_new_tokens = 4\n'
    user.write("judge.toml", judge)
    words = "compare", *jobs, "-o", "o", "--judge", "judge.toml", "--most", "4"
    ended = user.says(*words, "--json")
    assert ended.code == 0, ended.err
    one = ended.json["sides"][1]["judged"]
    assert one["pairs"] == 4 == one["equal"] + one["unread"] and one["unread"] > 0
    assert one["order"] is None and ended.json["jobs"][0]["state"] == "done"
    told = user.says(*words)
    assert "nothing is done twice" in told.out and f"{one['equal']} of 4" in told.out
    assert f"cut: {counted(one['unread'], 'pair')} unread: the judge's verdict is none" in told.out


def test_what_is_wrong_with_a_judge_is_said_before_it_is_asked(user: User, jobs: list[str], tiny_model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        nobody = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
    local = HOSTED.replace('backend = "openai"\nbase_url = "{url}"\n', "")
    ends = "deadline_seconds = 2.0\nmax_retries = 0\n"
    for text, words, code, said in (
        (local, [], 1, "no model 'gpt-4'"),
        (
            local.replace('"generate"', '"copy"').partition("max_new")[0],
            [],
            2,
            'one stage of kind = "generate", not copy',
        ),
        (HOSTED + ends, ["--json"], 1, "cannot be reached: connection refused"),
        (HOSTED, ["--html", "no/c.html"], 1, "no/c.html cannot be written"),
    ):
        user.write("judge.toml", text.format(url=nobody))
        ended = user.says("compare", *jobs, "-o", "o", "--judge", "judge.toml", *words)
        assert (ended.code, said in " ".join((ended.err + ended.out).split())) == (code, True), ended.err + ended.out
    ended = user.says("compare", *jobs, "-o", "o", "--most", "3")
    assert ended.code == 2 and "name one by --judge" in ended.err
