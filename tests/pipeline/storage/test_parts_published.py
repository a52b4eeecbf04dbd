"""``data/``: published once whatever is interrupted, and open to anybody's Parquet reader as it lies."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path

import duckdb
import pandas
import polars
import pyarrow.parquet as pq
import pytest

from pipeline.stages import Stopped
from pipeline.storage.filesystem import resolve_path
from pipeline.storage.parts import table_from_rows, write_part
from pipeline.storage.publication import publish
from schemas.records import part_schema

SCHEMA = part_schema(["generate"], {"job": "j1", "config_hash": "c1"})
LOCAL, _ = resolve_path("/")


def part(root: Path, name: str, seqs: range) -> str:
    rows = [
        {
            "seq": seq, "doc_id": f"d{seq}", "content_hash": "h", "text": f"text {seq}", "answer": None,
            "generated": "g", "generate_model": "m", "finish_reason": "stop", "tokens_prompt": 6,
            "tokens_generated": seq, "tokens_cached": None, "target_passes": None, "tokens_drafted": None,
            "tokens_accepted": None, "drafts": None, "generate_seconds": 1.0, "latency_seconds": 1.5,
            "cost_usd": Decimal("0.000123") if seq % 2 else None, "generate_reused_from": None,
        }
        for seq in seqs
    ]  # fmt: skip
    path = f"{root}/_parts/{name}.parquet"
    return write_part(LOCAL, path, table_from_rows(rows, SCHEMA), SCHEMA).path


@pytest.fixture
def parts(tmp_path: Path) -> list[str]:
    return [
        part(tmp_path, "s0-a1", range(3)),
        part(tmp_path, "s1-a2", range(3, 5)),
        part(tmp_path, "s2-a1", range(5, 9)),
    ]


def published(root: Path) -> dict[str, list[int]]:
    return {path.name: pq.read_table(path)["seq"].to_pylist() for path in sorted((root / "data").iterdir())}


WHOLE = {"part-00000.parquet": [0, 1, 2], "part-00001.parquet": [3, 4], "part-00002.parquet": [5, 6, 7, 8]}


def test_exactly_the_given_parts_in_order(tmp_path: Path, parts: list[str]) -> None:
    part(tmp_path, "orphan", range(3))
    publish(LOCAL, str(tmp_path), parts, 1)
    assert published(tmp_path) == WHOLE
    assert sorted(path.name for path in tmp_path.iterdir()) == ["_parts", "data"]
    assert (tmp_path / "data" / "part-00000.parquet").samefile(parts[0])  # no second copy on the disk


def test_again_changes_nothing(tmp_path: Path, parts: list[str]) -> None:
    publish(LOCAL, str(tmp_path), parts, 1)
    before = (tmp_path / "data").stat()
    publish(LOCAL, str(tmp_path), parts, 2)
    after = (tmp_path / "data").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert published(tmp_path) == WHOLE


@pytest.mark.parametrize("what", ["one short", "one too many", "another's", "cut", "empty"])
def test_what_an_interruption_left_is_replaced(tmp_path: Path, parts: list[str], what: str) -> None:
    data = tmp_path / "data"
    publish(LOCAL, str(tmp_path), parts, 1)
    last = data / "part-00002.parquet"
    if what == "one too many":
        shutil.copy(last, data / "part-00003.parquet")
    elif what == "empty":
        shutil.rmtree(data)
        data.mkdir()
    else:
        last.unlink()
    if what == "another's":
        shutil.copy(parts[0], last)
    if what == "cut":
        last.write_bytes(Path(parts[2]).read_bytes()[:-8])
    (tmp_path / ".data-1-abc").mkdir()
    (tmp_path / ".data-9-later").mkdir()
    (tmp_path / ".replaced-abc").mkdir()
    publish(LOCAL, str(tmp_path), parts, 2)
    assert published(tmp_path) == WHOLE
    assert sorted(path.name for path in tmp_path.iterdir()) == [".data-9-later", "_parts", "data"]


def test_without_hard_links_parts_are_copied(tmp_path: Path, parts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(source: Path, target: Path) -> None:
        raise PermissionError(f"{source} -> {target}")

    monkeypatch.setattr("os.link", no_links)
    publish(LOCAL, str(tmp_path), parts, 1)
    assert published(tmp_path) == WHOLE
    inode = (tmp_path / "data").stat().st_ino
    publish(LOCAL, str(tmp_path), parts, 2)  # copies are told to be the same by what they hold
    assert (tmp_path / "data").stat().st_ino == inode
    with pytest.raises(Stopped):  # which reads all of it: it can be told to stop, and shows that it moves
        publish(LOCAL, str(tmp_path), parts, 3, stop)


def stop() -> None:
    raise Stopped


def test_a_part_that_is_gone_leaves_data_as_it_was(tmp_path: Path, parts: list[str]) -> None:
    publish(LOCAL, str(tmp_path), parts, 1)
    with pytest.raises(FileNotFoundError):
        publish(LOCAL, str(tmp_path), [*parts, f"{tmp_path}/_parts/gone.parquet"], 2)
    assert published(tmp_path) == WHOLE
    assert sorted(path.name for path in tmp_path.iterdir()) == ["_parts", "data"]


def test_publishers_at_the_same_time_leave_one_whole_folder(tmp_path: Path, parts: list[str]) -> None:
    """A worker whose attempt was given up may still be at it."""
    for _ in range(20):
        shutil.rmtree(tmp_path / "data", ignore_errors=True)
        publish(LOCAL, str(tmp_path), parts[:1], 1)
        with ThreadPoolExecutor(6) as pool:
            list(pool.map(lambda attempt: publish(LOCAL, str(tmp_path), parts, attempt), [2] * 6))
        publish(LOCAL, str(tmp_path), parts, 3)  # sweeps what the others could not
        assert published(tmp_path) == WHOLE
        assert sorted(path.name for path in tmp_path.iterdir()) == ["_parts", "data"]


def test_everybodys_reader_opens_it_as_it_lies(tmp_path: Path, parts: list[str]) -> None:
    publish(LOCAL, str(tmp_path), parts, 1)
    data, costs = tmp_path / "data", [None if seq % 2 == 0 else Decimal("0.000123") for seq in range(9)]

    frame = pandas.read_parquet(data)
    assert frame["seq"].tolist() == list(range(9))
    assert [None if pandas.isna(cost) else cost for cost in frame["cost_usd"]] == costs
    assert str(frame["tokens_generated"].dtype) == "int64"

    lazy = polars.read_parquet(data / "*.parquet")
    assert lazy["cost_usd"].to_list() == costs
    assert lazy.schema["cost_usd"] == polars.Decimal(18, 6)
    assert lazy.schema["text"] == polars.String

    with duckdb.connect() as connection:
        query = f"select sum(tokens_generated), sum(cost_usd), typeof(any_value(cost_usd)) from '{data}/*.parquet'"
        assert connection.execute(query).fetchone() == (36, Decimal("0.000492"), "DECIMAL(18,6)")

    assert pq.read_schema(data / "part-00000.parquet").metadata[b"contextmill.config_hash"] == b"c1"
    assert pq.read_schema(data / "part-00000.parquet").equals(SCHEMA, check_metadata=True)


@pytest.mark.parametrize("how", ["data_dir", "data_files"])
def test_hugging_face_datasets_opens_it_as_it_lies(tmp_path: Path, parts: list[str], how: str) -> None:
    import datasets

    publish(LOCAL, str(tmp_path), parts, 1)
    where = str(tmp_path / "data") if how == "data_dir" else str(tmp_path / "data" / "*.parquet")
    dataset = datasets.load_dataset("parquet", split="train", cache_dir=str(tmp_path / "cache"), **{how: where})
    assert dataset["seq"][:] == list(range(9))
    assert dataset[1]["cost_usd"] == Decimal("0.000123")
    assert dataset.features["text"].dtype == "string"
    assert dataset.features["tokens_generated"].dtype == "int64"
