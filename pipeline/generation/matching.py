"""Max-Gram in one launch (``maxgram.propose``, and its drafts written): a kernel of Triton's that reads lines in place.

Written out in torch it is sixteen kernels, each of which takes as long as its launch. The places of a line are split
among programs, the last of which to end copies what follows the best of them.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from pipeline.generation.maxgram import LONGEST, PADDING

_CHUNK = 1024
"""Places of a line that a program looks at."""


def copy_on(
    tokens: torch.Tensor, slots: torch.Tensor, length: torch.Tensor, count: int,
    scratch: tuple[torch.Tensor, torch.Tensor], chains: torch.Tensor | None = None,
) -> None:  # fmt: skip
    """Behind the first ``length`` ``[rows]`` tokens of the lines ``slots`` ``[rows]`` of ``tokens`` ``[lines, width]``
    come ``count`` more, as ``propose`` has them by ``chains`` ``[v, n]``, if any.

    ``scratch``: int64 and int32, zeros before and afterwards, one for each row.
    """
    width = tokens.shape[1]
    with torch.cuda.device_of(tokens):  # type: ignore[no-untyped-call]
        _copy_on[len(slots), triton.cdiv(width - PADDING, _CHUNK)](
            tokens, slots, length, *scratch, tokens if chains is None else chains, width, length.stride(0), count,
            CHAINED=0 if chains is None else chains.shape[1],
            LONGEST=LONGEST, PADDING=PADDING, CHUNK=_CHUNK, COUNT=triton.next_power_of_2(count),
        )  # fmt: skip


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _copy_on(  # type: ignore[no-untyped-def]
    tokens, slots, length, best, arrived, chains, width, stride, count,
    CHAINED: tl.constexpr, LONGEST: tl.constexpr, PADDING: tl.constexpr, CHUNK: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    row, chunk = tl.program_id(0), tl.program_id(1)
    line = tokens + tl.load(slots + row) * width
    end = tl.load(length + row * stride)
    last = end - 1
    working = tl.cdiv(tl.maximum(last - PADDING, 1), CHUNK)
    if chunk >= working:
        return
    place = PADDING + chunk * CHUNK + tl.arange(0, CHUNK)
    there = place < last
    going = there
    matched = tl.zeros((CHUNK,), tl.int64)
    for back in tl.static_range(LONGEST):
        going = going & (tl.load(line + place - back, mask=there, other=-2) == tl.load(line + last - back))
        matched += going.to(tl.int64)
    # The longest match, of these the latest, by what follows it: the last token where none matches.
    found = tl.maximum(tl.max(tl.where(there, matched * width + place + 1, 0), 0), last)
    if working > 1:
        tl.atomic_max(best + row, found)
        tl.debug_barrier()  # it is there before this program counts
        others = tl.atomic_add(arrived + row, 1, sem="acq_rel")
        tl.debug_barrier()
        if others < working - 1:
            return
        found = tl.load(best + row, cache_modifier=".cg")
        tl.debug_barrier()
        tl.store(best + row, 0)
        tl.store(arrived + row, 0)
    begin, new = found % width, tl.arange(0, COUNT)
    drafts = tl.load(line + begin + new % (end - begin), mask=new < count, other=0)
    if CHAINED:  # what nothing matched, the last token's own place, is less than a width
        after = tl.load(chains + tl.load(line + last) * CHAINED + new, mask=new < count, other=0)
        drafts = tl.where(found < width, after.to(tl.int64), drafts)
    tl.store(line + end + new, drafts, mask=new < count)
