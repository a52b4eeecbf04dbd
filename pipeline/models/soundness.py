"""What a loaded model cannot work with: numbers that are none, tokens without a place, no token to begin with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.models.ref import ModelDamaged, ModelError

if TYPE_CHECKING:
    from pipeline.models.loading import LoadedModel


def checked(loaded: LoadedModel) -> LoadedModel:
    """``loaded`` itself. Raises ``ModelDamaged`` for weights that hold NaN or infinity, which score all alike,
    and ``ModelError`` for a tokenizer of another model, or for an answer that no token begins.
    """
    _check_numbers(loaded)
    _check_vocabulary(loaded)
    if None in loaded.start:
        raise ModelError(
            f"{loaded.ref.name}: {loaded.ref.folder} does not say which token its decoder begins with; put "
            "decoder_start_token_id into its generation_config.json"
        )
    return loaded


def _check_numbers(loaded: LoadedModel) -> None:
    import torch

    for name, weights in loaded.model.named_parameters():
        # A sum keeps every NaN and infinity, and needs no memory.
        if weights.is_floating_point() and not weights.sum(dtype=torch.float32).isfinite():
            small = "; float16 may be too small for it: bfloat16 or float32" if weights.dtype == torch.float16 else ""
            raise ModelDamaged(
                f"{loaded.ref.name}: {name} holds NaN or infinity, so the weights in {loaded.ref.folder} are damaged; "
                f"fetch them again{small}"
            )


def _check_vocabulary(loaded: LoadedModel) -> None:
    """By the tokens that text may become; added ones (padding) often have no place in the model, and need none."""
    places = getattr(getattr(loaded.model.get_input_embeddings(), "weight", None), "shape", None)
    tokens = loaded.tokenizer.backend_tokenizer.get_vocab_size(with_added_tokens=False)
    if places is not None and tokens > places[0]:
        raise ModelError(
            f"{loaded.ref.name}: the tokenizer in {loaded.ref.folder} has {tokens} tokens and the model {places[0]}; "
            "put the model's own tokenizer beside its weights"
        )
