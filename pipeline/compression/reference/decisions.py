"""Which tokens of a window stay: thresholds and removals for many texts at once, on the device.

All tensors are ``[rows, width]`` or ``[rows]``. Windows are places as Python's slices take them: a text shorter than
its window makes them negative, and the library lets them be.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

Tensor = torch.Tensor

SPLIT = 13
"""The token that ``keep_split`` keeps in runs: a line break in Llama 1 and 2. The library fixes its number."""

Probe = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(values, where they are valid, ratios) -> the values to decide by: to see how close decisions are, and turn them."""


@dataclass(slots=True)
class Texts:
    """What is left of some texts, one a row: the places of their tokens, and their losses.

    ``places[r, :length[r]]`` are the tokens left, ``loss[r, :scored[r]]`` the losses left: one fewer, or many fewer
    where the text is longer than the model's window.
    """

    places: Tensor
    length: Tensor
    loss: Tensor
    scored: Tensor

    def keep(self, tokens: Tensor, losses: Tensor) -> None:
        """Leave only these; what the masks say past the ends means nothing."""
        self.places, self.length = compact(self.places, tokens & before(self.length, tokens))
        self.loss, self.scored = compact(self.loss, losses & before(self.scored, losses))


@dataclass(slots=True)
class Deciding:
    """Rows in the middle of a window that ends at ``end`` of what is left; ``start`` tokens of a question come first.

    ``alone`` is the text read without the question (contrast only). ``splits`` is 1 for a token ``SPLIT``, 2 where it
    stood in a run of them. ``crashed`` rows are those where the library raises.
    """

    text: Texts
    alone: Texts | None
    splits: Tensor | None
    start: Tensor
    end: Tensor
    crashed: Tensor

    def cut(self, size: int, count: Tensor, ratio: Tensor, active: Tensor, probe: Probe | None) -> None:
        """Decide on the next ``count`` tokens of a window of ``size``, of which the share ``ratio`` may stay.

        A token stays if the loss of the token after it exceeds the threshold, which is taken over all losses of the
        text: of what was decided and of what is far ahead, too.
        """
        values, valid = self._values()
        if probe is not None:
            values = probe(values, valid & active[:, None], ratio)
        threshold, empty = thresholds(values, valid, ratio)
        self.crashed |= active & empty
        end = self.end - size + count
        losses = self._stay(values, threshold, end, count) | ~active[:, None]
        tokens = self._with_splits(losses, end - count, end) | ~active[:, None]
        gone = ~tokens & before(sliced(end, self.text.length), tokens)
        self.end = torch.where(active, self.end + count - gone.sum(1), self.end)
        self._remove(tokens, losses)

    def _values(self) -> tuple[Tensor, Tensor]:
        """What is compared with the threshold, and where there is something to compare."""
        loss, scored = self.text.loss, before(self.text.scored, self.text.loss)
        if self.alone is None:
            return loss, scored
        column = columns(loss) - self.start[:, None]
        self.crashed |= self.alone.scored < (self.text.scored - self.start).clamp(min=0)
        return self.alone.loss.gather(1, column.clamp(min=0)) - loss, scored & (column >= 0)

    def _stay(self, values: Tensor, threshold: Tensor, end: Tensor, count: Tensor) -> Tensor:
        """Whose loss stays; the token behind the last loss stays if the first loss is above 0, as there."""
        scored = self.text.scored
        stay = values > threshold[:, None]
        if self.alone is not None:
            stay = torch.where(before(self.start, stay), self.text.loss > 0, stay)
        stay = torch.where(columns(stay) == scored[:, None], self.text.loss[:, :1] > 0, stay)
        known = scored + (scored > 0)
        return stay | ~before(sliced(end, known), stay) | before(sliced(end - count, known), stay)

    def _with_splits(self, stay: Tensor, begin: Tensor, end: Tensor) -> Tensor:
        """``stay`` with runs of ``SPLIT`` kept, and of any other neighbours of that kind in the window the first."""
        if self.splits is None:
            return stay
        stay = stay | (self.splits == 2)
        column = columns(stay)
        inside = stay & (column >= begin[:, None]) & before(torch.minimum(end, self.text.length), stay)
        last = torch.where(inside, column, -1).cummax(1).values.roll(1, 1)
        last[:, 0] = -1
        after_split = (last >= 0) & (self.splits.gather(1, last.clamp(min=0)) > 0)
        return stay & ~(inside & (self.splits == 1) & after_split)

    def _remove(self, tokens: Tensor, losses: Tensor) -> None:
        if self.alone is not None:
            self.crashed |= self.alone.length != (self.text.length - self.start).clamp(min=0)
            self.alone.keep(*(self._shifted(mask) for mask in (tokens, losses)))
        if self.splits is not None:
            self.splits, _ = compact(self.splits, tokens & before(self.text.length, tokens))
        self.text.keep(tokens, losses)

    def _shifted(self, mask: Tensor) -> Tensor:
        """The mask as the text alone sees it: from ``start`` on."""
        column = columns(mask) + self.start[:, None]
        width = mask.shape[1]
        return mask.gather(1, column.clamp(max=width - 1)) | (column >= width)


def thresholds(values: Tensor, valid: Tensor, ratio: Tensor) -> tuple[Tensor, Tensor]:
    """The value that the share ``ratio`` of each row's values reaches, that value's own counted; and whose is missing.

    -inf where the ratio is 1. Values of 10000 are the library's mark for none.
    """
    valid = valid & (values != 10000)
    count = valid.sum(1)
    rank = ((count.double() * ratio).long() - 1).minimum(count - 1).clamp(min=0)
    ranked = values.masked_fill(~valid, float("-inf")).sort(1, descending=True).values
    reached = ranked.gather(1, rank[:, None])[:, 0]
    return reached.masked_fill(ratio == 1, float("-inf")), (count == 0) & (ratio != 1)


def compact(values: Tensor, stay: Tensor) -> tuple[Tensor, Tensor]:
    """What stays of each row, moved up, zeros behind it; and how much that is."""
    to = torch.where(stay, stay.cumsum(1) - 1, values.shape[1])
    moved = values.new_zeros(values.shape[0], values.shape[1] + 1).scatter_(1, to, values)
    return moved[:, :-1], stay.sum(1)


def columns(like: Tensor) -> Tensor:
    """0, 1, ... for the columns of ``like``."""
    return torch.arange(like.shape[1], device=like.device)


def before(place: Tensor, like: Tensor) -> Tensor:
    """Where a column comes before the row's ``place``."""
    return columns(like) < place[:, None]


def sliced(place: Tensor, length: Tensor) -> Tensor:
    """``place`` as a bound of a slice of a list of this length: negative ones count from the end."""
    return torch.where(place < 0, place + length, place).clamp(min=0).minimum(length)
