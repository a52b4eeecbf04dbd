"""Max-Gram: what followed the last tokens when they came before (Chen et al., arXiv 2312.11462, section 3.3); where
they never did, what mostly follows by a table of bigrams.

Copies are free to propose, and right wherever a text repeats its prompt, another text, or itself. All on the device:
looking at every place of every line takes less than a look from the host.
"""

from __future__ import annotations

import functools

import torch

LONGEST = 8
"""Most tokens that are matched: of longer matches the latest is taken."""

PADDING = LONGEST - 1
"""Places before a line's first token, none of which matches anything."""


def propose(tokens: torch.Tensor, length: torch.Tensor, count: int, chains: torch.Tensor | None = None) -> torch.Tensor:
    """``count`` tokens after the first ``length`` of each line, int64 ``[lines, count]``.

    They follow the longest earlier match of the line's last tokens, the latest of equal ones; a match that overlaps
    its own continuation goes on in circles. Where nothing matches, ``chains`` ``[v, n]`` has what comes after each
    token (``chained``); without any the last token is repeated. ``tokens`` is ``[lines, width]``, lines begin with
    ``PADDING`` places that hold no token.
    """
    width, ends = tokens.shape[1], length[:, None]
    counted, back, weights = _numbers(width.bit_length(), tokens.device)
    last = tokens.gather(1, ends + back)
    # As many tokens before a place are the last ones as come behind the last that is not.
    apart = ((tokens.unfold(1, LONGEST, 1) != last[:, None]) * weights).amax(-1)
    # The longest match, of these the latest, by what follows it: the last token where none matches, or it is the first.
    following = counted[PADDING + 1 : width + 1]
    rank = torch.add(following, apart, alpha=-(width + 1))
    none = PADDING - (LONGEST + 1) * (width + 1)
    longest = torch.where(following < ends, rank, none).amax(1, keepdim=True)
    best = longest % (width + 1)
    copied = tokens.gather(1, best + counted[:count] % (ends - best))
    if chains is None:
        return copied
    return torch.where(longest < -(LONGEST - 1) * (width + 1), chains[last[:, -1], :count], copied)


def chained(follows: torch.Tensor, chains: torch.Tensor) -> None:
    """Write into ``chains`` int32 ``[v, n]`` the ``n`` tokens after each, one after the other as ``follows`` ``[v]``
    has them: looked up in a round, each would be a kernel of its own."""
    found = follows
    for place in range(chains.shape[1]):
        chains[:, place] = found
        found = follows[found]


@functools.cache
def _numbers(bits: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """From 0 to all that have so many bits, from ``-LONGEST`` to -1, and from 1 to ``LONGEST``: making them is a kernel
    each. Kept for good, as recordings go on reading them."""
    counted, back = torch.arange(2**bits + 1, device=device), torch.arange(-LONGEST, 0, device=device)
    return counted, back, torch.arange(1, LONGEST + 1, dtype=torch.int8, device=device)
