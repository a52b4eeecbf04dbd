"""One answer, scored: the columns that the ``evaluate`` stage writes for a document."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.evaluation.answers import choice, number, plain_text, references, short_answer
from pipeline.evaluation.metrics import contains_answer, exact_match, normalised, token_f1
from pipeline.evaluation.overlap import Bleu, Rouge
from schemas.evaluate import EvaluateSpec
from schemas.records import STAGE_FIELDS

SCORES = "exact_match", "token_f1", "contains_answer", "bleu4", "rouge1", "rouge2", "rougeL"


class NoReferenceError(ValueError):
    """A reference answer that cannot be compared with anything; the text says why."""


@dataclass(frozen=True, slots=True)
class Scorer:
    """The metrics of a spec. Holds the libraries' objects between documents."""

    spec: EvaluateSpec
    _bleu: Bleu = field(init=False)
    _rouge: Callable[[str, Sequence[str]], Mapping[str, float]] = field(init=False)

    def __post_init__(self) -> None:
        rouge = [metric for metric in self.spec.measured if metric.startswith("rouge")]
        object.__setattr__(self, "_bleu", Bleu(self.spec.bleu_tokenizer))
        object.__setattr__(self, "_rouge", Rouge(rouge) if rouge else lambda *_: {})

    def __call__(self, generated: str, answer: str, question: str) -> dict[str, Any]:
        """The columns for what was ``generated``, against the reference ``answer``. Raises ``NoReferenceError``."""
        right = references(answer)
        if self.spec.task == "gsm8k" and (wrong := next((one for one in right if number(one) is None), None)):
            raise NoReferenceError(f"the reference answer holds no number: {wrong[:80]!r}")
        prediction = self._read(generated, question, right[0])
        columns: dict[str, Any] = {**dict.fromkeys(STAGE_FIELDS["evaluate"].names), "prediction": prediction}
        return columns | self._scores(prediction or "", right)

    def _read(self, generated: str, question: str, reference: str) -> str | None:
        match self.spec.task:
            case "gsm8k":
                return number(generated)
            case "bbh":
                return choice(generated, question, reference)
            case "qa":
                return short_answer(generated)
            case _:
                return generated.strip() or None

    def _scores(self, prediction: str, right: Sequence[str]) -> dict[str, Any]:
        """The asked metrics; no answer at all scores 0 everywhere, except against a reference without words."""
        asked = self.spec.measured
        found: dict[str, Any] = dict(self._rouge(prediction, right))
        if "exact_match" in asked:
            found["exact_match"] = exact_match(prediction, right, self._form)
        if "token_f1" in asked:
            found["token_f1"] = token_f1(prediction, right)
        if "contains_answer" in asked:
            found["contains_answer"] = contains_answer(prediction, right)
        if "bleu4" in asked:
            found["bleu4"], found["bleu_counts"] = self._bleu(prediction, right)
        return found

    def _form(self, text: str) -> str | None:
        """How an answer is written where answers are compared as wholes."""
        match self.spec.task:
            case "gsm8k":
                return number(text)
            case "qa":
                return normalised(text)
            case "bbh":
                return plain_text(text)
            case _:
                return text.strip()
