"""Which encoders may read spans without padding (``unpadded``): those whose slots were seen to be the same."""

from __future__ import annotations

import logging

import torch

from pipeline.memory.autoencoder import Autoencoder
from pipeline.memory.merged import merging
from pipeline.memory.ragged import encode_spans
from pipeline.passes.built import Built, built
from pipeline.passes.compiling import LAUNCHING
from pipeline.passes.joined import join
from pipeline.passes.packable import attends_plainly, doubt, ids_for
from pipeline.passes.wide import Wide

log = logging.getLogger(__name__)

_HALF = torch.bfloat16, torch.float16

_MOST = 0.1
"""That slots may be off: in bfloat16 either way takes three hundredths, another model half of it all."""


def worth_widening(coder: Autoencoder) -> bool:
    """float32 and the CPU read padded: there slots are to be the same on every machine."""
    return coder.memory.device.type == "cuda" and coder.embed.weight.dtype in _HALF


@torch.inference_mode()
def widen(coder: Autoencoder) -> bool:
    """Let spans be read without padding by a frozen ``coder``, with low-rank weights merged; False where that does not
    say the same, which is logged, or its model is of another kind."""
    with LAUNCHING:
        if not attends_plainly(coder.encoder) or (made := _built(coder)) is None:
            return False
        if why := doubt(lambda: _both(coder, Wide(made)), _MOST):
            coder.wide = None
            log.warning("the encoder reads spans with padding, at about half the speed: %s", why)
        return coder.wide is not None


def _built(coder: Autoencoder) -> Built | None:
    if coder.switch is not None:
        return built(coder.encoder, merging)
    for layer in getattr(coder.encoder, "layers", []):  # which are its own
        join(layer)
    return built(coder.encoder)


def _both(coder: Autoencoder, wide: Wide) -> tuple[torch.Tensor, torch.Tensor]:
    """Slots of spans of different lengths, the longest of more than a block of the kernel, and the expected ones."""
    ids = ids_for(coder.encoder).cpu().numpy()
    width = ids.shape[1]
    spans = [one[:length] for one, length in zip(ids, (width // 3, 4, 2 * width // 3), strict=True)]
    counts = [max(1, min(len(one) // 4, coder.spec.slots)) for one in spans]
    coder.wide = None
    expected = torch.cat(encode_spans(coder, spans, counts))
    coder.wide = wide
    return torch.cat(encode_spans(coder, spans, counts)), expected
