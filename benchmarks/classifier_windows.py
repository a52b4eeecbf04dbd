"""What the borders of LLMLingua-2's windows cost: which tokens of novels are kept otherwise than with no border near.

    python -m benchmarks.classifier_windows --data DATA
    python -m benchmarks.classifier_windows --data DATA --model FOLDER --novels 16

Every way of cutting a text is held against scores of each ``STEP`` tokens at the very middle of a window of their own.
Of each text the best tokens are kept, as many as ``--rate`` says; ``differ`` is the share of all tokens for which the
choice is another.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.measuring import facts, save, table
from pipeline.compression import classifier
from pipeline.compression.classifier import Classifier, Windows, windows_of
from pipeline.compression.tokens import Tokenising
from pipeline.models import ModelPool

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
Cut = Callable[[Ints, int], Windows]

STEP = 32
ENDS = tuple(".!?")


def main() -> None:
    arguments = _parse()
    texts = [_novel(path, arguments.characters) for path in _some(arguments.data, arguments.novels)]
    loaded = ModelPool(arguments.device).token_classifier(arguments.model)
    ids = [tokens.ids.astype(np.int64) for tokens in Tokenising(loaded.tokenizer).tokenise(texts)]
    ends = [np.isin(one, loaded.tokenizer.convert_tokens_to_ids(list(ENDS))) for one in ids]
    ways: dict[str, Cut] = {
        "as they are (a quarter shared)": windows_of,
        "without overlap": partial(_overlapping, parts=0),
        "half shared": partial(_overlapping, parts=2),
        "chunks that end after sentences": partial(_chunks, ends=ends),
    }
    reading = Classifier(loaded, arguments.batch_tokens)
    ideal = _kept(reading, ids, _centred, arguments.rate)
    rows = []
    for name, cut in ways.items():
        kept = _kept(reading, ids, cut, arguments.rate)
        rows.append({"windows": name, "differ": float(np.mean(kept != ideal))})
    figures: dict[str, Any] = {"facts": facts(torch.device(loaded.device), "float32"), "tokens": len(ideal)}
    figures |= {"kept": float(np.mean(ideal)), "rows": rows}
    save(arguments.json, figures)
    print(table(rows, ("windows", "differ")))
    print({name: value for name, value in figures.items() if name != "rows"})


def _kept(reading: Classifier, ids: list[Ints], cut: Cut, rate: float) -> NDArray[np.bool_]:
    with mock.patch.object(classifier, "windows_of", cut):
        scores = reading.keep(ids)
    return np.concatenate([_best(one, rate) for one in scores])


def _best(scores: Floats, rate: float) -> NDArray[np.bool_]:
    kept = np.zeros(len(scores), bool)
    kept[np.argsort(-scores, kind="stable")[: int(rate * len(scores))]] = True
    return kept


def _overlapping(lengths: Ints, size: int, parts: int) -> Windows:
    """Windows that share one part in ``parts``; 0: nothing."""
    if not parts:
        return _windows([list(range(0, length, size)) for length in lengths.tolist()], lengths)
    with mock.patch.object(classifier, "OVERLAP", parts):
        return windows_of(lengths, size)


def _chunks(lengths: Ints, size: int, ends: list[NDArray[np.bool_]]) -> Windows:
    """As the paper: as long as possible, but cut after the end of a sentence where there is one."""
    begins = []
    for length, end in zip(lengths.tolist(), ends, strict=True):
        cuts = [0]
        while length - cuts[-1] > size:
            places = np.flatnonzero(end[cuts[-1] : cuts[-1] + size])
            cuts.append(cuts[-1] + (int(places[-1]) + 1 if len(places) else size))
        begins.append(cuts)
    return _windows(begins, lengths)


def _windows(begins: list[list[int]], lengths: Ints) -> Windows:
    """Windows end to end."""
    text = np.repeat(np.arange(len(begins)), [len(one) for one in begins])
    begin = np.concatenate([np.array(one) for one in begins])
    end = np.concatenate([np.array([*one[1:], length]) for one, length in zip(begins, lengths.tolist(), strict=True)])
    return Windows(text, begin, end, begin, end)


def _centred(lengths: Ints, size: int) -> Windows:
    """Each ``STEP`` tokens in the middle of a window, as far as the text goes on either side."""
    steps = [np.arange(0, length, STEP) for length in lengths.tolist()]
    text = np.repeat(np.arange(len(steps)), [len(one) for one in steps])
    first, whole = np.concatenate(steps), lengths[text]
    begin = np.clip(first + STEP // 2 - size // 2, 0, np.maximum(0, whole - size))
    return Windows(text, begin, np.minimum(begin + size, whole), first, np.minimum(first + STEP, whole))


def _some(data: Path, count: int) -> list[Path]:
    found = sorted((data / "prose").glob("*.txt"))
    if len(found) < count:
        raise SystemExit(f"{len(found)} texts in {data / 'prose'}, not {count}")
    return found[:: len(found) // count][:count]


def _novel(path: Path, characters: int) -> str:
    text = path.read_text(encoding="utf-8")
    return text[len(text) // 2 :][:characters]


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with prose in it")
    parser.add_argument("--model", default="llmlingua2-minilm")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch-tokens", type=int, default=16_384)
    parser.add_argument("--novels", type=int, default=4)
    parser.add_argument("--characters", type=int, default=10_000, help="of each, from its middle on")
    parser.add_argument("--rate", type=float, default=1 / 3)
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser.parse_args()


if __name__ == "__main__":
    main()
