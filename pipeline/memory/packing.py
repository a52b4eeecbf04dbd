"""Slots in fewer bytes: half precision, or whole numbers of 8 or 4 bits with a scale for every few of them.

Whole numbers are of a slot without what is typical of its encoder's, each of its numbers less their mean and over their
deviation. Symmetric and group-wise: of ``group`` neighbours along a slot the largest has the largest whole number, and
all are multiples of one scale in float16. Nothing is off by more than half a scale, times that deviation.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.passes.transfers import fetch
from schemas.memory import Precision

LARGEST = {"int8": 127, "int4": 7}
"""The largest whole number of each; its negative is the smallest."""

UNGROUPED = 64
"""The group of what has none, whatever a stage says: slots of either may lie in one file, which tells but one."""

_HALF = torch.finfo(torch.float16).max


@dataclass(frozen=True, slots=True)
class Packed:
    """Slots ``[k, d]``. ``values``: float16 or int8 ``[k, d]``, or uint8 ``[k, ceil(d / 2)]``, two numbers a byte, the
    first in the lower half and each plus 8. ``scales``: float16 ``[k, ceil(d / group)]``, ``[k, 0]`` for float16.
    ``common``: float16 ``[3, d]``, what all slots of their encoder have: the vector that is read behind them where they
    are asked about, and of each number mean and deviation."""

    precision: Precision
    group: int
    size: int
    values: NDArray[Any]
    scales: NDArray[np.float16]
    common: NDArray[np.float16]

    @property
    def bytes(self) -> int:
        """What they take in a file, its header aside."""
        return self.values.nbytes + self.scales.nbytes

    def part(self, begin: int, end: int) -> Packed:
        """The slots from ``begin`` to ``end``."""
        return replace(self, values=self.values[begin:end], scales=self.scales[begin:end])

    def alone(self) -> Packed:
        """With memory of their own, as a part has not: it keeps all that it is of."""
        return replace(self, values=self.values.copy(), scales=self.scales.copy())

    def sha256(self, revision: str) -> str:
        """Of these slots as those of the encoder ``revision``: what they are, then what they hold."""
        said = [revision, self.precision, self.group, self.size, len(self.values)]
        found = hashlib.sha256(json.dumps(said).encode())
        for one in (self.values, self.scales, self.common):
            found.update(np.ascontiguousarray(one).data)
        return found.hexdigest()

    def told(self) -> torch.Tensor:
        """The tag, ``[1, d]``, float32 on the CPU."""
        return torch.from_numpy(np.array(self.common[:1])).float()


class Made(NamedTuple):
    """Slots of a span or a context; the sums of squares of what packing lost and of the slots; when they were there."""

    packed: Packed
    lost: float
    whole: float
    when: float = 0.0

    def cut(self, counts: Sequence[int]) -> list[Made]:
        """So many slots each, one after the other; every slot is taken to have lost as much as any."""
        ends, whole = np.cumsum(counts), len(self.packed.values)
        return [
            Made(self.packed.part(end - count, end), self.lost * count / whole, self.whole * count / whole, self.when)
            for count, end in zip(counts, ends.tolist(), strict=True)
        ]


Measured = tuple[Packed, NDArray[np.float64]]
"""Slots, and of each the sums of squares of what packing lost, and of the slot, ``[k, 2]``."""


def pack(slots: torch.Tensor, common: torch.Tensor, precision: Precision, group: int) -> Packed:
    """``[k, d]``, finite, on any device, and what they have in ``common`` (``Autoencoder.common``). What is too large
    for float16 becomes the largest it has."""
    return measuring(slots, common, precision, group)()[0]


def measuring(slots: torch.Tensor, common: torch.Tensor, precision: Precision, group: int) -> Callable[[], Measured]:
    """``pack``, and what that lost, once the device is done with these slots: it may be given more to do before."""
    wide, common = slots.detach().float(), common.detach().half()
    if precision == "float16":
        group = UNGROUPED
        values, scales = wide.clamp(-_HALF, _HALF).half(), wide.new_zeros(len(wide), 0, dtype=torch.float16)
    else:
        _, mean, deviation = common.float().unbind()
        values, scales = _whole((wide - mean) / deviation, precision, group)
    back = _unpacked(values, scales, common, precision, group)
    sums = torch.stack([(back - wide).square().sum(1), wide.square().sum(1)], 1)
    coming = [fetch(one) for one in (values, scales, common, sums.double())]

    def there() -> Measured:
        # Copies: what comes into pinned memory must not stay there, it is the next pass's.
        *held, lost = (np.array(one()) for one in coming)
        return Packed(precision, group, wide.shape[1], *held), lost

    return there


def _whole(wide: torch.Tensor, precision: Precision, group: int) -> tuple[torch.Tensor, torch.Tensor]:
    largest = LARGEST[precision]
    padded = torch.nn.functional.pad(wide, (0, -wide.shape[1] % group))
    grouped = padded.view(len(wide), -1, group)
    wanted = (grouped.abs().amax(2) / largest).clamp(max=_HALF)
    scales = wanted.half()
    # Rounded up, else the largest number would be cut off; positive floats lie in the order of their bits.
    scales = torch.where(scales.float() < wanted, (scales.view(torch.int16) + 1).view(torch.float16), scales)
    divisors = torch.where(scales == 0, 1.0, scales.float())
    found = (grouped / divisors[..., None]).round().clamp(-largest, largest).flatten(1)[:, : wide.shape[1]]
    if precision == "int8":
        return found.to(torch.int8), scales
    pairs = torch.nn.functional.pad(found + 8, (0, wide.shape[1] % 2)).to(torch.uint8)
    return pairs[:, ::2] | pairs[:, 1::2] << 4, scales


def unpack(packed: Packed) -> torch.Tensor:
    """``[k, d]``, float32 on the CPU."""
    values, scales, common = (torch.from_numpy(np.array(one)) for one in (packed.values, packed.scales, packed.common))
    return _unpacked(values, scales, common, packed.precision, packed.group)


def vectors(packed: Packed) -> torch.Tensor:
    """Slots, and behind them their tag, ``[k + 1, d]`` on the CPU: in float16 what lies in float16, for which a copy in
    float32 would be twice as much to move, else in float32."""
    if packed.precision == "float16":
        return torch.from_numpy(np.concatenate([packed.values, packed.common[:1]]))
    return torch.cat([unpack(packed), packed.told()])


def _unpacked(
    values: torch.Tensor, scales: torch.Tensor, common: torch.Tensor, precision: Precision, group: int
) -> torch.Tensor:
    if precision == "float16":
        return values.float()
    _, mean, deviation = common.float().unbind()
    size = len(mean)
    if precision == "int4":
        values = torch.stack([values & 15, values >> 4], 2).flatten(1)[:, :size].to(torch.int8) - 8
    return values.float() * scales.float().repeat_interleave(group, 1)[:, :size] * deviation + mean


def joined(parts: Sequence[Packed]) -> Packed:
    """One after the other; all of one kind, and at least one."""
    first = parts[0]
    values, scales = (np.concatenate([getattr(one, name) for one in parts]) for name in ("values", "scales"))
    return replace(first, values=values, scales=scales)
