"""Local paths and s3 addresses: what they resolve to, and a corpus and its parts on an S3 server."""

from __future__ import annotations

import gzip
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from moto.server import ThreadedMotoServer
from servers import free_port

from pipeline.memory.packing import pack, unpack
from pipeline.memory.store import SlotsError, read_slots, write_slots
from pipeline.storage.filesystem import PathError, is_local, is_s3, resolve_path
from pipeline.storage.parts import delete, list_orphans, read_part, read_rows, slots_path, write_part
from pipeline.storage.publication import is_published, publish
from pipeline.storage.readers import BadRow, InputError, RawDocument, fingerprint, read_corpus
from schemas.job import InputSpec
from schemas.records import DOCUMENT


def test_local_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    for named, path in {
        "a/../b c.jsonl": f"{tmp_path}/b c.jsonl",
        "/x//y/": "/x/y",
        "~/z": "/home/somebody/z",
        "file:///x/b%20c": "/x/b c",
    }.items():
        filesystem, resolved = resolve_path(named)
        assert is_local(filesystem)
        assert resolved == path
    (tmp_path / "link").symlink_to("/elsewhere")
    assert resolve_path(tmp_path / "link")[1] == f"{tmp_path}/link"


@pytest.mark.parametrize("named", ["", "a\0b", "gs://b/x", "https://host/x", "s3://", "s3:///x", "s3://me:pw@b/x"])
def test_what_names_no_file_system(named: str) -> None:
    with pytest.raises(PathError) as caught:
        resolve_path(named)
    assert "pw" not in str(caught.value)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    moto = ThreadedMotoServer(port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    yield f"http://{host}:{port}"
    moto.stop()


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A fresh bucket, reached as a user would: by the standard environment variables alone."""
    for name, value in {
        "AWS_ENDPOINT_URL": server,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "hunter2",
        "AWS_DEFAULT_REGION": "eu-west-1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    made = boto3.resource("s3").Bucket(f"b-{uuid.uuid4().hex}")
    made.create(CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    return made


def put(bucket: Any, key: str, data: bytes) -> str:
    bucket.put_object(Key=key, Body=data)
    return f"s3://{bucket.name}/{key}"


def jsonl(*values: str) -> bytes:
    return b"".join(json.dumps({"text": value}).encode() + b"\n" for value in values)


def test_a_corpus_in_a_bucket(bucket: Any, tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["c", "d"]}), tmp_path / "p")
    files = {
        "a.jsonl.gz": gzip.compress(jsonl("a") + b"bad\n"),
        "b.csv": b"text\nb\n",
        "c/p.parquet": (tmp_path / "p").read_bytes(),
        "e.txt": b"e",
    }
    for name, data in files.items():
        put(bucket, f"corpus/{name}", data)
        (tmp_path / "corpus" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "corpus" / name).write_bytes(data)
    put(bucket, "corpus-of-others/x.jsonl", jsonl("not below corpus/"))
    spec = InputSpec(path=(f"s3://{bucket.name}/corpus",))
    found = list(read_corpus(spec))
    assert [row.parts.render() for row in found if isinstance(row, RawDocument)] == ["a", "b", "c", "d", "e"]
    assert [row.source for row in found if isinstance(row, BadRow)] == [f"s3://{bucket.name}/corpus/a.jsonl.gz:2"]
    assert fingerprint(spec) == fingerprint(InputSpec(path=(str(tmp_path / "corpus"),)))
    one = InputSpec(path=(f"s3://{bucket.name}/corpus/b.csv",))
    assert [row.source for row in read_corpus(one)] == [f"s3://{bucket.name}/corpus/b.csv:2"]


@pytest.mark.parametrize(
    ("key", "says"), [("/gone", "does not exist"), ("/gone/*.jsonl", "patterns work on local paths only")]
)
def test_a_key_that_is_not_there(bucket: Any, key: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        read_corpus(InputSpec(path=(f"s3://{bucket.name}{key}",)))


def test_a_bucket_that_is_not_there(bucket: Any) -> None:
    with pytest.raises(InputError) as caught:
        read_corpus(InputSpec(path=(f"s3://no-such-{bucket.name}/x.jsonl",)))
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("endpoint", ["ftp://host", "http://[", "http://", "http://me:hunter2@host"])
def test_an_endpoint_that_is_none(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(InputError, match="AWS_ENDPOINT_URL is no address") as caught:
        read_corpus(InputSpec(path=("s3://bucket/x.jsonl",)))
    assert "hunter2" not in str(caught.value)


def test_an_endpoint_that_does_not_answer_and_one_that_asks_for_a_key(
    bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = put(bucket, "a.jsonl", jsonl("a"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(InputError, match=f"{named} cannot be read: .*ACCESS_DENIED"):
        read_corpus(InputSpec(path=(named,)))
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(InputError, match=f"{named} cannot be read: .*NETWORK_CONNECTION"):
        read_corpus(InputSpec(path=(named,)))


def test_an_object_that_is_replaced_while_the_corpus_is_read(bucket: Any) -> None:
    first, second = put(bucket, "a.jsonl", jsonl("a")), put(bucket, "b.jsonl", jsonl("b"))
    rows = read_corpus(InputSpec(path=(first, second)))
    assert isinstance(next(rows), RawDocument)
    put(bucket, "b.jsonl", jsonl("other"))
    with pytest.raises(InputError, match=f"{second} was changed"):
        list(rows)


def table(first: int, rows: int) -> pa.Table:
    texts = [pa.array([f"{name} {seq}" for seq in range(rows)]) for name in DOCUMENT.names[1:]]
    return pa.Table.from_arrays([pa.array(range(first, first + rows)), *texts], schema=DOCUMENT)


def test_parts_in_a_bucket(bucket: Any) -> None:
    fs, root = resolve_path(f"s3://{bucket.name}/runs/job-1")
    assert is_s3(fs)
    parts = [write_part(fs, f"{root}/_parts/s{i}.parquet", table(i * 10, 10), DOCUMENT).path for i in range(3)]
    assert read_part(fs, parts[1]).num_rows == 10
    assert read_rows(fs, parts[1], 12, 14)["seq"].to_pylist() == [12, 13]
    write_part(fs, f"{root}/_parts/lost.parquet", table(0, 1), DOCUMENT)
    known = {"s0.parquet", "_parts/s1.parquet", "s2.parquet"}
    assert list_orphans(fs, root, known, older_than_seconds=0) == [f"{root}/_parts/lost.parquet"]
    delete(fs, f"{root}/_parts/lost.parquet")
    delete(fs, f"{root}/_parts/lost.parquet")
    assert list_orphans(fs, root, known, older_than_seconds=0) == []


def test_slots_in_a_bucket(bucket: Any) -> None:
    output = f"s3://{bucket.name}/runs/job-1"
    fs, root = resolve_path(output)
    given = pack(torch.randn(5, 64), torch.ones(3, 64), "int8", 32)
    path = slots_path("_parts/s0-a1-0.parquet")
    write_slots(fs, f"{root}/{path}", {"key": given}, "r")
    write_slots(fs, f"{root}/{slots_path('_parts/lost.parquet')}", {"key": given}, "r")
    row = {"slots": 5, "slots_file": path, "slots_key": "key", "slots_sha256": given.sha256("r")}
    assert torch.equal(read_slots(output, row | {"encoder_revision": "r"}, "r"), unpack(given))
    assert list_orphans(fs, root, {path}, older_than_seconds=0) == [f"{root}/slots/lost.safetensors"]
    with pytest.raises(SlotsError, match="is gone"):
        read_slots(output, row | {"encoder_revision": "r", "slots_file": "slots/gone.safetensors"})


def test_a_part_that_goes_up_in_several_pieces(bucket: Any) -> None:
    fs, root = resolve_path(f"s3://{bucket.name}/job")
    schema = pa.schema([("seq", pa.int64()), ("text", pa.string())])
    large = pa.table({"seq": list(range(300)), "text": [os.urandom(50_000).hex() for _ in range(300)]}, schema)
    info = write_part(fs, f"{root}/_parts/a.parquet", large, schema)
    assert info.bytes == bucket.Object("job/_parts/a.parquet").content_length > 12 << 20
    assert read_part(fs, info.path).equals(large)


def test_a_publication_in_a_bucket(bucket: Any) -> None:
    fs, root = resolve_path(f"s3://{bucket.name}/runs/job-1")
    parts = [write_part(fs, f"{root}/_parts/s{i}.parquet", table(i * 10, 10), DOCUMENT).path for i in range(3)]

    def there() -> dict[str, Any]:
        objects = bucket.objects.filter(Prefix="runs/job-1/data/p")
        return {item.key.rpartition("/")[2]: item.last_modified for item in objects}

    publish(fs, root, parts, 1)
    first = there()
    assert list(first) == ["part-00000.parquet", "part-00001.parquet", "part-00002.parquet"]
    assert read_part(fs, f"{root}/data/part-00002.parquet")["seq"].to_pylist() == list(range(20, 30))
    listed = json.loads(bucket.Object("runs/job-1/data/_SUCCESS").get()["Body"].read())
    assert listed["part-00002.parquet"] == "s2.parquet"

    put(bucket, "runs/job-1/data/part-00003.parquet", b"left over")
    bucket.Object("runs/job-1/data/part-00001.parquet").delete()
    publish(fs, root, parts, 2)
    assert list(there()) == list(first)
    publish(fs, root, parts[:2], 3)
    assert list(there()) == list(first)[:2]
    assert is_published(fs, root, 2)
    bucket.Object("runs/job-1/data/_SUCCESS").delete()
    assert not is_published(fs, root, 2), "readers of a bucket go by the mark"


def test_other_readers_open_what_lies_in_a_bucket(bucket: Any, server: str) -> None:
    fs, root = resolve_path(f"s3://{bucket.name}/job")
    publish(fs, root, [write_part(fs, f"{root}/_parts/a.parquet", table(0, 10), DOCUMENT).path], 1)
    options = {"aws_endpoint_url": server, "aws_access_key_id": "key", "aws_secret_access_key": "hunter2"}
    options |= {"aws_region": "eu-west-1", "aws_allow_http": "true"}
    frame = polars.read_parquet(f"s3://{root}/data/*.parquet", storage_options=options)
    assert frame["seq"].to_list() == list(range(10))
    assert pq.read_table(f"{root}/data", filesystem=fs)["seq"].to_pylist() == list(range(10))


def test_a_server_that_goes_away_is_trouble_not_a_bad_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows lost to a failing network are no rejections: the job stops, and finds them when it is resumed."""
    moto = ThreadedMotoServer(port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    for name, value in {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "k"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    gone = boto3.resource("s3").Bucket("gone")
    gone.create()
    put(gone, "a.jsonl", jsonl(*["x" * 1000] * 10_000))
    put(gone, "b.jsonl.gz", gzip.compress(jsonl("y")))
    stream = read_corpus(InputSpec(path=("s3://gone/a.jsonl", "s3://gone/b.jsonl.gz")))
    assert isinstance(next(stream), RawDocument)
    moto.stop()
    rest: list[RawDocument | BadRow] = []
    with pytest.raises(InputError, match=r"a\.jsonl cannot be read"):
        rest.extend(stream)
    assert not [row for row in rest if isinstance(row, BadRow)]
