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
    width, device = tokens.shape[1], tokens.device
    ends, back = length[:, None], torch.arange(LONGEST, device=device)
    last = tokens.gather(1, ends - LONGEST + back)
    place = torch.arange(PADDING, width, device=device)
    # As many tokens before a place are the last ones as come behind the last that is not.
    apart = (tokens.unfold(1, LONGEST, 1) != last[:, None]) * (back + 1).to(torch.int8)
    matched = LONGEST - apart.amax(-1).long()
    # The longest, of these the latest; none at or behind the last token, which would follow itself.
    rank = torch.where(place < ends - 1, torch.add(place, matched, alpha=width), -1)
    most, best = rank.max(-1, keepdim=True)
    best = torch.where(most >= width, best + PADDING, ends - 2)  # no match: the last token again
    return tokens.gather(1, best + 1 + torch.arange(count, device=device) % (ends - 1 - best))
