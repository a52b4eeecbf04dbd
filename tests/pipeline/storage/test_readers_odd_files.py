"""What lies in folders besides files, files that may not be read, and files that change while they are read."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.storage.readers import BadRow, InputError, RawDocument, list_files, parquet, read_corpus
from pipeline.storage.readers.mapping import RowMapper
from schemas.job import Columns, InputSpec


def jsonl(*values: str) -> bytes:
    return b"".join(json.dumps({"text": value}).encode() + b"\n" for value in values)


def spec(*paths: Path) -> InputSpec:
    return InputSpec(path=tuple(map(str, paths)))


def test_links_in_a_circle_pipes_and_sockets_are_said_and_nothing_is_read_twice(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    (corpus / "sub").mkdir(parents=True)
    (corpus / "sub" / "a\nb.jsonl").write_bytes(jsonl("a"))
    for circle in ("one", "two", "sub/three"):  # a glob that follows them is busy for ever
        (corpus / circle).symlink_to(corpus)
    (corpus / "x.jsonl").symlink_to("y.jsonl")
    (corpus / "y.jsonl").symlink_to("x.jsonl")
    os.mkfifo(corpus / "pipe.jsonl")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(corpus / "s.jsonl"))
    for named in (corpus, corpus / "**" / "*.jsonl", corpus / "**" / "**"):
        skipped, *found = read_corpus(spec(named))
        assert [row.source for row in found] == [f"{corpus}/sub/a\nb.jsonl:1"]
        assert isinstance(skipped, BadRow)
        for name in ("pipe.jsonl", "s.jsonl", "x.jsonl", "y.jsonl"):
            assert f"{name} (no regular file)" in skipped.reason
    for pattern in ("**/sub/**/*.jsonl", "s*/*", "**/sub/a[\n]b.jsonl", "sub/**"):
        assert [file.key for file in list_files(spec(corpus / pattern))] in (["sub/a\nb.jsonl"], ["a\nb.jsonl"])


UNREADABLE = """
import sys
from pipeline.storage.readers import InputError, read_corpus
from schemas.job import InputSpec
for path in sys.argv[1:]:
    try:
        print(len(list(read_corpus(InputSpec(path=path)))))
    except InputError as error:
        print(error)
"""


def test_what_may_not_be_read_stops_the_job_and_is_named(tmp_path: Path) -> None:
    (tmp_path / "in" / "closed").mkdir(parents=True)
    (tmp_path / "in" / "a.jsonl").write_bytes(jsonl("a"))
    for name in ("b.jsonl", "b.csv", "b.parquet", "b.txt", "b.txt.gz"):
        (tmp_path / name).write_bytes(b"x")
        (tmp_path / name).chmod(0)
    (tmp_path / "in" / "closed").chmod(0)
    paths = [tmp_path / "in", tmp_path / "in" / "**" / "*.jsonl", *sorted(tmp_path.glob("b.*"))]
    # root may read everything, unless that power is taken away.
    plain = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    command = [*plain, sys.executable, "-c", UNREADABLE, *map(str, paths)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    (tmp_path / "in" / "closed").chmod(0o700)
    assert len(said) == len(paths)
    for path, line in zip(paths, said, strict=True):
        assert "Permission denied" in line
        assert str(tmp_path / "in" / "closed" if "in" in path.parts else path) in line


def shorten(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def lengthen(path: Path) -> None:
    with path.open("ab") as file:
        file.write(jsonl("more"))


LINES = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(40_000)]


@pytest.mark.parametrize("change", [shorten, lengthen, Path.unlink])
@pytest.mark.parametrize("kind", ["jsonl", "csv", "jsonl.gz", "parquet"])
def test_a_file_that_changes_while_it_is_read_stops_the_job(
    tmp_path: Path, kind: str, change: Callable[[Path], None]
) -> None:
    """Half a CSV file ends as properly as a whole one: nothing in its rows would tell."""
    path = tmp_path / f"a.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table({"text": LINES}), path, row_group_size=1000)
    else:
        whole = jsonl(*LINES) if kind.startswith("jsonl") else "\n".join(["text", *LINES, ""]).encode()
        path.write_bytes(gzip.compress(whole, 1) if kind.endswith("gz") else whole)
    rows = read_corpus(spec(path))
    assert isinstance(next(rows), RawDocument)
    change(path)
    with pytest.raises(InputError, match=r"a\..* was changed while it was read"):
        list(rows)


def test_rows_a_parquet_file_no_longer_holds_are_not_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": LINES}), path, row_group_size=1000, use_dictionary=False)
    (file,) = list_files(spec(path))
    rows = parquet.read(file, RowMapper(Columns()), 1 << 20)
    found = [next(rows)]
    shorten(path)
    found += rows
    good = sum(isinstance(row, RawDocument) for row in found)
    lost = [row.reason for row in found if isinstance(row, BadRow)]
    assert good < 25_000
    assert f"rows {good + 1} to {good - good % 1000 + 1000} were not read" in lost[0]
    assert len(lost) == 40 - good // 1000


def test_a_text_file_that_is_gone_is_trouble_not_a_bad_row(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"b"))
    rows = read_corpus(spec(tmp_path))
    assert isinstance(next(rows), RawDocument)
    (tmp_path / "b.txt.gz").unlink()
    with pytest.raises(InputError, match=r"b\.txt\.gz cannot be read: No such file"):
        list(rows)


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("a.csv", b"id,text\r1,a\r2,b\r", "end in a carriage return alone"),
        ("a.jsonl", b'{"text": "a"}\r{"text": "b"}\r', "end in a carriage return alone"),
        ("a.csv", b"x" * (2 << 20), "the header cannot be read: it is longer than 1048576 bytes"),
        ("a.csv", b'id,text\n1,"a"b\n', None),
    ],
)
def test_what_is_wrong_with_lines_is_said_in_words(tmp_path: Path, name: str, data: bytes, says: str | None) -> None:
    (tmp_path / name).write_bytes(data)
    if says:
        with pytest.raises(InputError, match=says):
            read_corpus(spec(tmp_path / name))
    else:
        (bad,) = read_corpus(spec(tmp_path / name))
        assert isinstance(bad, BadRow)
        assert bad.reason.startswith("line 2: ")


MEASURE = """
import resource, sys
from pipeline.storage.readers import read_corpus
from schemas.job import InputSpec
for path in sys.argv[1:]:
    rows = sum(1 for _ in read_corpus(InputSpec(path=path)))
    print(rows, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10)
"""


def test_memory_is_bounded_where_a_dictionary_hides_how_large_rows_are(tmp_path: Path) -> None:
    """400 rows of 2 MiB, every one the same: kilobytes on disk."""
    pq.write_table(pa.table({"text": ["x"]}), tmp_path / "a.parquet")
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 400, pa.int32()), pa.array(["x" * (2 << 20)]))
    pq.write_table(pa.table({"text": column}), tmp_path / "b.parquet", store_schema=False)  # read as plain strings
    assert (tmp_path / "b.parquet").stat().st_size < 1 << 20
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "a.parquet"), str(tmp_path / "b.parquet")]
    small, large = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    assert large.split()[0] == "400"
    assert int(large.split()[1]) - int(small.split()[1]) < 300, "MiB"
