"""The servers and models that other tests rely on are what they say."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest
import redis
import sqlalchemy
from servers import PostgresServer, RedisServer, binary


def test_a_killed_redis_comes_back_with_its_keys(redis_server: RedisServer) -> None:
    port = redis_server.port
    with redis.Redis(port=port) as client:
        client.set("kept", "yes")
    redis_server.kill()
    with redis.Redis(port=port) as client, pytest.raises(redis.ConnectionError):
        client.ping()
    redis_server.start()
    with redis.Redis(port=port, decode_responses=True) as client:
        assert client.get("kept") == "yes"


def test_each_broker_is_empty(each_broker_url: str) -> None:
    with redis.Redis.from_url(each_broker_url) as client:
        assert client.dbsize() == 0
        client.set("left", "behind")  # for the next test to find, were it not flushed


def test_the_broker_is_empty_again(broker_url: str) -> None:
    with redis.Redis.from_url(broker_url) as client:
        assert client.dbsize() == 0


@pytest.mark.parametrize("_time", [1, 2])
def test_each_database_is_new(database_url: str, _time: int) -> None:
    engine = sqlalchemy.create_engine(database_url)
    with engine.begin() as connection:
        assert sqlalchemy.inspect(connection).get_table_names() == []
        connection.execute(sqlalchemy.text("create table left_behind (id integer)"))
    engine.dispose()


def test_a_killed_postgres_comes_back_with_its_rows(postgres_server: PostgresServer, postgres_url: str) -> None:
    address = postgres_url.replace("+psycopg", "")
    with psycopg.connect(address) as connection:
        connection.execute("create table kept as select 1 as n")
    postgres_server.kill()
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(address)
    postgres_server.start()
    with psycopg.connect(address) as connection:
        assert connection.execute("select n from kept").fetchone() == (1,)


def test_a_missing_server_fails_and_says_what_to_do() -> None:
    with pytest.raises(pytest.fail.Exception, match="make test"):
        binary("no-such-server")


def test_the_tiny_model_answers_different_texts_differently(tiny_model: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    text = "Janna wrote 400 + 150 = 550 words. Ärger 日本 \t{}"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    answers = set()
    for question in ("How many words?", "How far is it?", "12 + 30 =", "The answer is"):
        ids = torch.tensor([tokenizer(question).input_ids])
        made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=16, do_sample=False)
        answers.add(tuple(made[0, ids.shape[1] :].tolist()))
    assert len(answers) == 4
    assert all(len(set(answer)) > 3 for answer in answers)
