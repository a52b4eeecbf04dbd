"""The Parquet schema of every kind of record. Explicit and versioned: a part never guesses its types."""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa

SCHEMA_VERSION = "1"
"""Rises when a column goes or changes its meaning; one that may be null can be added within a version. Part of every
stage's hash: with another version, nothing is taken over from earlier jobs."""

INPUT = pa.schema(
    [
        pa.field("seq", pa.int64(), nullable=False),
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("content_hash", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("instruction", pa.string(), nullable=False),
        pa.field("contexts", pa.list_(pa.string()), nullable=False),
        pa.field("question", pa.string(), nullable=False),
        pa.field("answer", pa.string()),
    ]
)
"""A shard as the producer wrote it, and what ``Document`` is made from."""

DOCUMENT = pa.schema(
    [
        pa.field("seq", pa.int64(), nullable=False),
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("content_hash", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),  # the whole prompt before any stage
        pa.field("answer", pa.string()),  # the reference answer that came with it
    ]
)
"""The columns every output row begins with."""

STAGE_FIELDS: dict[str, pa.Schema] = {
    "copy": pa.schema([]),
    "compress": pa.schema(
        [
            pa.field("compressed", pa.string(), nullable=False),
            pa.field("compress_method", pa.string(), nullable=False),
            pa.field("tokens_original", pa.int64(), nullable=False),  # target tokenizer, whole prompt
            pa.field("tokens_asked", pa.int64(), nullable=False),  # the budget
            pa.field("tokens_compressed", pa.int64(), nullable=False),  # target tokenizer, whole compressed prompt
            pa.field("copied", pa.bool_(), nullable=False),  # the budget was no smaller than the prompt
            pa.field("compress_seconds", pa.float64(), nullable=False),
        ]
    ),
    "generate": pa.schema(
        [
            pa.field("generated", pa.string(), nullable=False),
            pa.field("generate_model", pa.string(), nullable=False),
            pa.field("finish_reason", pa.string(), nullable=False),  # stop | length
            pa.field("tokens_prompt", pa.int64(), nullable=False),  # as sent, chat template included
            pa.field("tokens_generated", pa.int64(), nullable=False),
            pa.field("tokens_cached", pa.int64()),  # read from the endpoint's prompt cache
            pa.field("generate_seconds", pa.float64(), nullable=False),
            pa.field("latency_seconds", pa.float64(), nullable=False),
            pa.field("cost_usd", pa.decimal128(18, 6)),  # null: unknown price
        ]
    ),
}
"""The columns a kind of stage makes. Seconds and money say what it took to make the row, in whatever job."""

REUSED_FROM = {kind: f"{kind}_reused_from" for kind, made in STAGE_FIELDS.items() if made.names}
"""The column that follows those of a stage: the earlier job that made (and paid for) them, null where this job did."""

REJECTION = pa.schema(
    [
        pa.field("stage", pa.string(), nullable=False),  # "input" or the kind of stage
        pa.field("source", pa.string(), nullable=False),
        pa.field("doc_id", pa.string()),
        pa.field("status", pa.string(), nullable=False),  # rejected | dead
        pa.field("code", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
    ]
)
"""A document that gave no result, and why."""


def part_schema(kinds: Iterable[str], metadata: dict[str, str]) -> pa.Schema:
    """The schema of a part after the stages ``kinds``, in order, with ``contextmill.*`` file metadata."""
    fields = list(DOCUMENT)
    for kind in kinds:
        fields += list(STAGE_FIELDS[kind])
        fields += [pa.field(REUSED_FROM[kind], pa.string())] if kind in REUSED_FROM else []
    tagged = {f"contextmill.{key}": value for key, value in metadata.items()}
    return pa.schema(fields, metadata={"contextmill.schema_version": SCHEMA_VERSION, **tagged})
