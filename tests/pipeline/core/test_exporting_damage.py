"""An export holds all rows or says why there is none."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.exporting import export_rows
from pipeline.stages import Halt


@pytest.fixture
def output(tmp_path: Path) -> Path:
    folder = tmp_path / "job"
    (folder / "data").mkdir(parents=True)
    for number in range(3):
        pq.write_table(pa.table({"seq": [number]}), folder / "data" / f"part-0000{number}.parquet")
    (folder / "data" / "_SUCCESS").write_text("{}")
    return folder


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_every_row_is_exported_in_order(output: Path, tmp_path: Path, ending: str) -> None:
    assert export_rows(str(output), tmp_path / f"rows.{ending}") == 3
    if ending == "jsonl":
        assert (tmp_path / "rows.jsonl").read_text() == '{"seq": 0}\n{"seq": 1}\n{"seq": 2}\n'


@pytest.mark.parametrize("part", ["part-00000.parquet", "part-00001.parquet"])
def test_a_damaged_part_is_not_left_out_in_silence(output: Path, tmp_path: Path, part: str) -> None:
    (output / "data" / part).write_bytes(b"PAR1, and then the disk gave up")
    with pytest.raises(Halt, match="damaged"):
        export_rows(str(output), tmp_path / "rows.jsonl")
    assert not list(tmp_path.glob("*rows*"))
