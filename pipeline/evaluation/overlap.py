"""Overlap of texts: BLEU-4 by sacrebleu, ROUGE by rouge-score. Both are imported only where they are asked for."""

from __future__ import annotations

import functools
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pipeline.stages import Halt

PACKAGES = {"bleu": "sacrebleu", "rouge": "rouge-score"}
"""How a metric's name begins -> the package that computes it."""

_WORDS = re.compile(r"[^\W_]+")
_NO_SPACES = re.compile(r"[぀-ヿ㐀-鿿가-힯豈-﫿\U00020000-\U0003ffff]")  # kana, CJK, hangul: letter by letter

STEMS = 65_536
"""Words whose stems are remembered: stemming takes most of the time otherwise."""


class MetricsMissing(Halt):
    """A package that computes a metric is not installed."""


def versions(metrics: Sequence[str]) -> list[str]:
    """``package==version`` of what computes these metrics: another version may score otherwise.

    Raises ``MetricsMissing``.
    """
    packages = sorted({package for prefix, package in PACKAGES.items() if any(m.startswith(prefix) for m in metrics)})
    return [f"{package}=={_version(package)}" for package in packages]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError as error:
        raise MetricsMissing(
            f"BLEU and ROUGE need sacrebleu and rouge-score, and {package} is not here: "
            "pip install sacrebleu rouge-score (our extra 'evaluation')"
        ) from error


@dataclass(frozen=True, slots=True)
class Bleu:
    """Sentence BLEU-4 with exponential smoothing and effective order, as sacrebleu computes it."""

    tokenizer: str = "13a"

    def __call__(self, prediction: str, references: Sequence[str]) -> tuple[float, list[int]]:
        """The score from 0 to 1, and its counts: length, closest reference's length, 4 x correct, 4 x total n-grams.

        Sums of such counts over documents give corpus BLEU (``bootstrap.corpus_bleu``).
        """
        found = self._metric().sentence_score(prediction, list(references))
        counts = [found.sys_len, found.ref_len, *found.counts, *found.totals]
        return found.score / 100, [int(count) for count in counts]

    def _metric(self) -> Any:
        return import_module("sacrebleu.metrics.bleu").BLEU(tokenize=self.tokenizer, effective_order=True)


class Words:
    """rouge-score's own tokens (lower case, Porter's stems) where a text is in English letters.

    Of any other letter that tokenizer makes a space, and Chinese would score 0: here words of all scripts are tokens,
    in scripts without spaces each letter.
    """

    def __init__(self) -> None:
        stemmer = import_module("nltk.stem.porter").PorterStemmer()
        self._stem = functools.lru_cache(STEMS)(stemmer.stem)

    def tokenize(self, text: str) -> list[str]:
        """The tokens of a text."""
        words = _WORDS.findall(_NO_SPACES.sub(r" \g<0> ", text.lower()))
        return [self._stem(word) if len(word) > 3 else word for word in words]


class Rouge:
    """F1 of the asked ROUGE types (Lin, 2004), of each the best reference's.

    ROUGE-L is rouge-score's formula with a longest common subsequence of our own: the package fills a table of length
    times length in Python, minutes for two long texts.
    """

    def __init__(self, types: Sequence[str]) -> None:
        scorer = import_module("rouge_score.rouge_scorer")
        self._tokenizer, self._longest = Words(), "rougeL" in types
        grams = [kind for kind in types if kind != "rougeL"]
        self._scorer = scorer.RougeScorer(grams, tokenizer=self._tokenizer)

    def __call__(self, prediction: str, references: Sequence[str]) -> dict[str, float]:
        """Type -> F1 from 0 to 1."""
        found = self._scorer.score_multi(list(references), prediction)
        scores = {kind: float(score.fmeasure) for kind, score in found.items()}
        if self._longest:
            said = self._tokenizer.tokenize(prediction)
            scores["rougeL"] = max(rouge_l(said, self._tokenizer.tokenize(one)) for one in references)
        return scores


def rouge_l(said: Sequence[str], right: Sequence[str]) -> float:
    """F1 of the longest common subsequence of two lists of tokens; 0 where one of them is empty."""
    return 2 * longest_common(said, right) / (len(said) + len(right)) if said and right else 0.0


def longest_common(one: Sequence[str], other: Sequence[str]) -> int:
    """The length of the longest common subsequence, a row of the table at a time as bits (Hyyrö, 2004)."""
    places: dict[str, int] = defaultdict(int)
    for place, token in enumerate(one):
        places[token] |= 1 << place
    everything = (1 << len(one)) - 1
    row = everything
    for token in other:
        hits = row & places.get(token, 0)
        row = ((row + hits) | (row - hits)) & everything
    return len(one) - row.bit_count()
