"""Answers from a transformers model on this machine, a batch of prompts at a time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

from pipeline.batching import run_packed
from pipeline.generation.ending import Ending, end_tokens
from pipeline.generation.packed_decoding import PackedDecoder, can_decode
from pipeline.generation.padded_decoding import PaddedDecoder
from pipeline.generation.prompts import Prompt, PromptEncoder
from pipeline.generation.sampling import document_seed
from pipeline.models import LoadedModel
from pipeline.stages import Outcome, Refusal, Result, Run, Stopped
from schemas.document import Document
from schemas.stage import GenerateSpec


@dataclass(frozen=True, slots=True)
class Generation:
    """An answer. ``tokens`` are all that were made for it, end token and stop string included; ``text`` has neither.

    ``seconds`` is its share of its batch's time, by tokens; ``latency_seconds`` the time of the whole batch.
    """

    text: str
    tokens: list[int]
    finish_reason: Literal["stop", "length"]
    seconds: float
    latency_seconds: float


class Decoder(Protocol):
    """Writes the answers of one batch."""

    padded: ClassVar[bool]
    """Whether all rows take as much room as the longest, and may grow by as many tokens."""

    def decode(self, prompts: Sequence[Prompt], ending: Ending) -> None:
        """Hand every row's tokens to ``ending``, until it or the prompt's ``new_tokens`` ends the row."""


@dataclass(frozen=True, slots=True)
class LocalGenerator:
    """Batches of prompts for the fastest decoder that model and device allow."""

    loaded: LoadedModel
    spec: GenerateSpec
    run: Run

    def generate(self, prompts: Sequence[Prompt]) -> list[Generation]:
        """One generation per prompt, in order. Raises ``Stopped`` between batches, or within one, when told to stop."""
        packs = can_decode(self.loaded)
        decoder: Decoder = PackedDecoder(self.loaded, self.spec) if packs else PaddedDecoder(self.loaded, self.spec)
        # The room a prompt leaves in the window keys the batches: a finished short row is dragged along as padding, and
        # past the window a model with learned positions has no embedding for it.
        return run_packed(
            [len(prompt.ids) + prompt.new_tokens for prompt in prompts],
            self.spec.batch_tokens,
            lambda rows: self._batch(decoder, [prompts[row] for row in rows]),
            keys=[prompt.new_tokens for prompt in prompts] if decoder.padded else None,
            padded=decoder.padded,
        )

    def _batch(self, decoder: Decoder, prompts: Sequence[Prompt]) -> list[Generation]:
        if self.run.stopping():
            raise Stopped
        start = time.perf_counter()
        ends = end_tokens(self.loaded.model, self.loaded.tokenizer, self.spec.stop)
        ending = Ending(len(prompts), self.loaded.tokenizer, ends, self.spec.stop, self.run)
        decoder.decode(prompts, ending)
        return self._finish(prompts, ending, time.perf_counter() - start)

    def _finish(self, prompts: Sequence[Prompt], ending: Ending, elapsed: float) -> list[Generation]:
        counts = [len(prompt.ids) + len(made) for prompt, made in zip(prompts, ending.tokens, strict=True)]
        generations = []
        for row, count in enumerate(counts):
            text, ended = ending.text(row)
            reason: Literal["stop", "length"] = "stop" if ended else "length"
            share = elapsed * count / sum(counts)
            generations.append(Generation(text, ending.tokens[row], reason, share, elapsed))
        self.run.progress(len(prompts), sum(counts) - ending.counted)
        return generations


def answer(
    documents: Sequence[Document], name: str, loaded: LoadedModel, spec: GenerateSpec, run: Run
) -> list[Outcome]:
    """The outcome of each document, in order: the answer of the model called ``name``, or why it was not asked."""
    encoder = PromptEncoder(name, loaded.tokenizer, loaded.window, spec)
    encoded = encoder.encode([document.prompt for document in documents])
    prompts = [
        Prompt(ids, min(spec.max_new_tokens, loaded.window - len(ids)), document_seed(spec.seed, document.content_hash))
        for document, ids in zip(documents, encoded, strict=True)
        if not isinstance(ids, Refusal)
    ]
    run.progress(len(documents) - len(prompts), 0)
    made = iter(zip(prompts, LocalGenerator(loaded, spec, run).generate(prompts), strict=True))
    return [ids if isinstance(ids, Refusal) else _result(name, *next(made)) for ids in encoded]


def _result(model: str, prompt: Prompt, generation: Generation) -> Result:
    fields = {
        "generated": generation.text,
        "generate_model": model,
        "finish_reason": generation.finish_reason,
        "tokens_prompt": len(prompt.ids),
        "tokens_generated": len(generation.tokens),
        "tokens_cached": None,
        "generate_seconds": generation.seconds,
        "latency_seconds": generation.latency_seconds,
        "cost_usd": None,  # what a machine's hour costs is accounted for over the whole job
    }
    return Result(
        fields,
        tokens_in=len(prompt.ids),
        tokens_out=len(generation.tokens),
        seconds=generation.seconds,
        latency_seconds=generation.latency_seconds,
    )
