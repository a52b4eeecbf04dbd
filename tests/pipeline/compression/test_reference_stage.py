"""The library's prompts through the stage: its options from a job, rows with the target's counts."""

from __future__ import annotations

from compress_models import WORDS, Compressing, text_of

from pipeline.compression.reference.reference import Reference, ReferenceResult
from pipeline.compression.scoring import Scorer
from pipeline.models import ModelPool
from pipeline.stages import Refusal, Result
from schemas.document import PromptParts
from schemas.reference import ReferenceOptions

LINES = [line for line in WORDS.splitlines() if line][:6]
PROMPT = PromptParts("Solve it step by step.", tuple(LINES), "How many pens?")


def test_rows_are_what_the_library_would_give_with_the_options_of_the_job(
    compressing: Compressing, pool: ModelPool, tiny: str
) -> None:
    options = {"target_token": 40, "iterative_size": 20, "context_budget": "*1.5"}
    outcomes = compressing(PROMPT, PromptParts(contexts=("  ",)), PROMPT, fidelity="reference", options=options)
    assert isinstance(outcomes[1], Refusal) and outcomes[1].code == "empty"
    loaded = pool.causal_lm(tiny)
    (alone,) = Reference(Scorer(loaded, 4096), loaded.tokenizer, ReferenceOptions(**options)).compress([PROMPT])
    assert isinstance(alone, ReferenceResult)
    for outcome in (outcomes[0], outcomes[2]):
        assert isinstance(outcome, Result)
        assert text_of(outcome) == alone.text != PROMPT.render()
        assert outcome.tokens_out == len(loaded.tokenizer(alone.text, add_special_tokens=False)["input_ids"])
        assert (outcome.tokens_asked, outcome.fields["kept"], outcome.fields["copied"]) == (40, None, False)
        assert outcome.seconds > 0
