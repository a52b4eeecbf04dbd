"""Run with TRITON_INTERPRET=1: how far our kernels are from the same written out in double precision.

A process of its own, as Triton must be told before it is imported. Takes cases as JSON ``[kernel, arguments...]`` and
prints, for each, the largest difference of two calls in a row and what is left in the counters.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import row_by_row  # noqa: F401  the kernels of other passes
import torch
from transformers import AutoConfig, AutoModel

from pipeline.generation import matching
from pipeline.generation.launched import unlike
from pipeline.generation.maxgram import PADDING, propose
from pipeline.passes import few, packable
from pipeline.passes.between import gate, norm, turn
from pipeline.passes.built import built
from pipeline.passes.compiling import hasten
from pipeline.passes.few import attend_few, attend_new
from pipeline.passes.fused import Fused
from pipeline.passes.heads import reads_logits_once
from pipeline.passes.joined import join
from pipeline.passes.packable import can_pack, can_step, reads_wide
from pipeline.passes.packed import PackedPasses, Step, read_packed
from pipeline.passes.products import add_product, product, stream_of
from pipeline.passes.sums import add
from pipeline.passes.surprisal import surprisal

Off = tuple[float, int]


def written_out(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, first: torch.Tensor, stored: list[int], new: int
) -> torch.Tensor:
    """Token by token."""
    found, group = torch.empty_like(query), query.shape[1] // keys.shape[1]
    for row, before in enumerate(stored):
        for token in range(new):
            seen = slice(int(first[row]), int(first[row]) + before + token + 1)
            key, value = (one[seen].repeat_interleave(group, 1).double() for one in (keys, values))
            asked = query[row * new + token].double()
            weights = (torch.einsum("hd,nhd->hn", asked, key) * 0.2).softmax(-1)
            found[row * new + token] = torch.einsum("hn,nhd->hd", weights, value)
    return found


def attention(new: int, heads: int, key_heads: int, size: int, stored: list[int]) -> Off:
    """Attention alone."""
    torch.manual_seed(0)
    rows, room = len(stored), max(stored) + new + 3
    keys, values = (torch.randn(rows * room, key_heads, size) for _ in range(2))
    query = torch.randn(heads, rows * new, size).transpose(0, 1)  # as projections leave it
    first, arrived = (torch.arange(rows) * room).flip(0), torch.zeros(rows * heads, dtype=torch.int32)
    expected = written_out(query, keys, values, first, stored, new)
    found = [attend_few(query, keys, values, first, torch.tensor(stored), arrived, new, 0.2) for _ in range(2)]
    return max(float((one - expected).abs().max()) for one in found), int(arrived.abs().sum())


def turned(states: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    """Rotary embeddings of ``[tokens, heads, size]``, the first half of a head turned with its second."""
    one, two = states.chunk(2, -1)
    return states * cosines[:, None] + torch.cat([-two, one], -1) * sines[:, None]


def turning(new: int, heads: int, key_heads: int, size: int, stored: list[int]) -> Off:
    """Attention from what was projected, which stores keys and values; nothing else of the store is touched."""
    torch.manual_seed(0)
    rows, room = len(stored), max(stored) + new + 3
    keys, values = (torch.randn(rows * room, key_heads, size) for _ in range(2))
    projected = torch.randn(rows * new, (heads + 2 * key_heads) * size)
    angles = torch.rand(rows * new, size // 2) * 6
    turns = torch.cat([angles.cos()] * 2, -1), torch.cat([angles.sin()] * 2, -1)
    first, arrived = (torch.arange(rows) * room).flip(0), torch.zeros(rows * heads, dtype=torch.int32)
    query, key, value = torch.split(projected.view(rows * new, -1, size), [heads, key_heads, key_heads], 1)
    places = (first[:, None] + torch.tensor(stored)[:, None] + torch.arange(new)).flatten()
    all_keys, all_values = keys.clone(), values.clone()
    all_keys[places], all_values[places] = turned(key, *turns), value
    expected = written_out(turned(query, *turns), all_keys, all_values, first, stored, new).flatten(1)
    differences = []
    for _ in range(2):
        found = attend_new(projected, turns, keys, values, first, torch.tensor(stored), arrived, new, heads, 0.2)
        differences += [found - expected, keys - all_keys, values - all_values]
    return max(float(one.abs().max()) for one in differences), int(arrived.abs().sum())


def products(tokens: int, features: int, depth: int, around: str) -> Off:
    """A product with what is named ``around`` it; where it is added to a stream, also what the next norm needs."""
    torch.manual_seed(0)
    given, bias = torch.randn(tokens, depth), torch.randn(features)
    norm, next_norm = torch.rand(depth) + 0.5, torch.rand(features) + 0.5
    paired = "gate" in around
    weight = torch.randn(features * (1 + paired), depth) / depth**0.5
    states, arrived = torch.randn(tokens, features), torch.zeros(-(-features // 16), dtype=torch.int32)
    wide = normed(given, norm) if "norm" in around else given.double()
    expected = wide @ weight.double().T + (bias if "bias" in around else 0)
    if paired:
        gate, up = expected.chunk(2, -1)
        expected = torch.nn.functional.silu(gate) * up
    differences = []
    for _ in range(2):
        if "added" in around:
            to = stream_of(torch.arange(tokens), states, next_norm, 1e-5)
            to = add_product(given, weight, arrived, to, next_norm, 1e-5)
            scales = (to.squares.sum(0) / features + to.epsilon).rsqrt()
            sums = states + expected
            differences += [to.states - sums, to.weighted * scales[:, None] - normed(sums, next_norm)]
        else:
            source = stream_of(torch.arange(tokens), given, norm, 1e-5) if "norm" in around else given
            found = product(source, weight, arrived, bias if "bias" in around else None, paired)
            differences.append(found - expected)
    return max(float(one.abs().max()) for one in differences), int(arrived.abs().sum())


def normed(states: torch.Tensor, norm: torch.Tensor) -> torch.Tensor:
    """RMS norm, in double precision."""
    wide = states.double()
    return wide * (wide.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * norm


def model(kind: str) -> Off:
    """Hidden states of a model of transformers', read in two steps by kernels alone. What it is made of must fit."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": 100, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 6,
        "num_key_value_heads": 2, "head_dim": 16,
    }  # fmt: skip
    trunk: Any = AutoModel.from_config(AutoConfig.for_model(kind, **sizes)).eval()
    for name, weights in trunk.named_parameters():
        torch.nn.init.normal_(weights, 1.0 if "norm" in name else 0.0, 0.2)
    ids = torch.randint(100, (2, 9))
    expected = trunk(input_ids=ids).last_hidden_state.double()
    for layer in trunk.layers:
        join(layer)
    layers = built(trunk)
    if layers is None:
        return -1.0, 0
    made = Fused(layers)
    stores = [torch.zeros(40, 2, 16) for _ in range(4)]
    first, arrived = torch.tensor([20, 3]), torch.zeros(99, dtype=torch.int32)
    found = []
    for begin, end in ((0, 6), (6, 9)):
        stored, new = torch.full((2,), begin), end - begin
        step = Step(first, stored, new, arrived, stores[0::2], stores[1::2])
        at = torch.arange(begin, end).repeat(2)
        found.append(made.read(ids[:, begin:end].flatten(), at, step).view(2, new, -1))
    return float((torch.cat(found, 1) - expected).abs().max()), int(arrived.abs().sum())


def around(tokens: int, heads: int, key_heads: int, size: int, stored: bool) -> Off:
    """What stands between products: norm, turning (and storing, where nothing else of the store is touched), gate."""
    torch.manual_seed(0)
    width = (heads + 2 * key_heads) * size
    states, weights = torch.randn(tokens, width), torch.rand(width) + 0.5
    off = [norm(states, weights, 1e-5) - normed(states, weights)]
    opened, through = states[:, : width // 2 * 2].chunk(2, -1)
    off.append(gate(states[:, : width // 2 * 2].contiguous()) - torch.nn.functional.silu(opened) * through)

    angles = torch.rand(tokens, size // 2) * 6
    turns = torch.cat([angles.cos()] * 2, -1), torch.cat([angles.sin()] * 2, -1)
    query, key, value = torch.split(states.view(tokens, heads + 2 * key_heads, size), [heads, key_heads, key_heads], 1)
    query, key, value = turned(query, *turns), turned(key, *turns), value.clone()
    store = None
    if stored:
        keys, values, slots = *(torch.randn(tokens + 5, key_heads, size) for _ in range(2)), torch.randperm(tokens) + 3
        store, expected = (slots, keys, values), (keys.clone(), values.clone())
        expected[0][slots], expected[1][slots] = key, value
        key, value = expected
    found = turn(states.clone(), turns, heads, size, store)
    off += [one - other for one, other in zip(found, (query, key, value), strict=True)]
    return max((float(one.abs().max()) for one in off if one.numel()), default=0.0), 0


def wide(kind: str) -> Off:
    """Hidden states of whole texts and of what comes after stored ones, read by libraries and kernels between them, as
    soon as they were seen to say the same; and of many new tokens of each row."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": 100, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 6,
        "num_key_value_heads": 2, "head_dim": 16, "sliding_window": None,
    }  # fmt: skip
    config = AutoConfig.for_model(kind, **sizes)
    trunk: Any = AutoModel.from_config(config, attn_implementation="sdpa").eval()
    for name, weights in trunk.named_parameters():
        torch.nn.init.normal_(weights, 1.0 if "norm" in name else 0.0, 0.2)
    ids = torch.randint(100, (3, 20))
    expected = trunk(input_ids=ids).last_hidden_state
    if not reads_wide(trunk):
        return -1.0, 0
    whole = read_packed(trunk, ids.flatten(), np.array([20] * 3), range(1000)).last_hidden_state[0]
    passes, rows, stored = PackedPasses(trunk, 3), np.array([2, 0, 1]), np.array([7, 2, 5])
    passes.reserve(60, 20)
    passes.place(np.arange(3), np.array([0, 20, 40]))
    passes.run(rows, torch.cat([ids[row, :many] for row, many in zip(rows, stored, strict=True)]), stored * 0, stored)
    slots, begins = torch.from_numpy(rows), torch.from_numpy(stored)
    columns = begins[:, None] + torch.arange(9)
    found = passes.read_on(slots, ids[slots[:, None], columns], begins, 20)
    off = [whole - expected.flatten(0, 1), found - expected[slots[:, None], columns].flatten(0, 1)]
    return max(float(one.abs().max()) for one in off), int(passes._arrived.abs().sum())


def widened(spoilt: bool) -> Off:
    """0.0 where a model is read so, 1.0 where what it says is not what it should."""
    sizes: dict[str, Any] = {
        "vocab_size": 100, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2,
    }  # fmt: skip
    config = AutoConfig.for_model("llama", **sizes)
    trunk: Any = AutoModel.from_config(config, attn_implementation="sdpa").eval()
    spoil = mock.patch("pipeline.passes.between.gate", lambda given: given[:, ::2].contiguous())
    with spoil if spoilt else contextlib.nullcontext():
        return float(not reads_wide(trunk)), 0


def wired(spoilt: bool) -> Off:
    """Whether steps of few tokens of a model are read by kernels once they were seen to say the same: 0.0, or 1.0 where
    they are not. In float32, as the interpreter cannot multiply bfloat16."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": 100, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16,
    }  # fmt: skip
    config = AutoConfig.for_model("llama", **sizes)
    trunk: Any = AutoModel.from_config(config, attn_implementation="sdpa").eval()
    for weights in trunk.parameters():
        torch.nn.init.normal_(weights, 0.0, 0.2)
    ids = torch.ones(2, 9, dtype=torch.int64)
    with mock.patch.object(torch, "compile", partial(torch.compile, backend="eager")):
        assert hasten(trunk, trunk.layers, lambda: trunk(input_ids=ids, use_cache=False))
        log2e = 0.3 if spoilt else few.LOG2E
        with mock.patch.object(few, "LOG2E", log2e), mock.patch.object(packable, "_FUSED", torch.float32):
            assert can_pack(trunk) and can_step(trunk, PackedPasses)
        passes = PackedPasses(trunk, 2)
        passes.reserve(80, 40)
        passes.place(np.arange(2), np.array([0, 40]))
        slots, stored = torch.arange(2), torch.zeros(2, dtype=torch.int64)
        read: list[int] = []
        with mock.patch.object(Fused, "read", lambda self, ids, *_: read.append(len(ids))):
            passes.read_on(slots, ids[:, :8], stored, 8)
            passes.read_on(slots, ids[:, :9], stored, 9)
    return float(read != [16]), 0


def nats(rows: int, vocabulary: int, kind: str, cap: float | None, around: str) -> Off:
    """What targets cost. ``around``: logits of minus infinity, among others, in front, behind, or everywhere but at the
    target; logits far from 0; targets that begin anywhere."""
    torch.manual_seed(0)
    logits, targets = torch.randn(rows, vocabulary) * 4, torch.randint(vocabulary, (rows + 1,))[1:]
    if "far" in around:
        logits += torch.where(torch.arange(rows)[:, None] % 2 > 0, 30000, -30000)
    place = torch.arange(vocabulary).expand(rows, -1)
    closed = torch.zeros_like(place, dtype=torch.bool)
    for word, some in (
        ("among", place % 3 > 0),
        ("front", place < 9000),
        ("behind", place > 100),
        ("else", place >= 0),
    ):
        closed |= some if word in around else closed
    logits.masked_fill_(closed.scatter(1, targets[:, None], False), -torch.inf)
    logits = logits.to(getattr(torch, kind))
    wide = logits.double() if cap is None else cap * torch.tanh(logits.double() / cap)
    expected = wide.logsumexp(-1) - wide.gather(-1, targets[:, None])[:, 0]
    found = surprisal(logits, targets, cap)
    assert found.dtype == torch.float32 and not found.isnan().any()
    return max((found - expected).abs().tolist(), default=0.0), 0


def no_number() -> Off:
    """Logits that are no numbers are not passed over in silence: how many rows have none."""
    logits = torch.randn(4, 5000)
    logits[0, 7] = logits[1, 4999] = torch.nan
    logits[2] = -torch.inf
    return float(4 - 1 - surprisal(logits, torch.tensor([9, 9, 9, 9])).isnan().sum()), 0


def head(vocabulary: int, cap: float | None, spoilt: bool) -> Off:
    """0.0 where logits of a head with a bias are read so, 1.0 where what comes of it is not what it should."""
    torch.manual_seed(0)
    linear = torch.nn.Linear(16, vocabulary)
    spoil = mock.patch("pipeline.passes.surprisal.surprisal", lambda logits, *_: surprisal(logits[:, :-9], *_))
    with spoil if spoilt else contextlib.nullcontext():
        return float(not reads_logits_once(linear, cap)), 0


def rounds(spoilt: bool) -> Off:
    """0.0 where what a round does besides passes is what torch does, 1.0 where it is not."""
    with mock.patch.object(matching, "LONGEST", 3) if spoilt else contextlib.nullcontext():
        return float(bool(unlike(torch.device("cpu")))), 0


def matches(rows: int, width: int, words: int, count: int, chunk: int) -> Off:
    """Copies of what followed the last tokens of lines of any length, in which there are so many ``words``, or what a
    table has: how many lie elsewhere, and what is left in the counters."""
    drawn = torch.Generator().manual_seed(0)
    length = PADDING + torch.randint(1, width - count + 1, (rows + 3,), generator=drawn)
    tokens = torch.randint(0, words, (rows + 3, PADDING + width), generator=drawn)
    tokens[:, :PADDING] = -1
    slots = torch.randperm(rows + 3, generator=drawn)[:rows]
    places = length[slots][:, None] + torch.arange(count)
    expected, scratch = tokens.clone(), (torch.zeros(rows, dtype=torch.int64), torch.zeros(rows, dtype=torch.int32))
    chains = torch.randint(0, words, (words, count + 2), generator=drawn, dtype=torch.int32)
    expected[slots[:, None], places] = propose(tokens[slots], length[slots], count, chains)
    known = torch.stack([length, length], 1)[slots]
    with mock.patch.object(matching, "_CHUNK", chunk):
        for _ in range(2):
            matching.copy_on(tokens, slots, known[:, 0], count, scratch, chains)
    return float((tokens != expected).sum()), sum(int(one.abs().sum()) for one in scratch)


def sums(rows: int, columns: int, rank: int) -> Off:
    """Weights and low-rank ones, as a part of a larger product; and how much else of that is written."""
    torch.manual_seed(0)
    weight, up, down = torch.randn(rows, columns), torch.randn(rows, rank), torch.randn(rank, columns)
    whole = torch.full((rows + 2, columns), float("inf"))
    add(weight, up, down, 0.5, whole[1:-1])
    found = whole[1:-1] - (weight.double() + 0.5 * up.double() @ down.double())
    return float(found.abs().max()), int(whole[[0, -1]].isfinite().sum())


KERNELS: dict[str, Callable[..., Off]] = {
    "few": attention, "turning": turning, "products": products, "model": model, "wired": wired, "around": around,
    "wide": wide, "widened": widened, "nats": nats, "no number": no_number, "head": head, "rounds": rounds,
    "matches": matches, "sums": sums,
}  # fmt: skip

if __name__ == "__main__":
    with torch.inference_mode():
        print(json.dumps([KERNELS[kernel](*rest) for kernel, *rest in json.loads(sys.argv[1])]))
