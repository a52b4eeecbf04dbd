"""Hosted jobs from the command line: what a user is told, what a job leaves behind, and that the key is not in it."""

from __future__ import annotations

import json
import re
import shlex
from collections import deque
from pathlib import Path

import pyarrow.dataset as pads
import pytest
from command import Said, User
from openai_server import FakeOpenAI, Served
from servers import free_port

KEY = "sk-live-T0pSecret8261aa"
JOB = """name = "h"
[input]
path = "in.jsonl"
[target]
model = "gpt-4"
[[stages]]
kind = "generate"
backend = "openai"
base_url = "{url}"
max_new_tokens = 8
concurrency = 2
"""


def run(user: User, url: str, *sets: str, key: str = KEY) -> Said:
    """``contextmill run`` of three documents on an endpoint; the key is in the environment."""
    user.write("hosted.toml", JOB.format(url=url))
    words = [word for one in sets for word in ("--set", one)]
    return user.says("run", "hosted.toml", "-o", "o", *words, CONTEXTMILL_API_KEY=key)


def nothing_holds(secret: str, folder: Path, *said: Said) -> None:
    """Not the database, no part, no log, no report, nothing that was printed; packed columns are unpacked."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} >= {".db", ".parquet", ".log", ".html"}
    for path in files:
        assert secret.encode() not in path.read_bytes(), path
        if path.suffix == ".parquet":
            assert secret not in str(pads.dataset(path).to_table().to_pylist()), path
    for one in said:
        assert secret not in one.out + one.err


def test_a_hosted_job_leaves_its_bill_and_no_secret(user: User) -> None:
    """Each answer of this endpoint repeats the Authorization header."""
    server = FakeOpenAI(api_key=KEY)
    with Served(server) as url:
        ended = run(user, url)
        (job,) = user.says("status", "-o", "o", "--json").json
        told = [user.says(*words, job["id"], "-o", "o") for words in (("report",), ("report", "--json"), ("status",))]
        html = user.says("report", job["id"], "-o", "o", "--html", "r.html")
        exported = user.says("export", job["id"], "rows.jsonl", "-o", "o")
    assert ended.code == 0
    assert "without a key" not in ended.err
    assert len(server.bill) == 3
    assert told[1].json["stages"][0]["cost_microusd"] == sum(line["cost_microusd"] for line in server.bill)
    nothing_holds(KEY, user.folder, ended, *told, html, exported)


def test_a_reached_budget_is_exit_4_and_a_higher_one_goes_on(user: User) -> None:
    """What was answered is kept: the second run pays for the rest alone."""
    server = FakeOpenAI()
    with Served(server) as url:
        first = run(user, url, "stages.0.budget_usd='0.004'", "stages.0.concurrency=1")
        paid = len(server.bill)
        second = run(user, url, "stages.0.budget_usd='1'", "stages.0.concurrency=1")
    assert first.code == 4
    assert re.search(r"budget reached: 0\.00\d+ of 0\.004000 dollars", " ".join(first.out.split()))
    assert 0 < paid < 3
    assert second.code == 0
    assert len(server.bill) == 3
    total = sum(line["cost_microusd"] for line in server.bill) / 1e6
    assert f"budget     ${total:.6f} spent of $1.00" in second.out


def test_a_budget_that_is_reached_while_the_input_is_still_read_is_exit_4_too(user: User) -> None:
    """A shard for each document: workers are done with the money before the last one is cut, on most machines."""
    rows = [{"id": f"d{number}", "text": f"What is {number} and one?"} for number in range(2500)]
    user.write("many.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    small = "stages.0.concurrency=1", "stages.0.seconds_per_shard=0.01", "input.path='many.jsonl'"
    server = FakeOpenAI()
    with Served(server) as url:
        first = run(user, url, "stages.0.budget_usd='0.004'", *small)
        paid = len(server.bill)
        second = run(user, url, "stages.0.budget_usd='0.006'", *small)
    for said in (first, second):
        assert said.code == 4 and "budget reached" in said.out, said.err
    assert 0 < paid < len(server.bill) < 10


def test_a_wrong_key_is_named_and_not_repeated(user: User) -> None:
    server = FakeOpenAI(api_key="another-key-altogether")
    with Served(server) as url:
        ended = run(user, url)
    assert ended.code == 1
    said = " ".join(ended.out.split())
    assert f"{url} refuses this job: HTTP 401: Incorrect API key provided: Bearer [key]" in said
    assert "Check CONTEXTMILL_API_KEY" in said
    assert len(server.arrivals) <= 2
    nothing_holds(KEY, user.folder / "o", ended)
    assert "/data\n" not in ended.out, "nothing is published yet"
    (told,) = re.findall(r"as they were: contextmill (resume \w+ -o .*)\n", ended.out)
    mended = FakeOpenAI(api_key=KEY)
    with Served(mended, port=int(url.split(":")[2].removesuffix("/v1"))):
        resumed = user.says(*shlex.split(told), cwd=user.folder.parent, CONTEXTMILL_API_KEY=KEY)
    assert resumed.code == 0
    assert len(mended.bill) == 3


def test_no_key_for_an_endpoint_of_ones_own_is_remarked_on_once(user: User) -> None:
    with Served(FakeOpenAI()) as url:
        ended = run(user, url, key="")
    assert ended.code == 0
    assert ended.err.count("without a key") == 1
    assert f"CONTEXTMILL_API_KEY is not set: calls to {url} go out without a key" in " ".join(ended.err.split())
    assert "without a key" not in "".join(log.read_text() for log in (user.folder / "o" / "logs").iterdir())


@pytest.mark.parametrize("fault", ["html", "no_choices"])
def test_an_endpoint_that_answers_garbage_is_not_believed(user: User, fault: str) -> None:
    """Its answers may be on the bill all the same, and are listed as lost, with what was seen."""
    server = FakeOpenAI(faults={fault: 1.0})
    with Served(server) as url:
        ended = run(user, url, "stages.0.max_retries=0")
        job = re.search(r"\(([0-9a-f]{12})\)", ended.out)
        assert job is not None
        told = user.says("report", job[1], "-o", "o", "--json").json
    assert ended.code == 3
    said = " ".join(ended.out.split())
    assert "3 dead in generate: bad_response" in said
    assert "an answer that is none" in said
    assert "3 lost: nobody saw their end; perhaps billed, at most $" in said
    assert [row["state"] for row in told["open_requests"]] == ["lost"] * 3
    assert all("an answer that is none" in row["reason"] for row in told["open_requests"])


def test_an_endpoint_full_of_garbage_stops_the_job(user: User) -> None:
    rows = [{"id": f"d{n}", "text": f"text {n}"} for n in range(30)]
    user.write("in.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    server = FakeOpenAI(faults={"html": 1.0})
    with Served(server) as url:
        ended = run(user, url, "stages.0.max_retries=0")
    assert ended.code == 1
    assert "10 documents in a row failed" in " ".join(ended.out.split())
    assert len(server.arrivals) < 15, "though each shard holds but eight documents"


def test_a_paid_refusal_is_in_the_total(user: User) -> None:
    server = FakeOpenAI(script=deque(["filtered"]))
    with Served(server) as url:
        ended = run(user, url)
    total, refused = (sum(line["cost_microusd"] for line in lines) for lines in (server.bill, server.bill[:1]))
    assert ended.code == 0
    assert re.search(rf"generate .* \${total / 1e6:.6f}\n", ended.out)
    assert f"${refused / 1e6:.6f} of it for answers without a row" in ended.out


def test_an_endpoint_that_refuses_connections_is_named_while_it_is_tried(user: User) -> None:
    """And given up after some 20 seconds, not after the whole deadline of a document."""
    url = f"http://127.0.0.1:{free_port()}/v1"
    ended = run(user, url, key="")
    assert ended.code == 1
    assert re.search(rf"generate 0/3 documents; last call: connection refused \({url}\) \d+ s ago", ended.err)
    assert f"{url} cannot be reached: connection refused" in " ".join(ended.out.split())
