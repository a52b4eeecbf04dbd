"""Decoding without padding, in half precision on a GPU: rows laid end to end, keys and values stored where they stay.

``generate`` copies its whole cache for every token and drags ended rows along; here rows leave the pass as they end.
The passes are those that compression reads by (``pipeline.passes``). Any other model or device is ``PaddedDecoder``'s.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.generation.ending import Ending
from pipeline.generation.prompts import Prompt
from pipeline.generation.sampling import narrow, processors
from pipeline.models import LoadedModel
from pipeline.passes.compiling import hasten, read_once
from pipeline.passes.packable import attends_plainly, can_pack, can_step
from pipeline.passes.packed import PackedPasses
from pipeline.passes.recorded import Steps
from pipeline.passes.transfers import fetch, on_device
from schemas.stage import GenerateSpec

Ints = NDArray[np.int64]

PASS_TOKENS = 2**15
"""Most tokens of prompts in a pass: they keep a GPU busy, and what a pass needs beside the store stays small."""


@dataclass(frozen=True, slots=True)
class PackedDecoder:
    """Answers of a model that ``can_decode``. A row takes the room of its own prompt and answer."""

    loaded: LoadedModel
    spec: GenerateSpec
    padded: ClassVar[bool] = False

    @torch.inference_mode()
    def decode(self, prompts: Sequence[Prompt], ending: Ending) -> None:
        """As in ``Decoder``."""
        batch = _Batch(self.loaded, self.spec, prompts)
        rows, newest, made = np.arange(len(prompts)), batch.read(), 1
        while len(rows):
            arriving = fetch(newest)
            # The device goes on before these tokens are here. What it makes of a row that they end is left out below.
            ahead = np.flatnonzero(batch.limits[rows] > made)
            following = batch.write(rows[ahead], _some(newest, ahead), made) if len(ahead) else newest[:0]
            going = ending.take(rows.tolist(), arriving().tolist())
            rows = rows[ahead]
            stay = np.flatnonzero(np.isin(rows, going))
            rows, newest, made = rows[stay], _some(following, stay), made + 1


class _Batch:
    """Prompts, the store of their keys and values, and how tokens are chosen."""

    def __init__(self, loaded: LoadedModel, spec: GenerateSpec, prompts: Sequence[Prompt]) -> None:
        self.limits = np.array([prompt.new_tokens for prompt in prompts])
        self._lengths = np.array([len(prompt.ids) for prompt in prompts])
        self._ids = np.concatenate([prompt.ids for prompt in prompts])
        self._device, self._most = loaded.device, min(spec.batch_tokens, PASS_TOKENS)
        self._head: Any = loaded.model.get_output_embeddings()
        self._chain = processors(spec, [one.seed for one in prompts], 0, int(self.limits.max()), loaded.device)
        self._passes = PackedPasses(loaded.model.get_decoder(), len(prompts), loaded.window)
        self._passes.reserve(self._lengths + self.limits - 1)  # an answer's last token is never read
        self._steps = Steps(self._passes, self._head, len(prompts))

    def read(self) -> torch.Tensor:
        """The first token after each prompt, int64 ``[rows]``, on the device as all else."""
        last, begin = [], 0
        for rows, cached, counts in _pieces(self._lengths, self._most):
            ids = self._ids[begin : begin + counts.sum()]
            hidden = self._passes.run(rows, on_device(ids, self._device), cached, counts)
            ends = (np.cumsum(counts) - 1)[cached + counts == self._lengths[rows]]
            last.append(hidden[on_device(ends, self._device)])
            begin += len(ids)
        return self._choose(np.arange(len(self._lengths)), self._head(torch.cat(last)), 0)

    def write(self, rows: Ints, newest: torch.Tensor, made: int) -> torch.Tensor:
        """The token after the ``newest`` of each of these ``rows``, of which ``made`` were made."""
        return self._choose(rows, self._steps.logits(rows, newest, self._lengths[rows] + made - 1), made)

    def _choose(self, rows: Ints, logits: torch.Tensor, made: int) -> torch.Tensor:
        if self._chain:
            narrow(self._chain, on_device(rows, self._device))
        before = torch.empty(len(rows), made, dtype=torch.int64, device=self._device)  # only its shape is looked at
        chosen: torch.Tensor = self._chain(before, logits.float()).argmax(-1)
        return chosen


def _pieces(lengths: Ints, most: int) -> Iterator[tuple[Ints, Ints, Ints]]:
    """Prompts end to end, cut every ``most`` tokens: a piece's rows, their tokens in earlier pieces, and in this."""
    ends = np.cumsum(lengths)
    begins = ends - lengths
    for begin in range(0, int(ends[-1]), most):
        first, last = np.maximum(begins, begin), np.minimum(ends, begin + most)
        rows = np.flatnonzero(last > first)
        yield rows, (first - begins)[rows], (last - first)[rows]


def _some(tensor: torch.Tensor, places: Ints) -> torch.Tensor:
    return tensor if len(places) == len(tensor) else tensor[on_device(places, tensor.device)]


def can_decode(loaded: LoadedModel) -> bool:
    """Whether ``PackedDecoder`` says what ``loaded`` says; asked of a loaded model once."""
    if not _worth_it(loaded):
        return False
    model: Any = loaded.model
    if not hasattr(model, "contextmill_decodes"):
        model.contextmill_decodes = _packs(model)
    return bool(model.contextmill_decodes)


def _worth_it(loaded: LoadedModel) -> bool:
    """float32 and the CPU stay with ``generate``: there answers are to be the same on every machine."""
    return loaded.device.type == "cuda" and loaded.model.dtype in (torch.bfloat16, torch.float16)


def _packs(model: Any) -> bool:
    if model.config.is_encoder_decoder or not hasattr(model, "get_decoder"):
        return False
    trunk, head = model.get_decoder(), model.get_output_embeddings()
    if head is None or not hasattr(trunk, "layers") or not attends_plainly(trunk):
        return False
    compiled = hasten(trunk, trunk.layers, lambda: read_once(trunk, head))
    return compiled and can_pack(trunk) and can_step(trunk) and _is_all(model, head)


@torch.inference_mode()
def _is_all(model: Any, head: Any) -> bool:
    """Whether nothing comes after the head: some models scale their logits or cap them."""
    ids = torch.arange(min(8, head.weight.shape[0]), device=head.weight.device).expand(2, -1)  # one row: compiled anew
    ours = head(model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state)
    theirs = model(input_ids=ids, use_cache=False).logits
    capped = getattr(model.config.get_text_config(), "final_logit_softcapping", None)  # small logits would not show it
    return not capped and torch.allclose(ours.float(), theirs.float(), rtol=0.01, atol=0.01)
