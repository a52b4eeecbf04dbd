"""Spans and prompts of any lengths in one pass: padded behind their ends, where causal attention never looks back from.

So no mask is needed, and each row is read as it is alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.utils.rnn import pad_sequence

from pipeline.generation.generated import no_defaults
from pipeline.memory.autoencoder import Autoencoder, means
from pipeline.memory.head_loss import nats_of
from pipeline.memory.spans import Reading, reading

Ids = NDArray[np.int32]


def encoded(coder: Autoencoder, spans: Sequence[Ids], slots: Sequence[int]) -> list[torch.Tensor]:
    """Each span, ``[n]`` tokens, into so many slots ``[k, d]``."""
    device, layout = coder.tags.device, coder.spec.layout
    how = [reading(len(one), number, layout) for one, number in zip(spans, slots, strict=True)]
    words = coder.embed(_padded(spans).to(device))
    if layout != "pooled":
        memory = coder.memory[: max(slots)].to(words.dtype).expand(max(slots), -1)
        known = torch.cat([words, memory.expand(len(words), -1, -1)], 1)
        orders = _padded([_moved(one, len(ids), words.shape[1]) for one, ids in zip(how, spans, strict=True)])
        words = known[torch.arange(len(known), device=device)[:, None], orders.to(device)]
    hidden = coder.read(words, encoding=True)
    found = [_at(row, one, layout == "pooled") for row, one in zip(hidden, how, strict=True)]
    return list(torch.split(coder.map(torch.cat(found).to(coder.map.weight.dtype)), [*slots]))


def _moved(how: Reading, tokens: int, width: int) -> NDArray[np.int64]:
    """A span's order of reading where memory tokens stand behind ``width`` tokens, padding included."""
    return np.where(how.order < tokens, how.order, how.order + width - tokens)


def _at(hidden: torch.Tensor, how: Reading, pooled: bool) -> torch.Tensor:
    if pooled:
        return means(hidden[None], torch.from_numpy(how.ends).to(hidden.device))[0]
    return hidden[torch.from_numpy(how.places).to(hidden.device)]


def _padded(rows: Sequence[NDArray[Any]]) -> torch.Tensor:
    return pad_sequence([torch.from_numpy(row).long() for row in rows], batch_first=True)


def said(coder: Autoencoder, prompts: Sequence[torch.Tensor], answers: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """States ``[m, d]`` from which the tokens of each answer are said, behind its prompt ``[n, d]``."""
    rows = [torch.cat([one, coder.prompt([ids[:-1]], [])]) for one, ids in zip(prompts, answers, strict=True)]
    hidden = coder.read(pad_sequence(rows, batch_first=True), encoding=False)
    return [row[len(one) - 1 :][: len(ids)] for row, one, ids in zip(hidden, prompts, answers, strict=True)]


def nats(coder: Autoencoder, prompts: Sequence[torch.Tensor], answers: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """Of the tokens of each answer, float32 ``[m]``."""
    head = coder.model.get_output_embeddings().weight
    states = torch.cat(said(coder, prompts, answers)).to(head.dtype)
    targets = torch.tensor([token for ids in answers for token in ids], device=head.device)
    return list(torch.split(nats_of(states[None], head, targets[None])[0], [len(ids) for ids in answers]))


def written(
    coder: Autoencoder, prompts: Sequence[torch.Tensor], most: int, ends: Sequence[int]
) -> list[list[int]]:  # fmt: skip
    """What the decoder says greedily behind each prompt ``[n, d]``: ``most`` tokens or those before one of ``ends``."""
    model: Any = coder.model
    words = pad_sequence(list(prompts), batch_first=True, padding_side="left")
    mask = pad_sequence(
        [torch.ones(len(one), dtype=torch.int64, device=words.device) for one in prompts],
        batch_first=True, padding_side="left",
    )  # fmt: skip
    with no_defaults(model):
        found = model.generate(
            inputs_embeds=words, attention_mask=mask, max_new_tokens=most, do_sample=False,
            eos_token_id=[*ends] or None, pad_token_id=(*ends, 0)[0],
        )  # fmt: skip
    rows: list[list[int]] = found.tolist()
    return [row[: next((at for at, one in enumerate(row) if one in ends), len(row))] for row in rows]
