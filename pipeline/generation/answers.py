"""From an endpoint's answers to the stage's outcomes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from pipeline.generation.endpoint import Answer
from pipeline.generation.ledger import Bill
from pipeline.stages import Outcome, Refusal, Result

FINISHED = {
    "stop": "stop",
    "eos": "stop",
    "eos_token": "stop",
    "end_turn": "stop",
    "stop_sequence": "stop",
    "length": "length",
    "max_tokens": "length",
}
"""What servers call the two good ends of an answer -> what our records call them."""


@dataclass(frozen=True, slots=True)
class Done:
    """An answered document, before its share of the shard's seconds is known."""

    text: str
    finish_reason: str
    bill: Bill
    latency: float

    @property
    def tokens(self) -> int:
        """Read and written."""
        return self.bill.tokens_in + self.bill.tokens_out


def accept(answer: Answer, bill: Bill, latency: float, stops: Sequence[str]) -> Done | Refusal:
    """The document's result, or why an answer that was paid for is none. Cuts at stop strings servers leave in."""
    if answer.refusal:
        return Refusal("model_refused", f"the model declined: {answer.refusal[:200]}")
    if answer.finish_reason == "content_filter":
        return Refusal("content_filter", "the endpoint's content filter withheld the answer; change the prompt")
    reason = FINISHED.get(answer.finish_reason)
    if reason is None:
        return Refusal("bad_response", f"the answer ended for a reason unknown here: {answer.finish_reason[:80]!r}")
    cuts = [at for at in map(answer.text.find, stops) if at >= 0]
    if cuts:
        return Done(answer.text[: min(cuts)], "stop", bill, latency)
    return Done(answer.text, reason, bill, latency)


def outcomes(made: Sequence[Done | Refusal], model: str, seconds: float) -> list[Outcome]:
    """Outcomes in order; each answer gets its share of the shard's ``seconds``, by its tokens."""
    tokens = sum(one.tokens for one in made if isinstance(one, Done))
    each = seconds / max(1, tokens)
    return [_result(one, model, each * one.tokens) if isinstance(one, Done) else one for one in made]


def _result(done: Done, model: str, seconds: float) -> Result:
    bill = done.bill
    fields = {
        "generated": done.text,
        "generate_model": model,
        "finish_reason": done.finish_reason,
        "tokens_prompt": bill.tokens_in,
        "tokens_generated": bill.tokens_out,
        "tokens_cached": bill.tokens_cached,
        "target_passes": None,
        "tokens_drafted": None,
        "drafts": None,
        "tokens_accepted": None,
        "generate_seconds": seconds,
        "latency_seconds": done.latency,
        "cost_usd": None if bill.cost_microusd is None else Decimal(bill.cost_microusd).scaleb(-6),
    }
    return Result(
        fields,
        tokens_in=bill.tokens_in,
        tokens_out=bill.tokens_out,
        seconds=seconds,
        latency_seconds=done.latency,
        cost_microusd=bill.cost_microusd,
        price=bill.price,
    )
