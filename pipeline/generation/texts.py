"""What models read of a prompt: tokens, and vectors among them (``Prompt.vectors``), which not every drafter knows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.generation.prompts import VECTOR, Prompt
from pipeline.models import LoadedModel, ModelError
from pipeline.passes.packable import doubt, ids_for
from pipeline.passes.transfers import on_device, together
from pipeline.passes.vectors import Vectors

Ints = NDArray[np.int64]

_SAME = 1e-5
"""Most that hidden states may be off, for as good as nothing."""


@dataclass(frozen=True, slots=True)
class Text:
    """``ids``, with ``VECTOR`` where the next of ``vectors`` is read. Its length counts both: they are its places."""

    ids: Ints
    vectors: torch.Tensor | None = None

    @classmethod
    def of(cls, prompt: Prompt) -> Text:
        """All of a prompt."""
        return cls(np.array(prompt.ids, np.int64), prompt.vectors)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def tokens(self) -> Ints:
        """Without vectors."""
        return self.ids if self.vectors is None else self.ids[self.ids != VECTOR]

    def seen(self, blind: bool) -> Text:
        """As it is read; by a model that is ``blind`` to such vectors without them."""
        return Text(self.tokens) if blind else self

    def words(self, places: int) -> int:
        """Tokens among the first ``places``."""
        return places if self.vectors is None else int((self.ids[:places] != VECTOR).sum())

    def before(self, answer: Sequence[int]) -> Text:
        """The text and what was written behind it."""
        return Text(np.append(self.ids, np.array(answer, np.int64)), self.vectors)

    def part(self, begin: int, end: int | None = None) -> Text:
        """The places from ``begin`` to ``end``."""
        if self.vectors is None:
            return Text(self.ids[begin:end])
        first, ids = int((self.ids[:begin] == VECTOR).sum()), self.ids[begin:end]
        return Text(ids, self.vectors[first : first + int((ids == VECTOR).sum())])


def given(texts: Sequence[Text], device: torch.device) -> tuple[torch.Tensor, Vectors | None]:
    """What a pass is given to read of ``texts``, end to end: ids, any where vectors stand, and these."""
    ids = np.concatenate([one.ids for one in texts])
    words = on_device(ids.clip(min=0), device)
    vectors = [one.vectors for one in texts if one.vectors is not None and len(one.vectors)]
    if not vectors:
        return words, None
    return words, Vectors(on_device(np.flatnonzero(ids == VECTOR), device), together(vectors, device))


def check_vectors(loaded: LoadedModel, prompts: Sequence[Prompt]) -> None:
    """Raises ``ModelError`` where a prompt has vectors that this model cannot read, or more of all than it holds."""
    vectors = [one.vectors for one in prompts if one.vectors is not None]
    if not vectors:
        return
    reader, name, known = reader_of(loaded.model), loaded.ref.name, vars(loaded.model)
    if "contextmill_embeds" not in known:
        known["contextmill_embeds"] = doubt(lambda: _both(reader), _SAME)
    if why := known["contextmill_embeds"]:
        raise ModelError(f"{name} reads no vectors: choose a target that takes inputs_embeds ({why})")
    size = reader.get_input_embeddings()(ids_for(reader, 1)).shape[-1]
    for one in vectors:
        if one.ndim != 2 or one.shape[1] != size:
            raise ModelError(
                f"{name} reads vectors of {size} numbers, and a prompt has {list(one.shape)} of them: make them for "
                "this very model"
            )
    longest = max(len(one.ids) for one in prompts if one.vectors is not None)
    if longest >= loaded.window:
        raise ModelError(
            f"a prompt has {longest} places and {name} holds {loaded.window}, one of them for the answer: give it "
            "fewer tokens or vectors, or choose a target with a larger window"
        )


def reader_of(model: Any) -> Any:
    """What reads prompts."""
    if model.config.is_encoder_decoder:
        return model.get_encoder()
    return model.get_decoder() if hasattr(model, "get_decoder") else model.base_model


@torch.inference_mode()
def _both(reader: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """What it says of embeddings, and of their tokens. Some models look tokens up again, layer by layer."""
    ids = ids_for(reader, 8)
    told = {"inputs_embeds": reader.get_input_embeddings()(ids)}, {"input_ids": ids}
    found, expected = (reader(**one).last_hidden_state for one in told)
    return found, expected


def knows_vectors(drafter: LoadedModel, target: LoadedModel) -> bool:
    """Whether what stands in for embeddings of the target's does so for the drafter's: they have one table. Kept with
    the drafter."""
    if drafter is target:
        return True
    known: dict[str, bool] = vars(drafter.model).setdefault("contextmill_knows_vectors", {})
    if target.ref.digest not in known:
        mine, its = (reader_of(one.model).get_input_embeddings() for one in (drafter, target))
        known[target.ref.digest] = mine is its or _alike(mine, its)
    return known[target.ref.digest]


def _alike(one: Any, other: Any) -> bool:
    mine, its = one.weight, other.weight
    fitting = type(one) is type(other) and (mine.shape, mine.dtype, mine.device) == (its.shape, its.dtype, its.device)
    return fitting and torch.equal(mine, its)
