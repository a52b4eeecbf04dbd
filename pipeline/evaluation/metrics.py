"""Metrics of one answer, from 0 to 1, the best over several references; by the definitions that the field shares."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Iterable

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(text: str) -> str:
    """SQuAD's normalisation (Rajpurkar et al., 2016): lower case, no punctuation, no articles, single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def token_f1(prediction: str, references: Iterable[str]) -> float:
    """SQuAD's F1 over the bag of normalised words; no words on both sides agree, as in SQuAD 2.0."""
    return max(_f1(normalised(prediction).split(), normalised(one).split()) for one in references)


def _f1(said: list[str], right: list[str]) -> float:
    if not said or not right:
        return float(said == right)
    common = sum((Counter(said) & Counter(right)).values())
    return 2 * common / (len(said) + len(right))


def contains_answer(prediction: str, references: Iterable[str]) -> float:
    """Whether a normalised reference stands in the normalised answer (Lost in the Middle's ``best_subspan_em``).

    One of which nothing is left stands in nothing but an empty answer.
    """
    said = normalised(prediction)
    forms = [normalised(one) for one in references]
    return float(any(form in said if form else not said for form in forms))


def exact_match(prediction: str, references: Iterable[str], form: Callable[[str], str | None]) -> float:
    """Whether the answer equals a reference, both brought into ``form``."""
    said = form(prediction)
    return float(any(form(one) == said for one in references))
