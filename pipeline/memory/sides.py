"""Answers from slots, and what they are set against at equal budget: the same rows, contexts read in other ways.

Section 3.3 of the paper sets slots against all of the text, and against summaries of as many tokens. Each side is an
ordinary job; a budget is the slots of a document's contexts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.compression.tokens import Tokenising
from pipeline.evaluation.answers import references
from pipeline.memory.encode_stage import Cut
from pipeline.memory.outlines import outlines_of
from pipeline.memory.prompting import Written
from pipeline.storage.readers import BadRow, InputError, read_corpus
from schemas.document import Document, PromptParts
from schemas.job import InputSpec, JobSpec
from schemas.memory import EncodeSpec
from schemas.stage import GenerateSpec

SIDES = "slots", "text", "cut", "summary", "lingua", "nothing"
"""Slots; all of the text; its first tokens, a summary, and what LLMLingua keeps, each of as many tokens as there are
slots; and the question alone."""

PARTS = ("instruction", "contexts", "question")

SUMMARISED = "Summarize the above text in at most {words} words."

WORDS = 0.75
"""Of English to a token: what is asked for. What is longer is cut off."""

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Questions:
    """Rows of context, question and answer, and how many of the input are none; of the first of these, where it is."""

    rows: tuple[Row, ...]
    left_out: int
    first: str | None


def questions_of(spec: InputSpec) -> Questions:
    """Each with an id that all sides share. Raises ``InputError``, also where no row is one."""
    rows, left_out = list[Row](), list[str]()
    for one in read_corpus(spec):
        if isinstance(one, BadRow):
            left_out.append(f"{one.source}: {one.reason}")
        elif lacks := _lacks(one.parts, one.answer):
            left_out.append(f"{one.source} has no {lacks}")
        else:
            parts = {name: getattr(one.parts, name) for name in PARTS}
            rows.append({"id": one.id or one.parts.content_hash(), **parts, "answer": one.answer})
    first = left_out[0] if left_out else None
    if not rows:
        raise InputError(f"none of its rows is a context, a question and an answer: {first}; see [input.columns]")
    return Questions(tuple(rows), len(left_out), first)


def _lacks(parts: PromptParts, answer: str | None) -> str | None:
    if not any(one.strip() for one in parts.contexts):
        return "context"
    if not (parts.question.strip() or parts.instruction.strip()):
        return "question"
    return None if answer and references(answer)[0].strip() else "answer"


def budgets(rows: Sequence[Row], tokeniser: Tokenising, cut: Cut) -> dict[str, int]:
    """Each context -> its slots, as they are encoded; blank ones have none."""
    contexts = list(dict.fromkeys(text for row in rows for text in row["contexts"]))
    parts = [PromptParts(contexts=(text,)) for text in contexts]
    documents = [Document(at, str(at), one, str(at)) for at, one in enumerate(parts)]
    return dict(zip(contexts, (one.slots for one in outlines_of(documents, tokeniser, cut, 0)), strict=True))


def to_summarise(known: Mapping[str, int]) -> Iterator[Row]:
    """What is asked for summaries of these contexts of so many tokens; ids are their numbers."""
    for number, (text, tokens) in enumerate(known.items()):
        if tokens:
            asked = SUMMARISED.format(words=max(1, int(WORDS * tokens)))
            yield {"id": str(number), "contexts": [text], "question": asked}


def summarised(
    rows: Sequence[Row], known: Mapping[str, int], written: Mapping[str, Written], tokeniser: Tokenising
) -> list[Row]:
    """The rows with summaries, none longer than its budget, in place of contexts; without those of which a summary is
    lacking."""
    said = {text: written.get(str(number)) for number, text in enumerate(known)}
    short = {text: shortened(one.text.strip(), known[text], tokeniser) for text, one in said.items() if one}
    short |= {text: text for text, tokens in known.items() if not tokens}
    whole = [row for row in rows if all(text in short for text in row["contexts"])]
    return [{**row, "contexts": [short[text] for text in row["contexts"]]} for row in whole]


def shortened(text: str, tokens: int, tokeniser: Tokenising) -> str:
    """The beginning of the text that has so many tokens at most, counted by itself."""
    (found,) = tokeniser.tokenise([text])
    for most in range(min(tokens, len(found.ids)), 0, -1):
        begin = text[: int(found.spans[most - 1, 1])]
        if tokeniser.count([begin])[0] <= tokens:
            return begin
    return ""


def columns_of(side: str) -> dict[str, str]:
    """What the job of a side reads of these rows."""
    return {name: name for name in (*PARTS, "answer") if side != "nothing" or name != "contexts"}


def job_of(side: str, job: JobSpec, spec: EncodeSpec, cut: Cut) -> JobSpec:
    """``job`` answers and is scored; here as this side does, whose ``spec`` encodes."""
    last = [stage.model_dump() for stage in job.stages if stage.kind != "encode"]
    generate = next(stage for stage in job.stages if isinstance(stage, GenerateSpec))
    ratio = min(cut.ratio, cut.span)  # a span has one slot at least
    equal = {"kind": "compress", "rate": round(1 / ratio, 6), "budget": "contexts"}
    here = {"model": job.target.model, "dtype": generate.dtype, "device": generate.device}
    first: dict[str, list[Row]] = {
        "slots": [spec.model_dump()],
        "cut": [{**equal, "method": "truncation"}],
        "lingua": [{**equal, "method": "llmlingua", **here}],
    }
    return JobSpec.model_validate({**job.model_dump(), "stages": [*first.get(side, []), *last]})


def summary_job(job: JobSpec, most: int) -> JobSpec:
    """``job`` generates; here summaries of so many tokens at most."""
    (generate,) = (stage for stage in job.stages if isinstance(stage, GenerateSpec))
    return JobSpec.model_validate(
        {**job.model_dump(), "stages": [{**generate.model_dump(), "max_new_tokens": most, "stop": []}]}
    )
