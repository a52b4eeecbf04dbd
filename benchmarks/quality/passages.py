"""Questions over passages, one of which holds the answer: Natural Questions among other questions' passages, SQuAD
among other paragraphs of the same article."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.quality.corpora import Row, drawn, read, several

ASK = "Question: {}\nAnswer:"
SEARCH = (
    "Write a high-quality answer for the given question using only the provided search results "
    "(some of which might be irrelevant)."
)
"""The instruction of Lost in the Middle (Liu et al., 2023)."""
ARTICLE = "Answer the question in a few words, which stand in one of the passages."


def natural_questions(data: Path, passages: int = 20, shown: str = "all") -> Iterator[Row]:
    """Each question among ``passages`` passages in a drawn order; ``shown``: all, the gold one alone, or none."""
    rows = list(read(data / "lost_in_the_middle" / "nq_oracle.jsonl"))
    draw = drawn("natural questions")
    draw.shuffle(rows)
    for row in rows:
        gold = row["ctxs"][0]
        others = [one["ctxs"][0] for one in draw.sample(rows, passages + 10) if one is not row]
        wrong = [one for one in others if not _holds(one["text"], row["answers"])][: passages - 1]
        texts = [gold, *wrong]
        draw.shuffle(texts)
        kept = {"all": texts, "gold": [gold], "none": []}[shown]
        contexts = [f"Document [{n}](Title: {one['title']}) {one['text']}" for n, one in enumerate(kept, 1)]
        answer = several(row["answers"])
        yield Row(
            id=row["id"], instruction=SEARCH, contexts=contexts, question=ASK.format(row["question"]), answer=answer
        )


def squad(data: Path, passages: int = 10, shown: str = "all") -> Iterator[Row]:
    """One question of each paragraph of SQuAD 1.1, among ``passages`` paragraphs of its article in their order."""
    articles: dict[str, list[dict[str, str]]] = defaultdict(list)
    for row in read(data / "squad" / "dev-v1.1.contexts.jsonl"):
        articles[row["title"]].append(row)
    draw = drawn("squad")
    asked = list({row["context_id"]: row for row in read(data / "squad" / "dev-v1.1.questions.jsonl")}.values())
    draw.shuffle(asked)
    for row in asked:
        article = articles[row["title"]]
        gold = next(place for place, one in enumerate(article) if one["id"] == row["context_id"])
        first = min(max(0, gold - draw.randrange(passages)), max(0, len(article) - passages))
        around = article[first : first + passages]
        kept = {"all": around, "gold": [article[gold]], "none": []}[shown]
        yield Row(
            id=f"squad-{row['id']}",
            instruction=ARTICLE,
            contexts=[one["context"] for one in kept],
            question=ASK.format(row["question"]),
            answer=several(row["answers"]),
        )


def _holds(text: str, answers: Sequence[str]) -> bool:
    return any(answer.lower() in text.lower() for answer in answers)
