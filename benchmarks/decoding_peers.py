"""transformers' own ways of decoding many prompts greedily, with a model of its own each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig

Decode = Callable[[Sequence[list[int]], int], list[list[int]]]
"""(prompts, new tokens) -> the new tokens of each."""

GREEDY: dict[str, Any] = {"do_sample": False, "pad_token_id": 0, "eos_token_id": -1}


def static(folder: Path, dtype: str, device: torch.device) -> Decode:
    """``generate`` with a static cache, which transformers compiles with CUDA graphs on a GPU."""
    model = _load(folder, dtype, device)

    @torch.inference_mode()
    def decode(prompts: Sequence[list[int]], new: int) -> list[list[int]]:
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(one)) + one for one in prompts], device=device)
        lengths = torch.tensor([len(one) for one in prompts], device=device)
        mask = (torch.arange(width, device=device) >= width - lengths[:, None]).long()
        config = GenerationConfig(max_new_tokens=new, cache_implementation="static", **GREEDY)
        found = model.generate(ids, attention_mask=mask, generation_config=config)
        tokens: list[list[int]] = found[:, width:].tolist()
        return tokens

    return decode


def continuous(folder: Path, dtype: str, device: torch.device) -> Decode:
    """``generate_batch``: continuous batching over a paged cache; its manager stays up between calls."""
    model = _load(folder, dtype, device)

    @torch.no_grad()
    def decode(prompts: Sequence[list[int]], new: int) -> list[list[int]]:
        config = GenerationConfig(max_new_tokens=new, **GREEDY)
        found = model.generate_batch(list(prompts), generation_config=config, persistent_manager=True)
        tokens = [list(one.generated_tokens) for _, one in sorted(found.items(), key=_place)]
        if [len(one) for one in tokens] != [new] * len(prompts):
            raise RuntimeError(f"generate_batch made {sorted({len(one) for one in tokens})} tokens instead of {new}")
        return tokens

    return decode


PEERS: dict[str, Callable[[Path, str, torch.device], Decode]] = {
    "static": static,
    "continuous": continuous,
}


def _place(entry: tuple[str, Any]) -> int:
    return int(entry[0].rpartition("_")[2])


def _load(folder: Path, dtype: str, device: torch.device) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(device).eval()
