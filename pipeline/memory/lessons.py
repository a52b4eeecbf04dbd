"""What a step belongs to: lessons one after the other, from low to high ratio, or mixed; and the rate it learns at."""

from __future__ import annotations

import numpy as np

from schemas.memory import EncoderTraining, Lesson


def lesson(spec: EncoderTraining, step: int) -> Lesson:
    """The one that this step belongs to."""
    if spec.mixed:
        shares = np.array([one.share for one in spec.lessons])
        return spec.lessons[np.random.default_rng([spec.seed, step, 1]).choice(len(shares), p=shares / shares.sum())]
    done = 0.0
    for one in spec.lessons:
        done += one.share
        if step < round(done * spec.steps):
            return one
    return spec.lessons[-1]


def rate(spec: EncoderTraining, step: int) -> float:
    """The share of the learning rate: up during the warm-up, then level, at last down to 0 (linearly)."""
    falling = max(1, round(spec.decay * spec.steps))
    return min(1.0, (step + 1) / max(1, spec.warmup), (spec.steps - step) / falling)
