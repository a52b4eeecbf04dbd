"""A finished job's rows in one file: JSONL, CSV or Parquet, streamed."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from pipeline.stages import Halt
from pipeline.storage.filesystem import resolve_path

ROWS = 1_024


def export_rows(output: str, to: Path) -> int:
    """Write all rows of ``<output>/data`` to ``to``, whole or not at all; returns their number.

    Raises ``Halt`` for another ending of ``to`` and for a damaged part.
    """
    writers: dict[str, Callable[[pads.Dataset, Path], int]] = {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}
    if to.suffix not in writers:
        raise Halt(f"{to}: the name must end in {', '.join(writers)}")
    if not to.parent.is_dir():
        raise Halt(f"{to}: there is no folder {to.parent}")
    fs, root = resolve_path(output)
    building = to.with_name(f".{to.name}.{os.getpid()}")
    try:
        dataset = pads.dataset(f"{root}/data", filesystem=fs, format="parquet")
        count = writers[to.suffix](dataset, building)
        building.replace(to)
    except FileNotFoundError:
        raise Halt(f"{output}/data is gone: was the folder moved or removed?") from None
    except pa.ArrowInvalid as error:
        raise Halt(f"{output}/data is damaged, so nothing was exported: {error}") from error
    finally:
        building.unlink(missing_ok=True)
    return count


def _batches(dataset: pads.Dataset) -> Iterator[pa.RecordBatch]:
    yield from dataset.to_batches(batch_size=ROWS)


def _rows(dataset: pads.Dataset) -> Iterator[dict[str, Any]]:
    for batch in _batches(dataset):
        yield from batch.to_pylist()


def _jsonl(dataset: pads.Dataset, to: Path) -> int:
    with to.open("w", encoding="utf-8") as file:
        return sum(_write_line(file, row) for row in _rows(dataset))


def _write_line(file: IO[str], row: dict[str, Any]) -> int:
    file.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")  # str: Decimal keeps its digits
    return 1


def _csv(dataset: pads.Dataset, to: Path) -> int:
    with to.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=dataset.schema.names)
        writer.writeheader()
        count = 0
        for row in _rows(dataset):
            writer.writerow(row)
            count += 1
    return count


def _parquet(dataset: pads.Dataset, to: Path) -> int:
    with pq.ParquetWriter(to, dataset.schema, compression="zstd") as writer:
        count = 0
        for batch in _batches(dataset):
            writer.write_batch(batch)
            count += batch.num_rows
    return count
