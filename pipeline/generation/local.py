"""Answers from a transformers model on this machine, in left-padded batches."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from transformers import GenerationConfig, PreTrainedModel, StoppingCriteriaList

from pipeline.batching import run_packed
from pipeline.generation.ending import Ending, end_tokens
from pipeline.generation.prompts import PromptEncoder
from pipeline.generation.sampling import document_seed, processors
from pipeline.models import LoadedModel
from pipeline.stages import Outcome, Refusal, Result, Run, Stopped
from schemas.document import Document
from schemas.stage import GenerateSpec


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is to be continued: token ids, the most tokens it may grow by, and the seed of its samples."""

    ids: list[int]
    new_tokens: int
    seed: int = 0


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


@dataclass(frozen=True, slots=True)
class LocalGenerator:
    """Decodes with transformers' ``generate``. Another engine takes its place by offering the same ``generate``."""

    loaded: LoadedModel
    spec: GenerateSpec
    run: Run

    def generate(self, prompts: Sequence[Prompt]) -> list[Generation]:
        """One generation per prompt, in order. Raises ``Stopped`` between batches, or within one, when told to stop."""
        # The room a prompt leaves in the window keys the batches: a finished short row is dragged along as padding, and
        # past the window a model with learned positions has no embedding for it.
        return run_packed(
            [len(prompt.ids) + prompt.new_tokens for prompt in prompts],
            self.spec.batch_tokens,
            lambda rows: self._batch([prompts[row] for row in rows]),
            keys=[prompt.new_tokens for prompt in prompts],
        )

    def _batch(self, prompts: Sequence[Prompt]) -> list[Generation]:
        if self.run.stopping():
            raise Stopped
        start = time.perf_counter()
        model, tokenizer = self.loaded.model, self.loaded.tokenizer
        ends = end_tokens(model, tokenizer, self.spec.stop)
        ending = Ending(len(prompts), tokenizer, ends, self.spec.stop, self.run)
        ids, mask = _left_padded([prompt.ids for prompt in prompts], tokenizer.pad_token_id or 0, self.loaded.device)
        seeds, new_tokens = [prompt.seed for prompt in prompts], prompts[0].new_tokens
        with _no_defaults(model), torch.inference_mode():
            model.generate(
                input_ids=ids,
                attention_mask=mask,
                generation_config=GenerationConfig(max_new_tokens=new_tokens),
                logits_processor=processors(self.spec, seeds, ids.shape[1], new_tokens, self.loaded.device),
                stopping_criteria=StoppingCriteriaList([ending]),
            )
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


def _left_padded(rows: Sequence[list[int]], pad: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask, int64 [rows, longest]: on the left, so that every row's next token comes in the same column."""
    width = max(map(len, rows))
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask


@contextmanager
def _no_defaults(model: PreTrainedModel) -> Iterator[None]:
    """Hide the model's own generation defaults: ``generate`` fills whatever we leave open from them.

    Else a checkpoint's repetition penalty or sampling flags would change the answers behind the job file's back.
    """
    kept, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = kept
