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
        pa.field("rate", pa.float64()),  # where a job asks for several
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

DRAFT = pa.struct(
    [
        pa.field("model", pa.string(), nullable=False),
        pa.field("parameters", pa.int64(), nullable=False),
        pa.field("passes", pa.int64(), nullable=False),
        pa.field("drafted", pa.int64(), nullable=False),
        pa.field("accepted", pa.int64(), nullable=False),
    ]
)
"""What one model did for an answer: see ``schemas.tables.Draft``."""

DRAFTED = "target_passes", "tokens_drafted", "tokens_accepted"
"""What ``generate`` says of drafts, and ``distill`` before and after."""

STAGE_FIELDS: dict[str, pa.Schema] = {
    "copy": pa.schema([]),
    "compress": pa.schema(
        [
            pa.field("compressed", pa.string(), nullable=False),
            pa.field("compress_method", pa.string(), nullable=False),
            # Characters of ``text`` that were kept: from, to, from, to, ... in their order here. Joined, they are
            # ``compressed``, but for what is ``listed``. Null where a method does not cut its text out of the original.
            pa.field("kept", pa.list_(pa.field("element", pa.int32()))),  # "element": what Parquet calls it
            # Characters of ``compressed`` (from, to) that were added: a list of removed phrases. Null without one.
            pa.field("listed", pa.list_(pa.field("element", pa.int32()))),
            pa.field("rate_asked", pa.float64()),  # of several, this copy's; null where the budget is in tokens
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
            pa.field("target_passes", pa.int64()),  # of the model, the prompt's included; null behind an endpoint
            pa.field("tokens_drafted", pa.int64()),  # ... proposed to it, and those that it would have said itself
            pa.field("tokens_accepted", pa.int64()),
            pa.field("drafts", pa.list_(pa.field("element", DRAFT))),  # by the target, then by who drafted; or null
            pa.field("generate_seconds", pa.float64(), nullable=False),
            pa.field("latency_seconds", pa.float64(), nullable=False),
            pa.field("cost_usd", pa.decimal128(18, 6)),  # null: unknown price
        ]
    ),
    "align": pa.schema(
        [
            pa.field("split", pa.string(), nullable=False),  # train | held_out
            pa.field("tokens_prompt_read", pa.int64(), nullable=False),  # scorer's tokens; fewer than the prompt's
            pa.field("tokens_answer", pa.int64(), nullable=False),  # where the two were longer than max_tokens
            pa.field("nll_before", pa.float64()),  # nats an answer token under the model as it was; held_out only
            pa.field("nll_after", pa.float64()),  # ... and with its adapter
            pa.field("agreement_before", pa.float64()),  # share of its tokens that were the model's most likely ones
            pa.field("agreement_after", pa.float64()),
            pa.field("align_seconds", pa.float64(), nullable=False),
        ]
    ),
    "distill": pa.schema(
        [
            pa.field("split", pa.string(), nullable=False),  # train | held_out
            pa.field("tokens_prompt_read", pa.int64(), nullable=False),  # as the target was sent it, unless longer
            pa.field("tokens_answer", pa.int64(), nullable=False),  # than max_tokens; the end token included
            pa.field("nll_before", pa.float64()),  # as of align: held_out only
            pa.field("nll_after", pa.float64()),
            pa.field("agreement_before", pa.float64()),
            pa.field("agreement_after", pa.float64()),
            # The target answered once more, with the drafter as it was and as it is: of some held_out, else null.
            *(pa.field(f"{what}_{when}", pa.int64()) for when in ("before", "after") for what in DRAFTED),
            pa.field("distill_seconds", pa.float64(), nullable=False),
        ]
    ),
    "pretrain": pa.schema(
        [
            pa.field("split", pa.string(), nullable=False),  # train | held_out
            pa.field("tokens_text", pa.int64(), nullable=False),
            # A held_out text's first span, as long as the last lesson's, with the encoder as it was and as it is:
            pa.field("nll_before", pa.float64()),  # nats a token of saying it behind its slots
            pa.field("nll_after", pa.float64()),
            pa.field("agreement_before", pa.float64()),  # share of its tokens that were the likeliest ones
            pa.field("agreement_after", pa.float64()),
            pa.field("bleu4_before", pa.float64()),  # written out greedily, of some: from 0 to 1
            pa.field("bleu4_after", pa.float64()),
            pa.field("prefix_before", pa.float64()),  # share of it before the first wrong token
            pa.field("prefix_after", pa.float64()),
            pa.field("pretrain_seconds", pa.float64(), nullable=False),
        ]
    ),
    "encode": pa.schema(
        [
            pa.field("slots", pa.int64(), nullable=False),  # of all contexts, laid end to end; 0: all of it stays text
            # Of each context, in their order; 0: it stays text.
            pa.field("context_slots", pa.list_(pa.field("element", pa.int32())), nullable=False),
            pa.field("slot_spans", pa.int64(), nullable=False),  # read by themselves
            pa.field("slots_file", pa.string()),  # safetensors, from the job's folder; null where there are no slots
            pa.field("slots_key", pa.string()),  # the tensor in it
            pa.field("slots_sha256", pa.string()),  # of what the tensor is and holds
            pa.field("slots_bytes", pa.int64(), nullable=False),
            pa.field("slots_precision", pa.string(), nullable=False),  # float16 | int8 | int4
            pa.field("slots_loss", pa.float64()),  # size of what that precision lost, over the size of the slots
            pa.field("encoder_revision", pa.string(), nullable=False),
            pa.field("tokens_encoded", pa.int64(), nullable=False),  # target tokenizer, contexts that are slots now
            pa.field("tokens_known", pa.int64()),  # of these: the slots were there, made for other prompts
            pa.field("tokens_original", pa.int64(), nullable=False),  # ... the whole prompt
            pa.field("tokens_compressed", pa.int64(), nullable=False),  # slots, and tokens of what stays text
            pa.field("encode_seconds", pa.float64(), nullable=False),
        ]
    ),
    "finetune": pa.schema(
        [
            pa.field("split", pa.string(), nullable=False),  # train | held_out
            pa.field("tokens_context", pa.int64(), nullable=False),
            pa.field("tokens_slots", pa.int64(), nullable=False),  # as the last lesson has it
            pa.field("tokens_answer", pa.int64(), nullable=False),  # what ends a turn included
            # Held_out only: nats an answer token, and what is written out greedily, of some, scored from 0 to 1;
            # without the context, behind all of its text, behind its slots as the encoder was and as it is.
            *(
                pa.field(f"{what}_{when}", pa.float64())
                for when in ("none", "text", "before", "after")
                for what in ("nll", "token_f1", "bleu4")
            ),
            pa.field("nll_other", pa.float64()),  # behind the slots of another context, with the encoder as it is
            pa.field("repeat_nll_before", pa.float64()),  # nats a token of repeating the context's spans
            pa.field("repeat_nll_after", pa.float64()),
            pa.field("finetune_seconds", pa.float64(), nullable=False),
        ]
    ),
    "recover": pa.schema(
        [
            pa.field("recovered", pa.string()),  # ``generated`` in the original's words; null where ``kept`` is
            # What was replaced, four numbers each: characters of ``generated`` (from, to), then of ``text``.
            pa.field("recovered_from", pa.list_(pa.field("element", pa.int32()))),
        ]
    ),
    "evaluate": pa.schema(
        [
            pa.field("prediction", pa.string()),  # the answer as it was read out of ``generated``; null: none in it
            # From 0 to 1; null where a metric was not asked for.
            pa.field("exact_match", pa.float64()),
            pa.field("token_f1", pa.float64()),
            pa.field("contains_answer", pa.float64()),
            pa.field("bleu4", pa.float64()),
            pa.field("rouge1", pa.float64()),
            pa.field("rouge2", pa.float64()),
            pa.field("rougeL", pa.float64()),
            # For the BLEU of a corpus: length, reference's length, 4 numbers of correct n-grams, 4 of all.
            pa.field("bleu_counts", pa.list_(pa.int64())),
        ]
    ),
}
"""The columns a kind of stage makes. Seconds and money say what it took to make the row, in whatever job."""

ANSWER_DECIDES = frozenset({"align", "distill", "evaluate", "finetune", "pretrain", "recover"})
"""Kinds of stage whose columns follow from the reference answer, from the one sampled answer that stands in the row, or
from all other texts: no content hash covers them, so they are never taken over."""

SHORTENING = frozenset({"compress", "encode"})
"""Kinds of stage behind which a prompt takes fewer of the target's places: their usage counts it before and after."""

REUSED_FROM = {
    kind: f"{kind}_reused_from" for kind, made in STAGE_FIELDS.items() if made.names and kind not in ANSWER_DECIDES
}
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

EVALUATION = pa.schema(
    [
        pa.field("task", pa.string()),
        pa.field("metric", pa.string(), nullable=False),
        pa.field("rate", pa.float64()),  # where a job asks for several
        pa.field("documents", pa.int64(), nullable=False),  # rows of the corpus
        pa.field("scored", pa.int64(), nullable=False),  # of them; the others were refused, or are dead
        pa.field("value", pa.float64()),  # over what is scored, from 0 to 1; null: nothing is
        pa.field("low", pa.float64()),  # its 95% bootstrap interval
        pa.field("high", pa.float64()),
        pa.field("tokens_original", pa.int64()),  # of what is scored; null without compression
        pa.field("tokens_compressed", pa.int64()),
        pa.field("tokens_prompt", pa.int64()),  # as sent, chat template included
    ]
)
"""A metric over the documents of a job: ``evaluation.parquet``, and ``schemas.tables.Evaluation``."""


def part_schema(kinds: Iterable[str], metadata: dict[str, str]) -> pa.Schema:
    """The schema of a part after the stages ``kinds``, in order, with ``contextmill.*`` file metadata."""
    fields = list(DOCUMENT)
    for kind in kinds:
        fields += list(STAGE_FIELDS[kind])
        fields += [pa.field(REUSED_FROM[kind], pa.string())] if kind in REUSED_FROM else []
    tagged = {f"contextmill.{key}": value for key, value in metadata.items()}
    return pa.schema(fields, metadata={"contextmill.schema_version": SCHEMA_VERSION, **tagged})
