"""Writers of what models come in: a tokenizer, a GGUF file, a wheel."""

from __future__ import annotations

import base64
import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

HIDDEN, HEADS, LAYERS, WINDOW = 64, 4, 2, 128
TEXT = [
    "a mill grinds 12 long prompts into short ones",
    "  and  3 more\n\n45 lines",
    "x  1",
    "y  2",
    "été, naïve: ½",
] * 4
Tensors = dict[str, np.ndarray[Any, Any]]


def train_tokenizer() -> Any:
    """A byte-level BPE like SmolLM2's: three special tokens first, every digit apart."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return tokenizer


def gguf_tensors(folder: Path) -> Tensors:
    """The model's weights under GGUF's names, with the row order that llama.cpp wants for q and k."""
    from safetensors.numpy import load_file

    weights = load_file(folder / "model.safetensors")
    tensors = {
        "token_embd.weight": weights["model.embed_tokens.weight"],
        "output_norm.weight": weights["model.norm.weight"],
    }
    names = {
        "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    }  # fmt: skip
    for layer in range(LAYERS):
        for short, long in names.items():
            weight = weights[f"model.layers.{layer}.{long}.weight"]
            if short in ("attn_q", "attn_k"):
                heads = HEADS if short == "attn_q" else 2
                weight = weight.reshape(heads, 2, -1, HIDDEN).swapaxes(1, 2).reshape(weight.shape)
            tensors[f"blk.{layer}.{short}.weight"] = weight
    return tensors


def write_gguf(path: Path, folder: Path, *, quantise: bool = False, leave_out: str = "", pre: str = "smollm") -> Path:
    """The tiny model as a GGUF file: float32, or its matrices in Q4_1."""
    from gguf import GGMLQuantizationType, GGUFWriter, quants
    from tokenizers import Tokenizer

    writer = GGUFWriter(path, "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(WINDOW)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(96)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_license("mit")
    _add_tokenizer(writer, Tokenizer.from_file(str(folder / "tokenizer.json")), pre)
    for name, tensor in gguf_tensors(folder).items():
        if name == leave_out:
            continue
        if quantise and tensor.ndim == 2:
            kind = GGMLQuantizationType.Q4_1
            writer.add_tensor(name, quants.quantize(tensor, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, np.ascontiguousarray(tensor))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tokenizer(writer: Any, tokenizer: Any, pre: str) -> None:
    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if index < 3 else 1 for index in range(len(tokens))])
    writer.add_token_merges([" ".join(merge) for merge in model["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template("{% for message in messages %}{{ message['content'] }}{% endfor %}")


def write_wheel(index: Path, members: dict[str, bytes]) -> Path:
    """A wheel that pip accepts; were it imported or installed, its module would fail."""
    index.mkdir(exist_ok=True)
    info = "tiny_model-1.0.dist-info"
    members = {
        **members,
        "tiny_model/__init__.py": b"raise SystemExit('this package must not be imported')\n",
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\nRequires-Dist: no-such-thing\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{name},sha256={_hash(data)},{len(data)}\n" for name, data in members.items())
    path = index / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in {**members, f"{info}/RECORD": f"{record}{info}/RECORD,,\n".encode()}.items():
            archive.writestr(name, data)
    return path


def _hash(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
