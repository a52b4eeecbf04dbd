"""The generation stage: the job's target model answers every prompt. Loads torch or an SDK only when it runs."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.models import (
    Beside,
    ModelError,
    check_causal,
    check_target,
    digest_of,
    expects_gpu,
    is_encoder_decoder,
    load_tokenizer,
    resolve,
)
from pipeline.models.folder import layers_in
from pipeline.stages import Outcome, Run
from schemas.document import Document
from schemas.job import TargetSpec
from schemas.settings import Settings
from schemas.stage import GenerateSpec

if TYPE_CHECKING:
    from pipeline.models import LoadedModel

log = logging.getLogger(__name__)

VERSION, LOCAL = 1, 4
"""Raised when what this stage writes for the same spec changes, see ``Stage.identity``; only the second where hosted
models, whose answers were paid for, write what they did."""

CHARACTERS_PER_TOKEN = 4
CPU_TOKENS = (800.0, 100.0)  # read and written per second, 135M parameters, two cores, a batch at a time
GPU_TOKENS = (100_000.0, 1_000.0)
CALL_TOKENS = 50.0  # written per second by one call to a hosted model


@dataclass(frozen=True, slots=True)
class Generate:
    """Answers from ``target.model``: a local model, or with ``backend = "openai"`` one behind an endpoint."""

    spec: GenerateSpec
    target: TargetSpec

    def identity(self) -> Any:
        """Local: the digest of weights and tokenizer. Hosted: all that is known is where the model is and its name."""
        if self.spec.backend == "openai":
            return [VERSION, "openai", self.spec.base_url or "default", self.target.model]
        return [VERSION, LOCAL, digest_of(self.target.model, check=check_target)]

    def work_seconds(self, characters: int) -> float:
        """Reading the prompt and writing the longest answer allowed; the rates are those of the small default model."""
        if self.spec.backend == "openai":
            return self.spec.max_new_tokens / CALL_TOKENS / self.spec.concurrency
        read, write = GPU_TOKENS if expects_gpu(self.spec.device) else CPU_TOKENS
        return characters / CHARACTERS_PER_TOKEN / read + self.spec.max_new_tokens / write

    def run(self, documents: Sequence[Document], run: Run) -> list[Outcome]:
        """One outcome per document, in order. Raises ``Stopped``, and ``Halt`` for what a person must mend."""
        if self.spec.backend == "openai":
            from pipeline.generation.hosted import HostedGenerator

            return HostedGenerator(self.spec, self.target, Settings().api_key).run(documents, run)
        from pipeline.generation.kept_bigrams import earlier_answers
        from pipeline.generation.kept_policies import noted
        from pipeline.generation.local import answer

        loaded, drafters = self.load(run), list(self.drafters(run))
        for one in drafters:
            if isinstance(one, str):
                log.warning("%s", one)
        useful = [None if isinstance(one, str) else one for one in drafters]
        learns = self.spec.plan.copies and self.spec.draft_earlier
        with (
            noted(loaded, [one for one in useful if one], run.folder if self.spec.plan.adaptive else None),
            earlier_answers(loaded) if learns else nullcontext() as earlier,
        ):
            return answer(documents, self.target.model, loaded, self.spec, run, useful, earlier)

    def check(self) -> None:
        """Drafters are looked at when a job is submitted: a worker that lacks one does without."""
        for name in self.spec.drafters:
            try:
                check_drafter(name, self.target.model)
            except ModelError as error:
                raise type(error)(f"drafters: {error}") from error

    def load(self, run: Run) -> LoadedModel:
        """The target, where it is a local model. Raises ``ModelError``."""
        return run.models.target(self.target.model, self.spec.dtype, self.spec.device)

    def drafters(self, run: Run) -> Iterator[LoadedModel | str]:
        """Each, or why it cannot be loaded on this machine: drafts save time, and answers do not hang on them."""
        from pipeline.batching import out_of_memory
        from pipeline.generation.early_exit import early_exit

        target, names = self.load(run), self.spec.drafters
        beside = Beside(target, "drafts", sum(not _layers(name) for name in names))
        load = run.models.target if target.start else run.models.causal_lm
        for name in names:
            try:
                if layers := _layers(name):
                    yield early_exit(target, layers)
                else:
                    yield load(name, self.spec.dtype, self.spec.device, beside)
            except (ModelError, MemoryError, RuntimeError) as error:
                if not isinstance(error, ModelError) and not out_of_memory(error):
                    raise
                yield f"{name} does not draft: {error}"


def _layers(name: str) -> int:
    """8 of "layers:8", the name of a drafter that is the target's first layers; 0 of any other."""
    found = re.fullmatch(r"layers:([1-9][0-9]{0,4})", name)
    return int(found[1]) if found else 0


def check_drafter(name: str, target: str) -> None:
    """``ModelError`` for what is not there, is another kind of model, or knows none of the target's tokens."""
    layers, encodes = _layers(name), is_encoder_decoder(resolve(target))
    if name.startswith("layers:") and not layers:
        raise ModelError(f"{name} is none: layers:N are the target's own first N layers, N at least 1")
    if encodes and (layers or not _alike(name, target)):
        raise ModelError(
            f"{name} cannot draft for {target}, an encoder-decoder: drop drafters, or name a smaller one of its very "
            "vocabulary; draft_tokens gives copies without any"
        )
    if layers:
        there = layers_in(resolve(target).folder) or 0
        if layers >= there:
            raise ModelError(f"{name} cannot draft for {target}, which has {there} layers: name fewer")
        return
    from pipeline.generation.token_texts import shared

    digest_of(name, check=check_target if encodes else check_causal)
    own, others = load_tokenizer(name), load_tokenizer(target)
    if own.get_vocab() != others.get_vocab() and not shared(own, others):
        raise ModelError(
            f"{name} cannot draft for {target}: it is not known which tokens of its vocabulary stand for the same as "
            "one of the target's; name a model with the target's own tokenizer"
        )


def _alike(name: str, target: str) -> bool:
    return is_encoder_decoder(resolve(name)) and load_tokenizer(name).get_vocab() == load_tokenizer(target).get_vocab()
