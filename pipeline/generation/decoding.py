"""Decoding by passes after stored keys and values (``pipeline.passes``), those that compression reads by.

Rows leave the pass as they end, and the next ones take their room; every row takes the columns of its own prompt and
answer. Passes are packed in half precision on a GPU, and padded anywhere else. What neither can carry is
``generate``'s (``generated``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.generation.ending import Ending
from pipeline.generation.prompts import Prompt
from pipeline.generation.sampling import Choosing
from pipeline.models import LoadedModel
from pipeline.passes.compiling import hasten, read_once
from pipeline.passes.packable import attends_plainly, can_pack, can_step
from pipeline.passes.packed import PackedPasses
from pipeline.passes.padded import PaddedPasses, keeps_columns
from pipeline.passes.recorded import Steps
from pipeline.passes.room import Room
from pipeline.passes.transfers import fetch, on_device
from schemas.stage import GenerateSpec

Ints = NDArray[np.int64]
Passes = type[PackedPasses] | type[PaddedPasses]

PASS_TOKENS = 2**15
"""Most tokens of prompts in a pass: they keep a GPU busy, and what a pass needs beside the store stays small."""

_SHARE = 8
"""The part of all columns that must be free before rows join others: reading them one by one would stop the others
as often as one of them ends."""


@dataclass(frozen=True, slots=True)
class ColumnDecoder:
    """Answers of a model by ``passes``, the kind that ``passes_for`` found."""

    loaded: LoadedModel
    spec: GenerateSpec
    passes: Passes

    @property
    def padded(self) -> bool:
        """Whether a pass takes as long as if all rows were as long as the longest."""
        return not self.passes.records

    @torch.inference_mode()
    def decode(self, prompts: Sequence[Prompt], ending: Ending, columns: int) -> None:
        """Hand the tokens of all rows that are ``left`` to ``ending``, until it ends them.

        At once as many rows are worked on as fit in ``columns``, and at least one.
        """
        batch = _Batch(self, prompts, sorted(ending.left), columns)
        rows, newest, made = batch.join(others=False)
        ending.begin(rows.tolist())
        while len(rows):
            arriving = fetch(newest)
            # The device goes on before these tokens are here. What it makes of a row that they end is left out below.
            ahead = np.flatnonzero(batch.limits[rows] > made)
            following = batch.write(rows[ahead], _some(newest, ahead), made[ahead]) if len(ahead) else newest[:0]
            going = np.isin(rows, ending.take(rows.tolist(), arriving().tolist()))
            batch.leave(rows[~going])
            rows, newest, made = rows[going], _some(following, np.flatnonzero(going[ahead])), made[going] + 1
            joining, first, one = batch.join(others=len(rows) > 0)
            if len(joining):
                ending.begin(joining.tolist())
                rows, newest, made = np.append(rows, joining), torch.cat([newest, first]), np.append(made, one)


class _Batch:
    """Prompts, the store of their keys and values, and how tokens are chosen."""

    def __init__(self, decoder: ColumnDecoder, prompts: Sequence[Prompt], rows: Sequence[int], columns: int) -> None:
        loaded, spec = decoder.loaded, decoder.spec
        self.limits = np.array([prompt.new_tokens for prompt in prompts])
        self._prompts, self._lengths = prompts, np.array([len(prompt.ids) for prompt in prompts])
        self._needs = self._lengths + self.limits - 1  # an answer's last token is never read
        self._device, self._most = loaded.device, max(1, min(spec.batch_tokens, PASS_TOKENS))
        self._head: Any = loaded.model.get_output_embeddings()
        self._choose = Choosing(spec, [one.seed for one in prompts], int(self.limits.max()), loaded.device)
        # Longest first: what is too large for the memory shows at the start and not after an hour.
        self._waiting = sorted(rows, key=lambda row: (self._needs[row], -row))
        total, longest = int(self._needs[rows].sum()), int(self._needs[rows].max())
        self._columns = min(total, max(columns, longest))
        self._room, self._begins = Room(self._columns), np.zeros(len(prompts), np.int64)
        self._passes = decoder.passes(loaded.model.get_decoder(), len(prompts), loaded.window)
        self._passes.reserve(self._columns, longest)
        self._steps = Steps(self._passes, self._head, len(rows))

    def join(self, others: bool) -> tuple[Ints, torch.Tensor, Ints]:
        """Rows for which there is room now, their first tokens, int64 on the device as all tokens, and how many."""
        joining: list[int] = []
        if not others or self._room.free >= self._columns // _SHARE:
            while self._waiting and self._placed(self._waiting[-1]):
                joining.append(self._waiting.pop())
        rows = np.array(joining, dtype=np.int64)
        first = self._read(rows) if joining else torch.zeros(0, dtype=torch.int64, device=self._device)
        return rows, first, np.ones_like(rows)

    def _placed(self, row: int) -> bool:
        begin = self._room.take(int(self._needs[row]))
        if begin is None:
            return False
        self._begins[row] = begin
        self._passes.place(row, begin)
        return True

    def leave(self, rows: Ints) -> None:
        """Others may have the room of these rows."""
        for row in rows.tolist():
            self._room.give(int(self._begins[row]), int(self._needs[row]))

    def _read(self, rows: Ints) -> torch.Tensor:
        """The first token after each prompt."""
        last = []
        lengths = self._lengths[rows]
        ids, begin = np.concatenate([self._prompts[row].ids for row in rows.tolist()]), 0
        for some, cached, counts in _pieces(lengths, self._most):
            piece = on_device(ids[begin : begin + counts.sum()], self._device)
            hidden = self._passes.run(rows[some], piece, cached, counts)
            ends = (np.cumsum(counts) - 1)[cached + counts == lengths[some]]
            last.append(hidden[on_device(ends, self._device)])
            begin += len(piece)
        return self._choose(self._head(torch.cat(last)), rows, np.zeros_like(rows))

    def write(self, rows: Ints, newest: torch.Tensor, made: Ints) -> torch.Tensor:
        """The token after the ``newest`` of each of these ``rows``, of which ``made`` were made."""
        return self._choose(self._steps.logits(rows, newest, self._lengths[rows] + made - 1), rows, made)


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


def passes_for(loaded: LoadedModel) -> Passes | None:
    """The passes in which ``ColumnDecoder`` says what ``loaded`` says; asked of a loaded model once."""
    model: Any = loaded.model
    packing = _worth_packing(loaded)
    known: dict[bool, Passes | None] = vars(model).setdefault("contextmill_passes", {})
    if packing not in known:
        known[packing] = _found(model, packing)
    return known[packing]


def _worth_packing(loaded: LoadedModel) -> bool:
    """float32 and the CPU read padded: there answers are to be the same on every machine."""
    return loaded.device.type == "cuda" and loaded.model.dtype in (torch.bfloat16, torch.float16)


def _found(model: Any, packing: bool) -> Passes | None:
    if model.config.is_encoder_decoder or not hasattr(model, "get_decoder"):
        return None
    trunk, head = model.get_decoder(), model.get_output_embeddings()
    if head is None or not keeps_columns(trunk.config) or not _is_all(model, head):
        return None
    if packing and hasattr(trunk, "layers") and attends_plainly(trunk):
        compiled = hasten(trunk, trunk.layers, lambda: read_once(trunk, head))
        if compiled and can_pack(trunk) and can_step(trunk, PackedPasses):
            return PackedPasses
    return PaddedPasses if can_step(trunk, PaddedPasses) else None


@torch.inference_mode()
def _is_all(model: Any, head: Any) -> bool:
    """Whether nothing comes after the head: some models scale their logits or cap them."""
    ids = torch.arange(min(8, head.weight.shape[0]), device=head.weight.device).expand(2, -1)  # one row: compiled anew
    ours = head(model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state)
    theirs = model(input_ids=ids, use_cache=False).logits
    capped = getattr(model.config.get_text_config(), "final_logit_softcapping", None)  # small logits would not show it
    return not capped and torch.allclose(ours.float(), theirs.float(), rtol=0.01, atol=0.01)
