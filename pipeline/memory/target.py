"""What must be so of a model before its states are taken for what it says, and before text is put in front of it."""

from __future__ import annotations

from typing import Any

import torch

from pipeline.models.ref import ModelError

_OFF = 0.1
"""That logits may be off by rounding in half precision."""


@torch.no_grad()
def check_head(model: Any, name: str) -> None:
    """Raise ``ModelError`` where what a model says of a token is more than its head times a state: capped, scaled or
    with a bias. All losses are computed from states and head (``head_loss``), and would be another distribution's."""
    head, config = model.get_output_embeddings(), model.config.get_text_config()
    said = [getattr(config, name, None) for name in ("final_logit_softcapping", "logits_scaling", "logit_scale")]
    ids = torch.arange(min(8, head.weight.shape[0]), device=head.weight.device)[None]
    says = model(input_ids=ids, use_cache=False).logits[0, -1].float()
    state = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[0, -1]
    would = (state @ head.weight.to(state.dtype).T).float()
    plain = getattr(head, "bias", None) is None and all(one in (None, 1) for one in said)
    sound = bool(says.isfinite().all())  # else others say what is wrong
    if not plain or (sound and bool((says - would).norm() > _OFF * says.norm())):
        raise ModelError(
            f"memory slots: {name} ({type(model).__name__}) says more of a token than its head times a state (capped, "
            "scaled or with a bias), which would go unseen here: take another model"
        )


def start_of(tokenizer: Any) -> list[int]:
    """What the tokenizer puts before any text, if anything: a model that was trained behind it looks there when it
    looks for nothing, and reads worse without."""
    whole, plain = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (True, False))
    places = (at for at in range(len(whole)) if whole[at : at + len(plain)] == plain)
    return list(whole[: next(places, 0)])
