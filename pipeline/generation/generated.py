"""Decoding with transformers' ``generate`` in padded batches: models that ``decoding`` cannot carry."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)

from pipeline.generation.ending import Ending
from pipeline.generation.prompts import Prompt
from pipeline.generation.sampling import processors
from pipeline.generation.texts import Text, given, reader_of
from pipeline.models import LoadedModel, ModelError
from pipeline.passes.packable import TOLERANCE
from pipeline.passes.vectors import Vectors, input_of
from schemas.stage import GenerateSpec

_EXACTLY = 1e-3
"""Most that logits in float32 may be off by rounding."""


@dataclass(frozen=True, slots=True)
class GenerateDecoder:
    """All rows until the last one ends; those that end sooner are dragged along."""

    loaded: LoadedModel
    spec: GenerateSpec

    def decode(self, prompts: Sequence[Prompt], ending: Ending) -> None:
        """Hand every row's tokens to ``ending``, until it ends the row. All have the same ``new_tokens``."""
        ending.begin(range(len(prompts)))
        model, device, start = self.loaded.model, self.loaded.device, self.loaded.start
        texts = [Text.of(prompt) for prompt in prompts]
        ids, mask = _padded([text.ids for text in texts], self.loaded.tokenizer.pad_token_id or 0, bool(start))
        read = _read(model, ids.to(device), mask.to(device), texts)
        width = len(start) or (ids.shape[1] if "input_ids" in read else 0)  # of what is written after
        seeds, new_tokens = [prompt.seed for prompt in prompts], prompts[0].new_tokens
        ended = _Ended(ending, len(prompts))
        with no_defaults(model), torch.inference_mode():
            model.generate(
                **read,
                attention_mask=mask.to(device),
                generation_config=GenerationConfig(max_new_tokens=new_tokens, decoder_start_token_id=(*start, None)[0]),
                logits_processor=LogitsProcessorList(
                    [_Numbers(self.loaded, ended), *processors(self.spec, seeds, width, new_tokens, device)]
                ),
                stopping_criteria=StoppingCriteriaList([ended]),
            )


class _Numbers(LogitsProcessor):  # type: ignore[misc]
    """Raises ``ModelError`` where a model prefers no token to any other: all answers would be empty, or the same."""

    def __init__(self, loaded: LoadedModel, ended: _Ended) -> None:
        self._loaded, self._ended = loaded, ended

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """``scores`` ``[rows, v]`` as they are."""
        said = scores[self._ended.open]  # what becomes of others is padding
        highest = said.amax(-1)
        if bool((highest.isfinite() & (highest > said.amin(-1))).all()):
            return scores
        kind = str(self._loaded.model.dtype).removeprefix("torch.")
        wider = "" if kind == "float32" else ', or it takes a wider type: dtype = "float32"'
        raise ModelError(
            f"{self._loaded.ref.name} says of no token in {kind} that it is likelier than another (NaN, infinite or "
            f"all alike): its weights are damaged{wider}"
        )


class _Ended(StoppingCriteria):  # type: ignore[misc]
    """What ``generate`` asks after every token: which rows are ``open``. What it makes of the others is padding."""

    def __init__(self, ending: Ending, rows: int) -> None:
        self._ending, self.open = ending, list(range(rows))

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """Which rows are done: bool [rows]."""
        del scores, kwargs
        newest = input_ids[:, -1].tolist()
        self.open = self._ending.take(self.open, [newest[row : row + 1] for row in self.open])
        done = torch.ones(len(newest), dtype=torch.bool)
        done[self.open] = False
        return done.to(input_ids.device)


@torch.inference_mode()
def _read(model: Any, ids: torch.Tensor, mask: torch.Tensor, texts: Sequence[Text]) -> dict[str, torch.Tensor]:
    """``ids``; embeddings of them where the ``texts`` of all rows have vectors."""
    vectors = given(texts, ids.device)[1]
    at = mask.flatten().nonzero()[:, 0]
    return input_of(reader_of(model), ids, vectors and Vectors(at[vectors.at], vectors.states))


@torch.inference_mode()
def minds_company(loaded: LoadedModel) -> bool:
    """Whether a causal LM says something else of a text beside a longer one, before it padding: transformers' RWKV
    reads that as text, and mixes up rows. Asked once."""
    model: Any = loaded.model
    known: dict[str, bool] = vars(model)
    if "contextmill_minds_company" not in known:
        ids = torch.arange(3, 17)
        alone, beside = (_logits(model, [one.numpy() for one in texts]) for texts in ([ids[:9]], [ids[:9], ids]))
        apart = float((alone - beside).norm() / alone.norm())
        known["contextmill_minds_company"] = apart > (_EXACTLY if model.dtype == torch.float32 else TOLERANCE)
    return known["contextmill_minds_company"]


def _logits(model: Any, texts: Sequence[NDArray[np.int64]]) -> torch.Tensor:
    """Of the first two tokens behind the first of these texts ``[2, v]``."""
    ids, mask = (one.to(model.device) for one in _padded(texts, 0, False))
    config = GenerationConfig(max_new_tokens=2, min_new_tokens=2, output_logits=True, return_dict_in_generate=True)
    with no_defaults(model):
        found = model.generate(ids, attention_mask=mask, generation_config=config).logits
    return torch.stack([one[0].float() for one in found])


def _padded(rows: Sequence[NDArray[np.int64]], pad: int, right: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask, int64 [rows, longest]: on the left, so that every row's next token comes in the same column, but
    on the ``right`` for an encoder, which counts places from the first."""
    side: Any = "right" if right else "left"
    texts = [torch.from_numpy(row.clip(min=0)) for row in rows]
    ids = pad_sequence(texts, batch_first=True, padding_value=pad, padding_side=side)
    mask = pad_sequence([torch.ones_like(text) for text in texts], batch_first=True, padding_side=side)
    return ids, mask


@contextmanager
def no_defaults(model: PreTrainedModel) -> Iterator[None]:
    """Hide the model's own generation defaults: ``generate`` fills whatever we leave open from them.

    Else a checkpoint's repetition penalty or sampling flags would change the answers behind the job file's back.
    """
    kept, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = kept
