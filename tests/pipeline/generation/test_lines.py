"""What stands in lines when prompts begin: what all may copy from, what each may, the prompt, and nothing behind."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.generation.lines import Lines
from pipeline.generation.maxgram import PADDING


@pytest.mark.parametrize("shared", [0, 1, 30])
@pytest.mark.parametrize("longest", [0, 12])
def test_a_line_begins_with_what_may_be_copied(shared: int, longest: int) -> None:
    drawn = np.random.default_rng(shared)
    lines = Lines(5, 80, 4, torch.device("cpu"))
    before = lines.tokens.clone()
    for slots in ([3, 0, 4], [0], [4, 1]):  # others were there before
        common = drawn.integers(0, 99, shared)
        copied = [drawn.integers(0, 99, drawn.integers(0, longest + 1)) for _ in slots]
        prompts = [drawn.integers(0, 99, drawn.integers(1, 20)) for _ in slots]
        vectors = np.arange(len(slots))
        lines.tokens[:5, -1] = 7  # what a round wrote
        lines.begin(np.array(slots), slots, copied, prompts, vectors, common)
        before[:5, -1] = 7
        for row, slot in enumerate(slots):
            text = [*common, *copied[row], *prompts[row]]
            before[slot] = torch.tensor([-1] * PADDING + text + [-1] * (80 - len(text)))
            end, begin = PADDING + len(text), PADDING + len(text) - len(prompts[row])
            assert lines.known[slot].tolist() == [end, begin - row, begin, end, slot]
        assert torch.equal(lines.tokens, before)
