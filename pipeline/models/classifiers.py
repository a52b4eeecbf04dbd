"""Token classifiers with two labels, remove and keep: what LLMLingua-2 (arXiv 2403.12968) scores tokens with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.models.folder import window_of
from pipeline.models.gguf import quiet
from pipeline.models.kinds import REMEDY
from pipeline.models.ref import ModelError, ModelRef

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from pipeline.models.loading import LoadedModel


def load_classifier(ref: ModelRef, dtype: str, device: str, tokenizer: PreTrainedTokenizerFast) -> LoadedModel:
    """The model on ``device``. Its classification layer stays in float32: in half precision near scores become equal.

    ``ModelError`` for a causal LM, for an encoder without a head (transformers would make up a random one) and for
    other than two labels.
    """
    import torch

    from pipeline.models.loading import UNLIMITED, LoadedModel
    from pipeline.models.mpnet import with_fused_attention

    model: Any = _read(ref, getattr(torch, dtype))
    if model.config.num_labels != 2:
        raise ModelError(f"{ref.name}: {model.config.num_labels} labels, but remove and keep are two; {REMEDY}")
    model = model.eval().requires_grad_(False).to(device)
    _head_in_float32(model)
    with_fused_attention(model)
    window = min(window_of(ref.folder) or UNLIMITED, _positions(model), tokenizer.model_max_length)
    return LoadedModel(ref, model, tokenizer, torch.device(device), window)


def _read(ref: ModelRef, dtype: Any) -> PreTrainedModel:
    from transformers import AutoModelForTokenClassification

    options = {"local_files_only": True, "trust_remote_code": False, "use_safetensors": True}
    try:
        with quiet():
            model, report = AutoModelForTokenClassification.from_pretrained(
                ref.folder, dtype=dtype, output_loading_info=True, **options
            )
    except Exception as error:  # configs are data from outside: what transformers trips over has no common class
        raise ModelError(
            f"{ref.name}: transformers cannot load {ref.folder} as a token classifier "
            f"({type(error).__name__}: {error}); {REMEDY}"
        ) from error
    if lost := sorted([*report["missing_keys"], *(str(item) for item in report["mismatched_keys"])]):
        raise ModelError(
            f"{ref.name}: {len(lost)} tensors of {ref.folder} are missing or misshapen ({lost[0]}); {REMEDY}"
        )
    return model


def _head_in_float32(model: Any) -> None:
    import torch

    layer = getattr(model, "classifier", getattr(model, "score", None))
    if isinstance(layer, torch.nn.Linear):
        layer.float().register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))


def _positions(model: Any) -> int:
    """Most tokens by the table of learned positions; RoBERTa and MPNet begin theirs behind the padding's."""
    import torch

    sizes = [
        one.num_embeddings - (0 if one.padding_idx is None else one.padding_idx + 1)
        for name, one in model.named_modules()
        if name.endswith("position_embeddings") and isinstance(one, torch.nn.Embedding)
    ]
    return min(sizes, default=2**31 - 1)
