"""The bundled classifier: its digest, and that it knows what it learned. Where it is not here it is pulled (84 MB)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.compression.classifier import Classifier
from pipeline.compression.tokens import Tokenising
from pipeline.models import ModelPool, ModelRef, pull

NAME = "llmlingua2-minilm"
EXAMPLES = Path(__file__).parents[3] / "examples" / "gsm8k.jsonl"
EMPTY = frozenset(
    ["the", "a", "an", "of", "to", "in", "is", "are", "was", "and", "that", "it", "for", "he", "she", "they"]
)


@pytest.fixture(scope="module")
def ref() -> ModelRef:
    return pull(NAME)


@pytest.mark.model
def test_digest_is_the_same_on_every_machine(ref: ModelRef) -> None:
    assert ref.digest == "250b46a9686e90d32de7244f1138e94b1c500b49d6722e9d4ff10630cfb3baf1"


@pytest.mark.model
def test_it_keeps_names_and_what_is_new(ref: ModelRef) -> None:
    loaded = ModelPool("cpu").token_classifier(ref.name)
    assert (loaded.window, loaded.model.config.id2label[1]) == (512, "keep")
    with EXAMPLES.open(encoding="utf-8") as file:
        text = "\n\n".join(json.loads(next(file))["contexts"][:4])
    (tokens,) = Tokenising(loaded.tokenizer).tokenise([text])
    (scores,) = Classifier(loaded, 2048).keep([tokens.ids])
    words = [text[begin:end] for begin, end in tokens.spans]
    empty = np.array([word.lower() in EMPTY for word in words])
    names = np.array([word[:1].isupper() for word in words])
    long = [place for place, word in enumerate(words) if len(word) > 3 and words.count(word) > 2]
    new = np.array([words.index(words[place]) == place for place in long])
    assert min(empty.sum(), names.sum(), new.sum(), (~new).sum()) > 10
    assert scores[names].mean() > scores[empty].mean() + 0.1
    assert scores[long][new].mean() > scores[long][~new].mean() + 0.1
    assert 0.1 < scores.mean() < 0.6  # calibrated on rates of 0.2 to 0.5
