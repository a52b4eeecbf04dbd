"""What is asked of a hosted model, and what is made of its answers."""

from __future__ import annotations

from collections import deque
from decimal import Decimal
from typing import Any

import pytest
from hosted_rig import documents, generator, results, rows, run_with, same_bill
from openai_server import FakeOpenAI, Served
from sqlalchemy import Engine

from pipeline.generation.endpoint import Malformed, read_answer
from pipeline.stages import Refusal
from schemas.document import Document, PromptParts
from schemas.records import STAGE_FIELDS


def test_answers_come_in_order_with_their_tokens_and_costs(engine: Engine) -> None:
    server, seen = FakeOpenAI(seconds=0.01), []
    with Served(server) as url:
        run = run_with(engine, progress=lambda done, tokens: seen.append((done, tokens)))
        made = results(generator(url, concurrency=4).run(documents(20), run))
    assert len({result.fields["generated"] for result in made}) == 20  # the fake answers with a hash of the prompt
    by_prompt = {line["prompt"]: line for line in server.bill}
    for document, result in zip(documents(20), made, strict=True):
        line = by_prompt[document.prompt]
        assert set(result.fields) == set(STAGE_FIELDS["generate"].names)
        assert (result.tokens_in, result.tokens_out) == (line["tokens_in"], line["tokens_out"])
        assert result.cost_microusd == line["cost_microusd"]
        assert result.fields["cost_usd"] == Decimal(line["cost_microusd"]) / 1_000_000
        assert result.price and "openai/gpt-4@" in result.price
        assert result.latency_seconds and result.latency_seconds >= 0.01
    assert server.most_at_once <= 4
    assert sum(done for done, _ in seen) == 20
    assert sum(tokens for _, tokens in seen) == sum(result.tokens_in + result.tokens_out for result in made)
    assert not same_bill(engine, server.bill)


def test_seconds_are_shared_by_tokens(engine: Engine) -> None:
    long = PromptParts(contexts=("word " * 500,))
    pair = [*documents(1), Document(1, "long", long, long.content_hash())]
    with Served(FakeOpenAI(seconds=0.1)) as url:
        short, wordy = results(generator(url, concurrency=1).run(pair, run_with(engine)))
    ratio = (wordy.tokens_in + wordy.tokens_out) / (short.tokens_in + short.tokens_out)
    assert wordy.seconds / short.seconds == pytest.approx(ratio)
    assert short.seconds + wordy.seconds >= 0.2


def test_a_chat_request_says_what_the_job_says(engine: Engine) -> None:
    server = FakeOpenAI()
    with Served(server) as url:
        asked = generator(url, system="Be brief.", temperature=0.7, top_p=0.9, top_k=5, stop=["END"], max_new_tokens=9)
        asked.run(documents(2), run_with(engine))
    first = next(body for body in server.bodies if "question 0" in body["messages"][1]["content"])
    assert first["messages"][0] == {"role": "system", "content": "Be brief."}
    assert first["messages"][1] == {"role": "user", "content": documents(1)[0].prompt}
    wanted = {"model": "gpt-4", "temperature": 0.7, "top_p": 0.9, "top_k": 5, "stop": ["END"], "max_tokens": 9}
    assert wanted.items() <= first.items()
    assert len({body["seed"] for body in server.bodies}) == 2  # a seed per document


def test_a_plain_completion_sends_the_bare_prompt(engine: Engine) -> None:
    server = FakeOpenAI()
    with Served(server) as url:
        made = results(generator(url, chat=False).run(documents(1), run_with(engine)))
    assert server.bodies == [
        {"model": "gpt-4", "prompt": documents(1)[0].prompt, "temperature": 0.0, "max_tokens": 16},
    ]
    assert made[0].fields["finish_reason"] == "stop"
    assert not same_bill(engine, server.bill)


def test_an_answer_ends_at_its_length_or_its_stop_string(engine: Engine) -> None:
    with Served(FakeOpenAI()) as url:
        short = results(generator(url, max_new_tokens=3).run(documents(1), run_with(engine)))
        cut = results(generator(url, stop=[" is "]).run(documents(1, start=1), run_with(engine)))
    assert (short[0].fields["generated"], short[0].fields["finish_reason"]) == ("the answer is", "length")
    assert (cut[0].fields["generated"], cut[0].fields["finish_reason"]) == ("the answer", "stop")


def test_cached_tokens_cost_less_and_are_counted_once(engine: Engine) -> None:
    # gpt-4o: 2.50, 1.25 and 10 dollars a million: fractions of a micro-dollar, rounded once per call
    server = FakeOpenAI(cached=True, prices=(2_500_000, 1_250_000, 10_000_000))
    with Served(server) as url:
        made = results(generator(url, model="gpt-4o").run(documents(5), run_with(engine)))
    assert {result.fields["tokens_cached"] for result in made} == {line["tokens_cached"] for line in server.bill}
    assert all(line["tokens_cached"] > 0 for line in server.bill)
    assert not same_bill(engine, server.bill)


def test_an_unknown_price_is_unknown_not_zero(engine: Engine) -> None:
    with Served(FakeOpenAI()) as url:
        made = results(generator(url, model="nobodys-model").run(documents(1), run_with(engine)))
    assert made[0].cost_microusd is None and made[0].price is None and made[0].fields["cost_usd"] is None
    assert [(row.cost_microusd, row.reserved_microusd) for row in rows(engine, "done").values()] == [(None, None)]


@pytest.mark.parametrize(
    ("fault", "code"),
    [("too_long", "prompt_too_long"), ("bad_request", "endpoint_error"), ("filtered", "content_filter")],
)
def test_a_document_the_endpoint_will_not_answer_is_refused_at_once(engine: Engine, fault: str, code: str) -> None:
    server = FakeOpenAI(script=deque([fault]))
    with Served(server) as url:
        made = generator(url, concurrency=1).run(documents(2), run_with(engine))
    assert isinstance(made[0], Refusal) and (made[0].code, made[0].dead) == (code, False)
    assert results(made[1:])
    assert len(server.arrivals) == 2
    assert not same_bill(engine, server.bill)  # a filtered answer is paid for, and known to be


@pytest.mark.parametrize("fault", ["html", "not_json", "no_choices", "no_usage"])
def test_garbage_is_retried_then_refused_and_every_call_of_it_may_be_billed(engine: Engine, fault: str) -> None:
    server = FakeOpenAI(script=deque([fault] * 3))
    with Served(server) as url:
        made = generator(url, max_retries=2, concurrency=1).run(documents(2), run_with(engine))
    assert isinstance(made[0], Refusal) and made[0].code == "bad_response" and made[0].dead
    assert "3 tries" in made[0].reason
    if fault == "html":
        assert "<html>502 from the proxy</html>" in made[0].reason
    assert results(made[1:])
    assert len(same_bill(engine, server.bill)) == 3  # the fake billed them all; each is listed


def test_an_empty_prompt_is_not_paid_for(engine: Engine) -> None:
    server = FakeOpenAI()
    blank = Document(0, "d0", PromptParts(contexts=(" \n",)), "00")
    with Served(server) as url:
        made = generator(url).run([blank], run_with(engine))
    assert isinstance(made[0], Refusal) and made[0].code == "empty"
    assert not server.arrivals and not rows(engine)


def _answer(**changes: Any) -> dict[str, Any]:
    choice = {"message": {"content": "hi"}, "finish_reason": "stop"}
    return {"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 1}} | changes


def test_a_whole_answer_is_read() -> None:
    details = {"prompt_tokens": 3, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 2}}
    read = read_answer(_answer(usage=details))
    assert (read.text, read.finish_reason, read.tokens_in, read.tokens_cached, read.tokens_out) == (
        "hi",
        "stop",
        3,
        2,
        1,
    )


def test_half_a_surrogate_pair_becomes_text_that_can_be_stored() -> None:
    broken = [{"message": {"content": "a\ud83d"}, "finish_reason": "stop"}]
    assert read_answer(_answer(choices=broken)).text == "a?"


@pytest.mark.parametrize(
    "broken",
    [
        None,
        [],
        "text",
        {},
        _answer(choices=[]),
        _answer(choices=[None]),
        _answer(choices=[{"message": {"content": 7}}]),
        _answer(choices=[{"message": "hi"}]),
        _answer(usage=None),
        _answer(usage={"prompt_tokens": "3", "completion_tokens": 1}),
        _answer(usage={"prompt_tokens": -3, "completion_tokens": 1}),
        _answer(usage={"prompt_tokens": True, "completion_tokens": 1}),
        _answer(usage={"prompt_tokens": 3, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 4}}),
    ],
)
def test_what_is_no_answer_is_not_read_as_one(broken: Any) -> None:
    with pytest.raises(Malformed):
        read_answer(broken)
