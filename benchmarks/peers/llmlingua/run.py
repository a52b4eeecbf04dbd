"""Runs the llmlingua library over JSON lines, one case after the other. Started with its own packages, never with ours.

A case is ``{id, function, context, instruction, question, kwargs}``: ``function`` is ``compress_prompt`` (default),
``structured_compress_prompt`` or ``compress_json``, whose ``context`` is the JSON text (or its one element). An answer
is ``{id, compressed_prompt, origin_tokens, compressed_tokens, scored, seconds, cpu_seconds}``, or ``{id, error,
seconds}`` where the library raises. Tokens are cl100k's, as the library counts them; ``scored`` are the scorer's, in
all its forward passes; ``cpu_seconds`` are those of all threads.
``count`` is a function, too: ``origin_tokens`` alone, without the model. A case with ``"warm_up": true`` is run and not
answered. The first line written is ``{"facts": ...}``.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import IO, Any

import torch

FUNCTIONS = ("compress_prompt", "structured_compress_prompt", "compress_json")
SHOWN = ("compressed_prompt", "origin_tokens", "compressed_tokens")
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def main() -> None:
    arguments = _parse()
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print must not come between the answers
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    peer = load(arguments.model, arguments.device, arguments.dtype, llmlingua2=arguments.llmlingua2)
    source = arguments.input.open(encoding="utf-8") if arguments.input else nullcontext(sys.stdin)
    with out, source as lines:
        _write(out, {"facts": facts(arguments.device, arguments.dtype)})
        for case in _cases(lines):
            answered = answer(peer, case)
            if not case.get("warm_up"):
                _write(out, answered)


class Peer:
    """The library's compressor, and how many tokens its model was given since ``scored`` was set to 0."""

    def __init__(self, compressor: Any) -> None:
        self.compressor, self.scored = compressor, 0
        compressor.model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, _: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        self.scored += (arguments[0] if arguments else named["input_ids"]).numel()


def load(model: Path, device: str, dtype: str, *, llmlingua2: bool = False) -> Peer:
    """The library with ``model``: a folder that transformers 4.35.2 reads."""
    config = {"torch_dtype": DTYPES[dtype], "trust_remote_code": False}
    compressor = importlib.import_module("llmlingua").PromptCompressor
    return Peer(compressor(str(model), device_map=device, model_config=config, use_llmlingua2=llmlingua2))


def answer(peer: Peer, case: dict[str, Any]) -> dict[str, Any]:
    """What the library makes of one case, and the seconds it took."""
    peer.scored = 0
    begun, worked = time.perf_counter(), time.process_time()
    try:
        made = _call(peer, copy.deepcopy(case))  # the library changes its arguments
    except Exception as error:  # noqa: BLE001  it crashes on some inputs, in many ways: that is its answer
        return {"id": case.get("id"), "error": f"{type(error).__name__}: {error}"[:500], "seconds": _since(begun)}
    seconds, worked = _since(begun), time.process_time() - worked
    shown: dict[str, Any] = {key: made[key] for key in SHOWN if key in made}
    return {"id": case.get("id"), **shown, "scored": peer.scored, "seconds": seconds, "cpu_seconds": worked}


def _call(peer: Peer, case: dict[str, Any]) -> dict[str, Any]:
    name = case.get("function", FUNCTIONS[0])
    if name == "count":
        return {"origin_tokens": _count(peer, case)}
    if name not in FUNCTIONS:
        raise ValueError(f"no function {name!r}: one of {', '.join(FUNCTIONS)}, count")
    context = case["context"]
    if name == "compress_json":
        text = context[0] if isinstance(context, list) else context
        context = json.loads(text) if isinstance(text, str) else text
    made = getattr(peer.compressor, name)(
        context,
        instruction=case.get("instruction", ""),
        question=case.get("question", ""),
        **case.get("kwargs", {}),
    )
    return dict(made)


def _count(peer: Peer, case: dict[str, Any]) -> int:
    context = [case["context"]] if isinstance(case["context"], str) else case["context"]
    text = "\n\n".join([case.get("instruction", ""), *context, case.get("question", "")]).strip()
    return len(peer.compressor.oai_tokenizer.encode(text))


def facts(device: str, dtype: str) -> dict[str, Any]:
    """Versions and hardware of this process."""
    names = ("llmlingua", "transformers", "tokenizers", "torch", "numpy", "nltk", "tiktoken")
    cuda = device.startswith("cuda")
    return {
        **{name: importlib.metadata.version(name) for name in names},
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(device) if cuda else f"cpu, {torch.get_num_threads()} threads",
        "dtype": dtype,
    }


def _cases(lines: IO[str]) -> Iterator[dict[str, Any]]:
    return (json.loads(line) for line in lines if line.strip())


def _write(out: IO[str], row: dict[str, Any]) -> None:
    out.write(json.dumps(row, ensure_ascii=False) + "\n")
    out.flush()


def _since(begun: float) -> float:
    return round(time.perf_counter() - begun, 6)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="model folder converted for transformers 4.35.2")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", default="float32", choices=DTYPES)
    parser.add_argument("--threads", type=int, help="CPU threads; default: torch's own choice")
    parser.add_argument("--llmlingua2", action="store_true", help="the model is a token classifier (LLMLingua-2)")
    parser.add_argument("--input", type=Path, help="default: standard input")
    return parser.parse_args()


if __name__ == "__main__":
    main()
