"""The scoring model of the reference outputs, in any precision."""

from __future__ import annotations

import contextlib
import copy
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from tokenizers import pre_tokenizers

from benchmarks.parity.cases import Case
from pipeline.compression.reference.probe import Probe
from pipeline.compression.reference.reference import Reference, ReferenceResult
from pipeline.compression.scoring import Scorer
from pipeline.models import LoadedModel, ModelPool, load_tokenizer, resolve
from schemas.document import PromptParts


@contextlib.contextmanager
def folder_of_the_reference(model: str) -> Iterator[Path]:
    """The model with the tokenizer that the outputs were made with: bytes alone, where ours sets digits apart.

    transformers 4.35 does not know what kind of tokenizer the model's GGUF file names, and takes the plain one.
    """
    source = resolve(model).folder
    tokenizer = copy.deepcopy(load_tokenizer(model))
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer.save_pretrained(folder)
        for file in ("config.json", *(path.name for path in source.glob("*.safetensors*"))):
            (folder / file).symlink_to(source / file)
        yield folder


class Scoring:
    """The engine over one model folder."""

    def __init__(self, folder: Path, device: str, dtype: str, batch_tokens: int) -> None:
        self._loaded: LoadedModel = ModelPool(device).causal_lm(str(folder), dtype)
        self._scorer = Scorer(self._loaded, batch_tokens)

    def compress(self, cases: Sequence[Case]) -> list[str | None]:
        """The texts of cases of equal options; None where a case is refused."""
        return self._texts(cases, self._scorer, None)

    def compress_exactly(self, case: Case, probe: Probe) -> str | None:
        """The text of one case in float64."""
        (text,) = self._texts([case], self._exact, probe)
        return text

    def lacks(self, case: Case, text: str) -> str | None:
        """What a text lacks of what is owed where the library raises: words, within the budget, and JSON of JSON.

        The budget is what was asked for, in the scorer's tokens, or what must stay, if that is more.
        """
        parts, options = case.parts, case.options
        fixed = self._count(PromptParts(parts.instruction, (), parts.question).render())
        asked = self._count(parts.render()) * options.rate if options.tokens is None else options.tokens
        most = max(asked, fixed)
        if not text.strip() and most >= 1:
            return "no text"
        if options.json_config is not None:
            if not _is_object(text):
                return f"no JSON object: {text[:80]!r}"
            most = max(most, self._count("{}"))
        found = self._count(text)
        return f"{found} tokens, where {most:g} are the most" if found > most else None

    def _count(self, text: str) -> int:
        return len(self._loaded.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _texts(self, cases: Sequence[Case], scorer: Scorer, probe: Probe | None) -> list[str | None]:
        reference = Reference(scorer, self._loaded.tokenizer, cases[0].options, probe)
        results = reference.compress([case.parts for case in cases])
        return [one.text if isinstance(one, ReferenceResult) else None for one in results]

    @cached_property
    def _exact(self) -> Scorer:
        model = copy.deepcopy(self._loaded.model).double()
        for module in model.modules():
            if type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon"):
                module.forward = _norm(module)
        return Scorer(replace(self._loaded, model=model), self._scorer.batch_tokens)


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


def _norm(module: Any) -> Any:
    """transformers' own norm goes through float32. So do the angles of positions, but these define the model."""
    return lambda states: torch.nn.functional.rms_norm(
        states, module.weight.shape, module.weight, module.variance_epsilon
    )
