"""The autoencoder: a causal LM whose low-rank weights make it an encoder, and which decodes without them.

A span becomes slots (equation 1 of the paper: last hidden states at memory tokens), through one linear map that begins
as the identity at the size of embeddings; the frozen model reads them as if they were embeddings, then ``[AE]`` and the
span itself, or ``[LM]`` and what comes after it (equations 2 and 3).
"""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from pipeline.memory.lowrank import adapt
from pipeline.memory.spans import reading
from pipeline.passes.packable import attends_plainly
from pipeline.passes.transfers import on_device
from pipeline.passes.wide import Wide
from schemas.memory import EncoderSpec, Layout

Tag = Literal["AE", "LM", "FT"]
TAGS: tuple[Tag, ...] = ("AE", "LM", "FT")
"""What the decoder is told to do with slots: repeat them, go on, or answer what is asked."""

_CAUSAL = "contextmill_causal"
"""transformers' own attention, under a name for which no mask is made: every token attends to those before it."""

AttentionInterface.register(_CAUSAL, sdpa_attention_forward)

SUPPOSED = 8
"""Slots of the usual deviation, beside those that show what slots are like."""


class Autoencoder(nn.Module):
    """Over ``model``, a causal LM of transformers', which is this module's own from now on.

    Its weights are frozen. What is trained is float32: low-rank weights (or a trunk of the encoder's own, with rank 0),
    memory tokens, tags, the map of slots, and what stands ``first``: models look at their first place when they look
    for nothing (attention sinks, Xiao et al. 2023), so that what a span or its slots say there is hard to read. Where
    the model reads text alone it is behind ``start``, tokens that its tokenizer puts before any (``target.start_of``).

    What the model says of a token is its head times a state (``target.check_head``). Raises ``ValueError`` for targets
    that it lacks.
    """

    def __init__(self, model: Any, spec: EncoderSpec, start: Sequence[int] = ()) -> None:
        super().__init__()
        model.requires_grad_(False)
        self.spec, self.model = spec, model
        self.embed: Any = model.get_input_embeddings()
        self.decoder: Any = model.get_decoder()
        self.switch = adapt(self.decoder, spec.rank, spec.alpha, spec.targets) if spec.rank else None
        self.encoder: Any = self.decoder if self.switch else copy.deepcopy(self.decoder).float().requires_grad_(True)
        if self.encoder is not self.decoder:  # which is given what the frozen model's own table says
            self.encoder.get_input_embeddings().requires_grad_(False)
        table = self.embed.weight
        with torch.no_grad():  # as the model reads them: Gemma has them larger than they lie in the table
            words = self.embed(torch.arange(len(table), device=table.device)).float()
        size, spread = table.shape[1], float(words.std())
        self.scale = float(words.square().mean().sqrt())
        del words
        memories = {"interleaved": 1, "appended": spec.slots, "pooled": 0}[spec.layout]
        self.memory = nn.Parameter(torch.randn(memories, size, device=table.device) * spread)
        self.tags = nn.Parameter(torch.randn(len(TAGS), size, device=table.device) * spread)
        self.first = nn.Parameter(torch.randn(1, size, device=table.device) * spread)
        self.map = nn.Linear(size, size, bias=False, device=table.device)
        nn.init.eye_(self.map.weight)
        self.typical: torch.Tensor
        self.register_buffer("typical", torch.stack([torch.zeros(size), torch.ones(size)]).to(table.device))
        self.start: torch.Tensor
        self.register_buffer("start", torch.tensor(start, dtype=torch.long, device=table.device), persistent=False)
        self.wide: Wide | None = None
        """Reads the encoder's layers where that was seen to say the same (``widening``)."""

    def hasten(self, dynamic: bool = False) -> None:
        """Compile what a training reads with, for each shape that comes, or for any: one program serves all layers of a
        trunk, in a thirtieth of the time that the whole would take."""
        for one in self._compilable():
            one.compile(dynamic=dynamic)

    def slow_down(self) -> None:
        """As before ``hasten``."""
        for one in self._compilable():
            one._compiled_call_impl = None

    def _compilable(self) -> list[Any]:
        return [one for trunk in {self.encoder, self.decoder} for one in getattr(trunk, "layers", [trunk])]

    @torch.no_grad()
    def resize(self, found: torch.Tensor) -> None:
        """Slots like those that were ``found`` get the size of embeddings: the map was to leave them as they are."""
        self.map.weight.mul_(self.scale / found.float().square().mean().sqrt())

    @torch.no_grad()
    def describe(self, found: torch.Tensor) -> None:
        """Slots are like those that were ``found`` ``[n, d]``: what is ``typical`` of them, mean and deviation of each
        number ``[2, d]``, as float16 has them.

        Three quarters of a slot may be what all have in common, most of it in a few numbers that are hundreds of times
        as large as the others: the bits of a stored slot are for the rest (``packing``). A few slots may hardly differ
        in a number that others do differ in, and one number would take all bits of its group: deviations are drawn
        towards the usual one, as if ``SUPPOSED`` slots more had it."""
        some, half = found.float(), torch.finfo(torch.float16)
        spread = some.var(0, correction=0)
        usual = spread.median()
        usual = torch.where(usual == 0, some.square().mean(), usual)  # a single slot differs from none
        deviation = ((len(some) * spread + SUPPOSED * usual) / (len(some) + SUPPOSED)).sqrt()
        known = some.mean(0).clamp(half.min, half.max), deviation.clamp(half.tiny, half.max)
        self.typical.copy_(torch.stack(known).half())

    @property
    def common(self) -> torch.Tensor:
        """What all slots that are asked about have, ``[3, d]``: ``[FT]`` behind them, and what is ``typical``."""
        return torch.cat([self.tags[TAGS.index("FT")][None].detach(), self.typical])

    def encode(self, ids: torch.Tensor, slots: int) -> torch.Tensor:
        """Spans ``[rows, n]`` -> ``[rows, slots, d]``."""
        order, places, ends = _reading(ids.shape[1], slots, self.spec.layout, ids.device)
        words = self.embed(ids)
        if self.spec.layout != "pooled":
            memory = self.memory[:slots].to(words.dtype).expand(slots, -1)
            known = torch.cat([words, memory.expand(len(ids), -1, -1)], 1)
            words = known[:, order]
        hidden = self.read(self.behind(words))[:, 1:]
        found = means(hidden, ends.expand(len(ids), -1)) if self.spec.layout == "pooled" else hidden[:, places]
        return cast("torch.Tensor", self.map(found.to(self.map.weight.dtype)))

    def behind(self, words: torch.Tensor) -> torch.Tensor:
        """``words`` ``[rows, n, d]`` behind what stands first, ``[rows, n + 1, d]``."""
        return torch.cat([self.first.to(words.dtype).expand(len(words), 1, -1), words], 1)

    def told(self, slots: torch.Tensor, tags: torch.Tensor) -> torch.Tensor:
        """What the decoder reads before it says anything, ``[rows, k + 2, d]``: ``slots`` ``[rows, k, d]`` behind what
        stands first, and the tag ``[rows]`` (its place in ``TAGS``)."""
        return self.behind(torch.cat([slots, self.tags[tags][:, None].to(slots.dtype)], 1))

    def read(self, words: torch.Tensor) -> torch.Tensor:
        """What the encoder's last layer says at each of these embeddings ``[rows, n, d]``."""
        return self._read(self.encoder, words, encoding=True)

    def say(self, words: torch.Tensor) -> torch.Tensor:
        """What the frozen decoder's last layer says at them."""
        return self._read(self.decoder, words, encoding=False)

    def states(self, slots: torch.Tensor, tags: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Hidden states ``[rows, m, d]`` from which the tokens ``ids`` ``[rows, m]`` are said, each after those before
        it, behind ``slots`` ``[rows, k, d]`` and the tag ``[rows]`` (its place in ``TAGS``)."""
        words = self.embed(ids[:, :-1])
        hidden = self.say(torch.cat([self.told(slots, tags).to(words.dtype), words], 1))
        return hidden[:, slots.shape[1] + 1 :]

    def text_states(self, ids: torch.Tensor) -> torch.Tensor:
        """Hidden states ``[rows, n, d]`` of the frozen model over text ``[rows, n]``, which stands behind ``start``."""
        text = torch.cat([self.start.expand(len(ids), -1), ids], 1)
        return self.say(self.embed(text))[:, len(self.start) :]

    def prompt(self, runs: Sequence[Sequence[int]], blocks: Sequence[torch.Tensor], tag: Tag = "FT") -> torch.Tensor:
        """What the decoder reads of a prompt, ``[n, d]``: a block of slots ``[k, d]`` behind each run of token ids but
        the last, and the tag behind the last block; without blocks there is none. Before slots that are to be repeated
        or gone on with something stands first, what is asked has its template there. ``asking.asked`` makes runs."""
        device, kept = self.tags.device, self.embed.weight.dtype
        ids = np.fromiter(itertools.chain.from_iterable(runs), np.int64)
        words = torch.split(self.embed(on_device(ids, device)), [len(run) for run in runs])
        pieces = [piece.to(kept) for pair in zip(words, blocks, strict=False) for piece in pair]
        told = [self.tags[TAGS.index(tag)][None].to(kept)] if blocks else []
        first = [self.first.to(kept)] if blocks and tag != "FT" else []
        return torch.cat([*first, *pieces, *told, words[-1]])

    def trained(self) -> dict[str, nn.Parameter]:
        """What is trained, by name."""
        return {name: one for name, one in self.named_parameters() if one.requires_grad}

    def kept(self) -> dict[str, torch.Tensor]:
        """What an encoder's file has: that, and what is typical of its slots."""
        return {**self.trained(), "typical": self.typical}

    def _read(self, trunk: Any, words: torch.Tensor, encoding: bool) -> torch.Tensor:
        with unmasked(trunk), self.switch.turned(encoding) if self.switch else nullcontext():
            return cast("torch.Tensor", trunk(inputs_embeds=words, use_cache=False).last_hidden_state)


@contextmanager
def unmasked(trunk: Any) -> Iterator[None]:
    """In here ``trunk`` looks for no mask, where it would find that it needs none: it asks the device, which must have
    done all that it was given before it answers, and cannot be asked while it is recorded."""
    if not attends_plainly(trunk):  # or it is so already
        yield
        return
    config, before = trunk.config, trunk.config._attn_implementation
    config._attn_implementation = _CAUSAL
    try:
        yield
    finally:
        config._attn_implementation = before


@functools.cache
def _reading(tokens: int, slots: int, layout: Layout, device: torch.device) -> tuple[torch.Tensor, ...]:
    """What ``spans.reading`` says, on the device; kept for good, as recordings go on reading it."""
    how = reading(tokens, slots, layout)
    with torch.inference_mode(False):  # else nothing could be learned through them
        return on_device(how.order, device), on_device(how.places, device), on_device(how.ends, device)


def means(hidden: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """Of runs of tokens that end before ``ends`` ``[rows, k]``: ``[rows, n, d]`` -> ``[rows, k, d]``."""
    sums = torch.nn.functional.pad(hidden.float().cumsum(1), (0, 0, 1, 0))
    begins = torch.nn.functional.pad(ends, (1, 0))[:, :-1]
    there, before = (sums.gather(1, one[..., None].expand(-1, -1, sums.shape[2])) for one in (ends, begins))
    return (there - before) / (ends - begins).clamp(min=1)[..., None]
