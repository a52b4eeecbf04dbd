"""What the decoder says behind prompts of any lengths, in one pass: padded behind their ends, as spans are."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from pipeline.generation.generated import no_defaults
from pipeline.memory.autoencoder import Autoencoder
from pipeline.memory.head_loss import nats_of
from pipeline.passes.transfers import on_device


def said(coder: Autoencoder, prompts: Sequence[torch.Tensor], answers: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """States ``[m, d]`` from which the tokens of each answer are said, behind its prompt ``[n, d]``."""
    rows = [torch.cat([one, coder.prompt([ids[:-1]], [])]) for one, ids in zip(prompts, answers, strict=True)]
    hidden = coder.say(pad_sequence(rows, batch_first=True))
    return [row[len(one) - 1 :][: len(ids)] for row, one, ids in zip(hidden, prompts, answers, strict=True)]


def nats(coder: Autoencoder, prompts: Sequence[torch.Tensor], answers: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """Of the tokens of each answer, float32 ``[m]``."""
    head = coder.model.get_output_embeddings().weight
    states = torch.cat(said(coder, prompts, answers)).to(head.dtype)
    targets = on_device(np.fromiter(itertools.chain.from_iterable(answers), np.int64), head.device)
    found = nats_of(states[None], head, targets[None], ragged=True)[0]
    return list(torch.split(found, [len(ids) for ids in answers]))


def written(coder: Autoencoder, prompts: Sequence[torch.Tensor], most: int, ends: Sequence[int]) -> list[list[int]]:
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
