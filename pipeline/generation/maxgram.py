"""Max-Gram: what followed the last tokens when they came before (Chen et al., arXiv 2312.11462, section 3.3).

Copies are free to propose, and right wherever a text repeats its prompt, another text, or itself. All on the device:
looking at every place of every line takes less than a look from the host.
"""

from __future__ import annotations

import torch

LONGEST = 8
"""Most tokens that are matched: of longer matches the latest is taken."""

PADDING = LONGEST - 1
"""Places before a line's first token, none of which matches anything."""


def propose(tokens: torch.Tensor, length: torch.Tensor, count: int) -> torch.Tensor:
    """``count`` tokens after the first ``length`` of each line, int64 ``[lines, count]``.

    They follow the longest earlier match of the line's last tokens, the latest of equal ones; a match that overlaps
    its own continuation goes on in circles. Where nothing matches, the last token is repeated. ``tokens`` is
    ``[lines, width]``, lines begin with ``PADDING`` places that hold no token.
    """
    width = tokens.shape[1]
    ends = length[:, None]
    last = tokens.gather(1, ends - LONGEST + torch.arange(LONGEST, device=tokens.device))
    place = torch.arange(width - PADDING, device=tokens.device) + PADDING
    matched = torch.zeros(len(tokens), len(place), dtype=torch.int64, device=tokens.device)
    going = torch.ones_like(matched, dtype=torch.bool)
    for back in range(LONGEST):
        going &= tokens[:, PADDING - back : width - back] == last[:, LONGEST - 1 - back, None]
        matched += going
    # The longest, of these the latest; none at or behind the last token, which would follow itself.
    rank = torch.where(place < ends - 1, matched * width + place, -1)
    best = place[rank.argmax(-1)][:, None]
    best = torch.where(rank.amax(-1, keepdim=True) >= width, best, ends - 2)  # no match: the last token again
    return tokens.gather(1, best + 1 + torch.arange(count, device=tokens.device) % (ends - 1 - best))
