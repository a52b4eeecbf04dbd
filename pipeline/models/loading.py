"""A model read from its folder onto a device, whole or not at all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.models import adapters
from pipeline.models.folder import window_of
from pipeline.models.gguf import quiet
from pipeline.models.kinds import is_encoder_decoder
from pipeline.models.ref import ModelDamaged, ModelError, ModelRef

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

UNLIMITED = 2**31 - 1
"""The window of a model whose config states none (recurrent models)."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A causal LM, encoder-decoder or token classifier in eval mode on ``device``, without gradients.

    ``window`` is the most tokens it takes at once; an encoder-decoder's two halves have one each.
    """

    ref: ModelRef
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    device: torch.device
    window: int

    @property
    def parameters(self) -> int:
        """How many numbers its weights hold."""
        return sum(one.numel() for one in self.model.parameters())

    @property
    def start(self) -> list[int]:
        """The token after which an encoder-decoder writes; nothing for any other model, which writes after its text."""
        if not self.model.config.is_encoder_decoder:
            return []
        stated = self.model.generation_config
        return [stated.bos_token_id if stated.decoder_start_token_id is None else stated.decoder_start_token_id]


def load(ref: ModelRef, dtype: str, device: str, tokenizer: PreTrainedTokenizerFast) -> LoadedModel:
    """Read the weights, with the adapter merged in where there is one: it costs nothing afterwards."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    kind: Any = AutoModelForSeq2SeqLM if is_encoder_decoder(ref) else AutoModelForCausalLM
    options: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True, "use_safetensors": True}
    try:
        with quiet():
            options["attn_implementation"] = _attention(ref)
            model, report = kind.from_pretrained(
                ref.folder, dtype=getattr(torch, dtype), output_loading_info=True, **options
            )
    except Exception as error:  # configs are data from outside: what transformers trips over has no common class
        raise ModelError(
            f"{ref.name}: transformers cannot load {ref.folder} by {kind.__name__} ({type(error).__name__}: "
            f"{_told(error)}); fetch it again, or name another model"
        ) from error
    _check_loaded(ref, report)
    if ref.adapter is not None:
        adapters.merge(model, ref.adapter)
    model = model.eval().requires_grad_(False).to(device)
    window = window_of(ref.folder) or UNLIMITED
    rotary = getattr(model.get_decoder(), "rotary_emb", None)
    if rotary is not None:
        rotary.contextmill_window = window  # a config that states none has transformers' own guess in memory
    return LoadedModel(ref, model, tokenizer, torch.device(device), window)


def without_weights(ref: ModelRef) -> Any:
    """The layers of a causal LM as its config has them, on no device. Raises whatever torch and transformers do."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(ref.folder, local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)


def _attention(ref: ModelRef) -> str | None:
    """torch's where transformers has it for such a model, as our passes need it. Else an attention of its own, if it
    has any at all: such a model is read by transformers alone."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    if is_encoder_decoder(ref):
        return None
    kind = type(AutoConfig.from_pretrained(ref.folder, local_files_only=True, trust_remote_code=False))
    known = MODEL_FOR_CAUSAL_LM_MAPPING.get(kind, None)
    return "eager" if known and not known._supports_sdpa else "sdpa"


def attends_by_itself(loaded: LoadedModel) -> bool:
    """Whether only transformers can read it: masks of ours would be taken for something else."""
    model: Any = loaded.model
    return not model.config.is_encoder_decoder and model.config._attn_implementation == "eager"


def _told(error: Exception) -> str:
    """What went wrong, in one line, without advice that leads nowhere here."""
    if "ignore_mismatched_sizes" in str(error):
        return "the weights have other shapes than config.json says"
    return " ".join(str(error).partition("\n\n")[0].split())


def _check_loaded(ref: ModelRef, report: dict[str, Any]) -> None:
    """transformers fills what is missing with random numbers and goes on: that would be another model."""
    lost = sorted([*report["missing_keys"], *(str(item) for item in report["mismatched_keys"])])
    if lost:
        raise ModelDamaged(
            f"{ref.name}: {len(lost)} tensors of {ref.folder} are missing or misshapen ({lost[0]}); fetch it again"
        )
