"""How windows of a token classifier change what is kept, against a window of its own around every 32 tokens.

    python -m benchmarks.classifier_windows --data DATA

``DATA`` has ``prose/*.txt``: 10,000 characters from the middle of each of the first four are read. ``differ`` is the
share of tokens kept by one and removed by the other, at a rate of a third.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.measuring import table
from pipeline.compression import classifier
from pipeline.compression.classifier import Classifier, Floats, Ints, windows_of
from pipeline.compression.tokens import Tokenising
from pipeline.models import ModelPool

CHARACTERS, TEXTS, STEP = 10_000, 4, 32
OVERLAPS = {"none": 2**31, "an eighth": 8, "a fifth": 5, "a quarter": 4, "half": 2}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="llmlingua2-minilm")
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    loaded = ModelPool(arguments.device).token_classifier(arguments.model)
    scorer, tokenising = Classifier(loaded, 4096), Tokenising(loaded.tokenizer)
    ids = [tokens.ids for tokens in tokenising.tokenise(_texts(arguments.data))]
    best = [_centred(scorer, one) for one in ids]
    rows = [_row(name, _windows(scorer, ids, overlap), best) for name, overlap in OVERLAPS.items()]
    stop = int(loaded.tokenizer.convert_tokens_to_ids("."))
    rows.append(_row("chunks that end after a full stop", _chunks(scorer, ids, stop), best))
    print(table(rows, list(rows[0])))


def _texts(data: Path) -> list[str]:
    whole = [path.read_text(encoding="utf-8") for path in sorted((data / "prose").glob("*.txt"))[:TEXTS]]
    return [text[len(text) // 2 :][:CHARACTERS] for text in whole]


def _centred(scorer: Classifier, ids: Ints) -> Floats:
    """The tokens of each step scored in the middle of a window of their own."""
    size, places = scorer.size, np.arange(0, len(ids), STEP)
    begins = np.clip(places + STEP // 2 - size // 2, 0, len(ids) - size)
    found = scorer.keep([ids[begin : begin + size] for begin in begins])
    return np.concatenate(
        [one[place - begin :][:STEP] for one, place, begin in zip(found, places, begins, strict=True)]
    )


def _windows(scorer: Classifier, ids: list[Ints], overlap: int) -> tuple[int, list[Floats]]:
    before, classifier.OVERLAP = classifier.OVERLAP, overlap
    try:
        count = len(windows_of(np.array([len(one) for one in ids]), scorer.size).begin)
        return count, scorer.keep(ids)
    finally:
        classifier.OVERLAP = before


def _chunks(scorer: Classifier, ids: list[Ints], stop: int) -> tuple[int, list[Floats]]:
    """As the paper cuts: the most that a window holds, up to its last full stop."""
    count, scores = 0, []
    for one in ids:
        pieces, begin = [], 0
        while begin < len(one):
            stops = np.flatnonzero(one[begin : begin + scorer.size] == stop)
            last = begin + scorer.size >= len(one) or not len(stops)
            pieces.append(one[begin : begin + (scorer.size if last else int(stops[-1]) + 1)])
            begin += len(pieces[-1])
        scores.append(np.concatenate(scorer.keep(pieces)))
        count += len(pieces)
    return count, scores


def _row(name: str, found: tuple[int, list[Floats]], best: list[Floats]) -> dict[str, Any]:
    differ = np.mean([np.mean(_kept(one) != _kept(other)) for one, other in zip(found[1], best, strict=True)])
    return {"overlap": name, "windows": found[0], "differ": f"{differ:.1%}"}


def _kept(scores: Floats) -> NDArray[np.bool_]:
    kept = np.zeros(len(scores), np.bool_)
    kept[np.argsort(-scores, kind="stable")[: len(scores) // 3]] = True
    return kept


if __name__ == "__main__":
    main()
