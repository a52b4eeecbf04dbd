"""The head: low-rank changes of an encoder (LoRA, arXiv 2106.09685), its biases and norms, and a two-label layer."""

from __future__ import annotations

import math
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

TOLD = 50
"""Steps between two lines on how it goes."""

WARM_UP = 20
"""Steps."""

SPREAD = 0.15
"""Of what a change starts from: with it, a step of the rate moves a weight by about 2% of the weights' own spread."""

CLS, SEP, PAD = 101, 102, 0
"""Special tokens of every uncased BERT vocabulary."""

WINDOW = 510
"""Tokens of a text that the encoder reads at once, special tokens aside."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """``rank`` of the change of every linear layer, ``embedding_rank`` of the word embeddings'; 0 leaves them alone.

    ``whole`` trains every weight instead: what the head is measured against, far too large to ship. The same recipe
    and data give the same head, up to rounding on a GPU: nothing depends on the clock.
    """

    rank: int = 8
    embedding_rank: int = 4
    epochs: float = 5.0
    batch_tokens: int = 65_536
    learning_rate: float = 2e-3
    seed: int = 0
    whole: bool = False


class LowRank(nn.Module):
    """W + up down."""

    def __init__(self, weight: torch.Tensor, rank: int) -> None:
        super().__init__()
        self.down = nn.Parameter(SPREAD * torch.randn(rank, weight.shape[1], device=weight.device))
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


def train(model: Any, data: Labelled, recipe: Recipe, tell: Callable[[str], None]) -> None:
    """Cross-entropy against the share of the rates at which the teacher keeps a token: ranks, and is calibrated.

    ``tell`` is called every ``TOLD`` steps with a line on how it goes.
    """
    device, cuda = model.device, model.device.type == "cuda"
    corpus = Corpus.of(data, device)
    steps = max(1, round(recipe.epochs * len(plan(data, recipe, 0))))
    trained = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(trained, recipe.learning_rate, weight_decay=0.01, fused=cuda)
    begun = time.monotonic()
    seen, total = 0, torch.zeros((), device=device)
    for step, (begins, lengths) in zip(range(steps), _endless(data, recipe), strict=False):
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * min((step + 1) / WARM_UP, (1 + math.cos(math.pi * step / steps)) / 2)
        with torch.autocast(device.type, torch.bfloat16, enabled=cuda):
            loss = corpus.loss(model, begins, lengths)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        # No step but those that tell asks the device for a number: it would wait for it, and stand still meanwhile.
        total = 0.95 * total + 0.05 * loss.detach()
        seen += int(lengths.sum())
        if step + 1 == steps or (step + 1) % TOLD == 0:
            mean = float(total) / (1 - 0.95 ** (step + 1))
            tell(f"step {step + 1}/{steps}: loss {mean:.4f}, {seen / (time.monotonic() - begun):,.0f} tokens/s")


@dataclass(frozen=True, slots=True)
class Corpus:
    """All tokens and their targets on the device: a step sends only where its rows begin."""

    ids: torch.Tensor
    shares: torch.Tensor

    @classmethod
    def of(cls, data: Labelled, device: torch.device) -> Corpus:
        """``data`` on ``device``."""
        shares = np.mean([data.labels >> bit & 1 for bit in range(len(RATES))], axis=0, dtype=np.float32)
        return cls(torch.from_numpy(data.ids.astype(np.int64)).to(device), torch.from_numpy(shares).to(device))

    def loss(self, model: Any, begins: Ints, lengths: Ints) -> torch.Tensor:
        """The mean over the tokens of these rows."""
        sent = torch.from_numpy(np.stack([begins, lengths])).to(self.ids.device, non_blocking=True)
        starts, sizes = sent[0][:, None], sent[1][:, None]
        place = torch.arange(int(lengths.max()), device=self.ids.device)
        inside = place < sizes
        flat = (starts + place).clamp_(max=len(self.ids) - 1)
        wide = nn.functional.pad(self.ids[flat].masked_fill(~inside, PAD), (1, 1), value=PAD)
        wide[:, 0] = CLS
        wide.scatter_(1, sizes + 1, SEP)
        mask = torch.arange(wide.shape[1], device=self.ids.device) < sizes + 2
        logits = model(input_ids=wide, attention_mask=mask).logits.float()[:, 1:-1]
        keep = logits[..., 1] - logits[..., 0]
        losses = nn.functional.binary_cross_entropy_with_logits(keep, self.shares[flat], reduction="none")
        return (losses * inside).sum() / int(lengths.sum())


def plan(data: Labelled, recipe: Recipe, epoch: int) -> list[tuple[Ints, Ints]]:
    """Where the rows of each step begin, and their lengths: of like length in a step, the steps shuffled."""
    rng = np.random.default_rng([recipe.seed, epoch])
    begins, lengths = windows(data, rng)
    # A little noise so that each epoch has other neighbours.
    order = np.argsort(lengths + rng.uniform(0, 32, len(lengths)))
    groups: list[list[int]] = [[]]
    for row in order.tolist():
        if groups[-1] and (lengths[row] + 34) * (len(groups[-1]) + 1) > recipe.batch_tokens:
            groups.append([])
        groups[-1].append(row)
    return [(begins[groups[one]], lengths[groups[one]]) for one in rng.permutation(len(groups)).tolist()]


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


def _endless(data: Labelled, recipe: Recipe) -> Iterator[tuple[Ints, Ints]]:
    epoch = 0
    while True:
        yield from plan(data, recipe, epoch)
        epoch += 1
