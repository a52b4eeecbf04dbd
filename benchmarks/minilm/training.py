"""The head: low-rank changes of an encoder (LoRA, arXiv 2106.09685), its biases and norms, and a two-label layer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.utils import parametrize

from benchmarks.minilm.labels import RATES, Labelled

Ints = NDArray[np.int64]

CLS, SEP, PAD = 101, 102, 0
"""Special tokens of every uncased BERT vocabulary."""

WINDOW = 510
"""Tokens of a text that the encoder reads at once, special tokens aside."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """``rank`` of the change of every linear layer, ``embedding_rank`` of the word embeddings'; 0 leaves them alone.

    ``whole`` trains every weight instead: what the head is measured against, far too large to ship.
    """

    rank: int = 8
    embedding_rank: int = 4
    epochs: float = 3.0
    batch_tokens: int = 8192
    learning_rate: float = 1e-3
    seed: int = 0
    whole: bool = False


class LowRank(nn.Module):
    """W + up down."""

    def __init__(self, weight: torch.Tensor, rank: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.randn(rank, weight.shape[1], device=weight.device) / rank**0.5)
        self.up = nn.Parameter(torch.zeros(weight.shape[0], rank, device=weight.device))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """The changed weight."""
        return weight + self.up @ self.down


def adapt(model: Any, recipe: Recipe) -> None:
    """Make ``model`` (BertForTokenClassification) trainable where the recipe says so."""
    torch.manual_seed(recipe.seed)
    model.requires_grad_(recipe.whole)
    nn.init.zeros_(model.classifier.weight)
    nn.init.zeros_(model.classifier.bias)
    model.classifier.requires_grad_(True)
    if recipe.whole:
        return
    if recipe.rank:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.endswith("bias") or "LayerNorm" in name or name.startswith("classifier"))
        for layer in [one for one in model.bert.encoder.modules() if isinstance(one, nn.Linear)]:
            parametrize.register_parametrization(layer, "weight", LowRank(layer.weight, recipe.rank))
    if recipe.embedding_rank:
        words = model.bert.embeddings.word_embeddings
        parametrize.register_parametrization(words, "weight", LowRank(words.weight, recipe.embedding_rank))


def export(model: Any) -> dict[str, NDArray[np.float16]]:
    """The head as ``pipeline.models.heads`` reads it."""
    made: dict[str, torch.Tensor] = {}
    for name, module in model.named_modules():
        if parametrize.is_parametrized(module, "weight"):
            change = module.parametrizations.weight[0]
            # Of one size, so that neither leaves the range of half precision.
            scale = (change.down.norm(dim=1) / change.up.norm(dim=0).clamp_min(1e-12)).sqrt().clamp(1e-4, 1e4)
            made[f"{name}.weight.up"] = change.up * scale
            made[f"{name}.weight.down"] = change.down / scale[:, None]
    made |= {
        name: one for name, one in model.named_parameters() if one.requires_grad and "parametrizations" not in name
    }
    return {name: one.detach().cpu().half().numpy() for name, one in made.items()}


def train(model: Any, data: Labelled, recipe: Recipe, report: Callable[[str], None]) -> None:
    """Cross-entropy against the share of the rates at which the teacher keeps a token: ranks, and is calibrated."""
    device, cuda = model.device, model.device.type == "cuda"
    steps = max(1, round(recipe.epochs * len(list(batches(data, recipe, 0)))))
    trained = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(trained, recipe.learning_rate, weight_decay=0.01, fused=cuda)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, steps, pct_start=0.1)
    begun, seen, losses = time.monotonic(), 0, []
    for step, (ids, mask, wanted) in zip(range(steps), _endless(data, recipe), strict=False):
        with torch.autocast(device.type, torch.bfloat16, enabled=cuda):
            logits = model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits.float()
        inside = mask[:, 2:].to(device)  # a token of the text has another behind it: the next, or [SEP]
        keep = (logits[..., 1] - logits[..., 0])[:, 1:-1][inside]
        loss = nn.functional.binary_cross_entropy_with_logits(keep, wanted.to(device))
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        seen += int(mask.sum())
        losses.append(loss.detach())
        if step % 100 == 99 or step + 1 == steps:
            mean, pace = float(torch.stack(losses).mean()), seen / (time.monotonic() - begun)
            left = (time.monotonic() - begun) / (step + 1) * (steps - step - 1)
            report(f"step {step + 1}/{steps}: loss {mean:.4f}, {pace:,.0f} tokens/s, {left:.0f} s left")
            losses = []


Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def batches(data: Labelled, recipe: Recipe, epoch: int) -> Iterator[Batch]:
    """Ids [rows, tokens] with special tokens, what is no padding, and the labels laid end to end; shuffled."""
    rng = np.random.default_rng([recipe.seed, epoch])
    begins, lengths = windows(data, rng)
    # Of like length in a batch; a little noise so that each epoch has other neighbours.
    order = np.argsort(lengths + rng.uniform(0, 32, len(lengths)))
    padded = lengths[order] + 2
    groups: list[list[int]] = [[]]
    for row, length in zip(order.tolist(), padded.tolist(), strict=True):
        if groups[-1] and length * (len(groups[-1]) + 1) > recipe.batch_tokens:
            groups.append([])
        groups[-1].append(row)
    shares = targets(data.labels)
    for number in rng.permutation(len(groups)).tolist():
        rows = np.array(groups[number])
        yield _batch(data.ids, shares, begins[rows], lengths[rows])


def windows(data: Labelled, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """Where in ``data.ids`` the epoch's rows begin, and their lengths: long passages are cut, each time elsewhere."""
    starts = np.cumsum(data.lengths) - data.lengths
    begins, lengths = [], []
    for start, length in zip(starts.tolist(), data.lengths.tolist(), strict=True):
        first = length if length <= WINDOW else int(rng.integers(1, WINDOW + 1))
        edges = [0, *range(first, length, WINDOW), length]
        begins += [start + edge for edge in edges[:-1]]
        lengths += [end - begin for begin, end in pairwise(edges)]
    return np.array(begins), np.array(lengths)


def targets(labels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The share of the rates at which each token is kept."""
    shares: NDArray[np.float32] = np.mean([labels >> bit & 1 for bit in range(len(RATES))], axis=0, dtype=np.float32)
    return shares


def _batch(tokens: NDArray[np.int32], shares: NDArray[np.float32], begins: Ints, lengths: Ints) -> Batch:
    place = np.arange(int(lengths.max()))
    inside = place < lengths[:, None]
    flat = (begins[:, None] + place)[inside]
    ids = np.full((len(lengths), len(place) + 2), PAD, dtype=np.int64)
    ids[:, 0] = CLS
    ids[:, 1:-1][inside] = tokens[flat]
    ids[np.arange(len(lengths)), lengths + 1] = SEP
    mask = np.arange(len(place) + 2) < lengths[:, None] + 2
    return torch.from_numpy(ids), torch.from_numpy(mask), torch.from_numpy(shares[flat])


def _endless(data: Labelled, recipe: Recipe) -> Iterator[Batch]:
    epoch = 0
    while True:
        yield from batches(data, recipe, epoch)
        epoch += 1
