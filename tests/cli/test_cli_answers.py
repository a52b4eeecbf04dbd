"""`contextmill icae evaluate --answers` as a user has it: from slots, and from what they are set against."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from command import User
from openai_server import FakeOpenAI, Served
from tiny_models import lines, save_tiny_encoder, save_tiny_llama

JOB = """name = "asked"
[input]
path = "rows.jsonl"
[target]
model = {model}
[[stages]]
kind = "generate"
max_new_tokens = 3
[[stages]]
kind = "evaluate"
metrics = ["token_f1"]
"""
JUDGE = """name = "judge"
[target]
model = "gpt-4"
[[stages]]
kind = "generate"
backend = "openai"
base_url = "{url}"
max_new_tokens = 32
"""
SIDES = "slots", "text", "cut", "summary", "lingua", "nothing"


@pytest.fixture
def prepared(user: User, tiny_model: Path) -> User:
    save_tiny_encoder(user.folder / "encoder", tiny_model)
    user.write("answers.toml", JOB.format(model=json.dumps(str(tiny_model))))
    contexts = ["\n".join(lines()[at * 3 : at * 3 + 3]) for at in range(3)]
    rows = [
        {"id": f"q{at}-{ask}", "contexts": [text], "question": f"What is {ask}?", "answer": ["a clip", "clips"]}
        for at, text in enumerate(contexts)
        for ask in range(2)
    ]
    more = [{"id": "none", "contexts": [], "question": "What?", "answer": "x"}]
    user.write("rows.jsonl", "".join(json.dumps(row) + "\n" for row in [*rows, *more]))
    return user


def test_slots_stand_beside_the_text_and_what_has_as_many_tokens(prepared: User) -> None:
    """The judge says nothing but [[A]]: nobody wins."""
    server = FakeOpenAI(says=lambda prompt: "[[A]]")
    with Served(server) as url:
        prepared.write("judge.toml", JUDGE.format(url=url))
        on_cpu = "-o", "o", "--device", "cpu"
        words = ("icae", "evaluate", "encoder", "--answers", "answers.toml", "--judge", "judge.toml", *on_cpu)
        key = "sk-12345678"
        told = prepared.says(*words, "--ratio", "4", "--html", "r.html", seconds=600, CONTEXTMILL_API_KEY=key)
        assert told.code == 0, told.err + told.out
        paid = len(server.bill)
        log = (prepared.folder / "o/logs/worker-0.log").read_text()
        assert log.count(" ready.") == 2, "seven jobs keep one worker, the judge has another"
        ended = prepared.says(*words, "--ratio", "4", "--json", seconds=300, CONTEXTMILL_API_KEY=key)
        assert ended.code == 0 and len(server.bill) == paid > 0, "nothing is asked twice"
    narrow = save_tiny_llama(prepared.folder / "narrow", window=64)
    stage = f'[target]\nmodel = {json.dumps(str(narrow))}\n[[stages]]\nkind = "generate"\nmax_new_tokens = 4\n'
    prepared.write("narrow.toml", stage)
    unjudged = prepared.says(*words[:5], "--judge", "narrow.toml", "-o", "o", "--ratio", "4", seconds=300)
    assert unjudged.code == 1 and "pairs unanswered" in unjudged.out and "were rejected" in unjudged.err
    assert "1 row left out, the first: rows.jsonl:7 has no context" in told.out
    assert "against asked-slots, judged by gpt-4" in told.out and "repeated from slots" not in told.out
    html = (prepared.folder / "r.html").read_text()
    assert "Judged by gpt-4" in html and "asked-lingua" in html and "Repeated from slots" not in html
    stages = [one for job in ended.json["jobs"] if "asked" in job["name"] for one in job["spec"]["stages"]]
    assert {one["device"] for one in stages if one["kind"] in ("encode", "generate")} == {"cpu"}
    found = ended.json["answers"]
    slots, *others = found["sides"]
    assert [side["name"] for side in found["sides"]] == [f"asked-{side}" for side in SIDES] and slots["baseline"]
    assert all(side["documents"] == 6 for side in found["sides"])
    for side in others:
        one = side["judged"]
        assert one["pairs"] == 6 and one["tie"]["value"] == 1.0 and one["first"] == 6 - one["equal"]
    rows = {
        side: pq.read_table(next(prepared.folder.glob(f"o/asked-{side}-*/data"))).sort_by("seq").to_pylist()
        for side in SIDES
    }
    for at in range(6):
        room = {side: rows[side][at]["tokens_prompt"] - rows["nothing"][at]["tokens_prompt"] for side in SIDES}
        budget = rows["slots"][at]["slots"]
        assert room["text"] > 3 * budget and all(0 < room[side] <= budget + 3 for side in ("cut", "lingua", "summary"))
    before, behind = (sum(row[f"tokens_{one}"] for row in rows["slots"]) for one in ("original", "compressed"))
    ratios = {side: one["ratio"] for side, one in zip(SIDES, found["sides"], strict=True)}
    assert ratios["slots"] == before / behind == pytest.approx(ratios["cut"], rel=0.2) and ratios["text"] == 1.0
    assert rows["cut"][0]["compress_method"] == "truncation" and rows["lingua"][0]["compress_method"] == "llmlingua"
    assert len(ended.json["jobs"]) == len(SIDES) + 2 and all(job["state"] == "done" for job in ended.json["jobs"])


def test_what_is_wrong_is_said_before_anything_is_asked(prepared: User, tiny_model: Path) -> None:
    stages = JOB.format(model=json.dumps(str(tiny_model)))
    prepared.write("plain.toml", stages.partition('[[stages]]\nkind = "evaluate"')[0])
    kept = '[[stages]]\nkind = "encode"\nencoder = "x"\nkeep_text = 9\n[[stages]]\nkind = "generate"'
    prepared.write("kept.toml", stages.replace('[[stages]]\nkind = "generate"', kept))
    evaluate = "icae", "evaluate", "encoder", "-o", "o"
    for words, code, said in (
        (["--answers", "plain.toml"], 2, "the stages generate and evaluate are wanted here, not generate"),
        (["--answers", "kept.toml"], 2, "budgets would not be equal"),
        (["--answers", "answers.toml", "--ratio", "2", "--ratio", "4"], 2, "name one --ratio"),
        (["--answers", "answers.toml", "--judge", "answers.toml"], 2, "a judge is one stage of kind"),
        (["--judge", "answers.toml"], 2, "name questions by --answers"),
        (["--answers", "answers.toml", "--refine", "3"], 2, "answers.toml may say refine in its encode stage"),
    ):
        ended = prepared.says(*evaluate, *words)
        assert (ended.code, said in " ".join(ended.err.split())) == (code, True), ended.err + ended.out
    assert not (prepared.folder / "o").exists()
