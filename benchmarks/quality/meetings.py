"""QMSum (Zhong et al., 2021): summaries of a meeting by a query, from its whole transcript."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmarks.quality.corpora import Row, read

INSTRUCTION = "Answer the query about this meeting in a few sentences."
CHARACTERS = 2_000
"""Of a context: some ten turns of speech."""


def summaries(data: Path) -> Iterator[Row]:
    """The specific queries of every meeting, meetings in turn."""
    meetings = [(row, turns(row["transcript"])) for row in read(data / "qmsum" / "val.jsonl")]
    for number in range(max(len(row["specific_queries"]) for row, _ in meetings)):
        for row, contexts in meetings:
            if number < len(row["specific_queries"]):
                asked = row["specific_queries"][number]
                yield Row(
                    id=f"{row['id']}-{number}",
                    instruction=INSTRUCTION,
                    contexts=contexts,
                    question=f"Query: {asked['query']}\nSummary:",
                    answer=asked["answer"],
                )


def turns(transcript: str) -> list[str]:
    """The transcript in pieces of whole turns, each of ``CHARACTERS`` or a single longer turn."""
    pieces: list[list[str]] = [[]]
    for turn in (line.strip() for line in transcript.splitlines() if line.strip()):
        if pieces[-1] and sum(map(len, pieces[-1])) + len(turn) > CHARACTERS:
            pieces.append([])
        pieces[-1].append(turn)
    return ["\n".join(piece) for piece in pieces if piece]
