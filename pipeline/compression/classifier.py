"""p(keep) of tokens under a token classifier (LLMLingua-2, arXiv 2403.12968, section 4): many texts in one pass.

An encoder reads at most its window. A longer text is read in windows of that length, evenly spread, that overlap by
at least a fifth; each token is scored in the window whose middle is nearest to it. So every token sees at least a
tenth of a window of text on either side wherever there is that much (the paper cuts at sentence ends instead, and
tokens beside a cut see nothing beyond it). Which windows there are follows from the text's length alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.batching import run_packed
from pipeline.passes.compiling import hasten
from pipeline.passes.packable import can_pack, positions_of
from pipeline.passes.packed import read_packed
from pipeline.passes.ragged import ragged
from pipeline.passes.transfers import on_device

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from pipeline.models import LoadedModel

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
Passed = Callable[[int], None]

WINDOW = 2**13
"""Most tokens read at once, however long the model's own window: attention costs their square."""

OVERLAP = 5
"""Neighbouring windows share at least one part in so many: at 4, 2,048 tokens took six windows of 512, not five."""

_ENOUGH = {"cpu": 512, "cuda": 2**15}
"""Tokens in a pass that keep the device busy: from there on less padding is worth more than a larger batch."""


@dataclass(frozen=True, slots=True)
class Windows:
    """Window i is tokens ``begin[i]`` to ``end[i]`` of text ``text[i]``; those from ``first[i]`` to ``last[i]`` count.

    In order of the texts, and within a text of its tokens: laid end to end, what counts is every token once.
    """

    text: Ints
    begin: Ints
    end: Ints
    first: Ints
    last: Ints


def windows_of(lengths: Ints, size: int) -> Windows:
    """Windows of at most ``size`` tokens over texts of these lengths; a text that fits is one window."""
    step = size - size // OVERLAP
    counts = np.where(lengths <= size, 1, 1 + -(-(lengths - size) // max(1, step)))
    text = np.repeat(np.arange(len(lengths)), counts)
    number = np.arange(len(text)) - np.repeat(np.cumsum(counts) - counts, counts)
    slack = np.maximum(0, lengths - size)[text]
    begin = number * slack // np.maximum(1, counts[text] - 1)
    end = np.minimum(begin + size, lengths[text])
    heads, tails = number == 0, number == counts[text] - 1
    # Where two windows overlap, the border is the middle of what they share.
    first = np.where(heads, 0, (begin + np.roll(end, 1)) // 2)
    last = np.where(tails, lengths[text], np.roll(first, -1))
    return Windows(text, begin, end, first, last)


class Classifier:
    """A token classifier on its device. ``size``: most tokens of a text in a window, special tokens aside."""

    def __init__(self, loaded: LoadedModel, batch_tokens: int) -> None:
        self.device, self.batch_tokens = loaded.device, batch_tokens
        self.model: Any = loaded.model
        self._before, self._after = _frame(loaded.tokenizer)
        padding = self.model.config.get_text_config().pad_token_id
        self._padding = int(loaded.tokenizer.pad_token_id if padding is None else padding)
        self.size = max(1, min(loaded.window, WINDOW) - len(self._before) - len(self._after))
        self._wide = self.model.config.model_type == "mpnet"  # takes masks as its attention does
        self._positions = positions_of(self.model)
        half = self.model.dtype in (torch.bfloat16, torch.float16)
        self.packs = self.device.type == "cuda" and half and hastened(self.model)

    def keep(self, texts: Sequence[Ints], passed: Passed = lambda tokens: None) -> list[Floats]:
        """The probability that each token of each text is kept, by its ids without special tokens."""
        if not texts:
            return []
        lengths = np.array([len(ids) for ids in texts])
        flat, offsets = np.concatenate(texts), np.cumsum(lengths) - lengths
        windows = windows_of(lengths, self.size)
        frame = len(self._before) + len(self._after)
        found = run_packed(
            (windows.end - windows.begin + frame).tolist(),
            self.batch_tokens,
            lambda rows: self._pass(flat, offsets, windows, np.array(rows), passed),
            enough=None if self.packs else _ENOUGH[self.device.type],
            padded=not self.packs,
        )
        # One transfer at the end: until then the device never waits for this process.
        scores: Floats = torch.cat(found).cpu().numpy()
        return np.split(scores, offsets[1:])

    @torch.inference_mode()
    def _pass(self, flat: Ints, offsets: Ints, windows: Windows, rows: Ints, passed: Passed) -> Sequence[torch.Tensor]:
        """p(keep) of what counts in these windows, one tensor each, still on the device."""
        begin, lengths = windows.begin[rows], (windows.end - windows.begin)[rows]
        ids = self._framed(flat, offsets[windows.text[rows]] + begin, lengths)
        logits, starts = self._logits(ids, lengths + len(self._before) + len(self._after))
        keep = torch.sigmoid(logits[..., 1] - logits[..., 0]).flatten()  # the softmax over two labels
        sizes = windows.last[rows] - windows.first[rows]
        starts = starts + len(self._before) + windows.first[rows] - begin
        places = np.repeat(starts - (np.cumsum(sizes) - sizes), sizes) + np.arange(sizes.sum())
        passed(int(sizes.sum()))
        return torch.split(keep[on_device(places, self.device)], sizes.tolist())

    def _framed(self, flat: Ints, starts: Ints, lengths: Ints) -> Ints:
        """Texts laid end to end, special tokens before and after each."""
        before = len(self._before)
        row, place = ragged(lengths + before + len(self._after))
        heads, tails = place < before, place >= before + lengths[row]
        ids = np.empty(len(row), np.int64)
        ids[heads], ids[tails] = np.tile(self._before, len(lengths)), np.tile(self._after, len(lengths))
        inside = ~(heads | tails)
        ids[inside] = flat[(starts[row] + place - before)[inside]]
        return ids

    def _logits(self, ids: Ints, lengths: Ints) -> tuple[torch.Tensor, Ints]:
        """Logits, in float32, of rows laid end to end, and the place among them of the first token of each row."""
        if self.packs:
            output = read_packed(self.model, on_device(ids, self.device), lengths, self._positions)
            return output.logits.float(), np.cumsum(lengths) - lengths
        rows, width = len(lengths), int(lengths.max())
        inside = np.arange(width) < lengths[:, None]
        rectangle = np.full(inside.shape, self._padding)
        rectangle[inside] = ids
        mask = None  # without padding: attention has a faster way then
        if not inside.all():
            mask = torch.arange(width, device=self.device) < on_device(lengths, self.device)[:, None]
            mask = mask[:, None, None] if self._wide else mask
        output = self.model(input_ids=on_device(rectangle, self.device), attention_mask=mask)
        return output.logits.float(), np.arange(rows) * width


def hastened(model: Any) -> bool:
    """Compile a token classifier's layers where possible; whether it can be read without padding."""
    return hasten(model, layers_of(model), lambda: read_once(model)) and can_pack(model.base_model)


def layers_of(model: Any) -> list[Any]:
    """The encoder's layers, wherever its architecture has them."""
    count = model.config.get_text_config().num_hidden_layers
    stacks = [one for one in model.modules() if isinstance(one, torch.nn.ModuleList) and len(one) == count]
    return list(stacks[0]) if stacks else []


@torch.inference_mode()
def read_once(model: Any) -> None:
    """Try out compiled layers, without a mask and with one."""
    ids = torch.ones(2, 24, dtype=torch.int64, device=model.device)
    for mask in (None, torch.arange(24, device=model.device) < torch.tensor([[24], [9]], device=model.device)):
        model(input_ids=ids, attention_mask=mask)


def _frame(tokenizer: PreTrainedTokenizerFast) -> tuple[Ints, Ints]:
    """The special tokens that the model expects before and after a text."""
    ids = tokenizer("a", return_special_tokens_mask=True, padding=False, truncation=False)
    special = np.array(ids["special_tokens_mask"], dtype=bool)
    inner = np.flatnonzero(~special)
    if not len(inner):  # a tokenizer that does not know the letter
        inner = np.array([len(special) // 2, len(special) // 2 - 1])
    whole = np.array(ids["input_ids"], dtype=np.int64)
    return whole[: inner[0]], whole[inner[-1] + 1 :]
