"""Origin tokens per second of llmlingua 0.2.2 and of our engines: one script, two processes, one machine.

    python -m benchmarks.llmlingua_speed --data DATA --dtype float16 --json FILE             # one GPU
    python -m benchmarks.llmlingua_speed --data DATA --prompts 8 --many 0 --documents 0      # CPU, float32

``gsm8k``: prompts of 14 demonstrations and a question, to ``target_token=200``, drawn at random or all distinct;
``documents``: single documents of 4,096 tokens at rate 0.25. The library misses its budgets (``target_token`` is of the
contexts alone), so our paper fidelity is measured at what was asked for and at the mean of what the library returned.
The library is timed, then the texts of reference fidelity are compared with its texts in float32, then ours is timed.
Both are warmed up by prompts of the same family, unmeasured. Origin tokens are cl100k's for both, counted by the
library's tokenizer; with ``--no-peer`` they are our scorer's.

Columns (``benchmarks/speed.py``): ``x peer`` is against the library on prompts of the same family; scored and passed
tokens per token in; ``of forward``: tokens passed per second over
the bare forward pass; ``bound``: 75% of (forward and head rate / scored), in origin tokens per second; kept: mean
tokens out; busy: kernel time / wall time. The library's spread by prompt is in the JSON.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.engines import Compressor, Texts, reference, staged
from benchmarks.measuring import Spread, ceilings, facts, save, table
from benchmarks.peers.environment import build
from benchmarks.peers.model import convert
from benchmarks.peers.process import Peer, case, warming
from benchmarks.speed import Bench, Speed, counter
from benchmarks.workloads import documents, gsm8k
from pipeline.compression.scoring import Scorer
from pipeline.models import ModelPool, resolve
from schemas.compress import LLMLinguaSpec
from schemas.document import PromptParts

OPTIONS: dict[str, dict[str, Any]] = {"gsm8k": {"target_token": 200}, "documents": {"rate": 0.25}}
"""What the library is asked for, by kind of work; reference fidelity the same."""

BUDGETS: dict[str, dict[str, Any]] = {"gsm8k": {"target_tokens": 200}, "documents": {"rate": 0.25}}
"""The same of paper fidelity."""

LENGTH = 4096
COLUMNS = (
    "work", "engine", "prompts", "tokens", "seconds", "lowest", "highest", "cpu s", "tokens/s", "x peer", "scored",
    "passed", "of forward", "bound", "kept", "refused", "equal", "busy",
)  # fmt: skip


@dataclass(slots=True)
class Work:
    """Prompts of one ``family``: a kind, and how they were drawn; what the library did is held against it alone.

    The library gets the first ``peer`` of them; ``origin`` counts the tokens of each.
    """

    family: str
    prompts: list[PromptParts]
    peer: int
    origin: list[int] = field(default_factory=list)
    answers: list[dict[str, Any]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """As the table calls it."""
        return f"{self.family} {len(self.prompts)}"

    @property
    def kind(self) -> str:
        """The key of ``OPTIONS``."""
        return self.family.split()[0]


def main() -> None:
    arguments = _parse()
    pool = ModelPool(arguments.device, limit=1)
    loaded = pool.causal_lm(arguments.model, "float32")
    count = counter(loaded.tokenizer)
    works = _works(arguments, loaded.tokenizer)
    figures: dict[str, Any] = {"facts": facts(loaded.device, arguments.dtype), "rows": []}
    if arguments.no_peer:
        for work in works:
            work.origin = count([prompt.render() for prompt in work.prompts])
    else:
        figures |= _ask_peer(arguments, works, loaded.device.type)
        figures["equal_in_float32"] = _check(arguments, pool, works)
    figures["rows"] += [_peer_row(work, count) for work in works if work.answers]
    loaded = pool.causal_lm(arguments.model, arguments.dtype)
    warm_up = arguments.warm_up or (256 if loaded.device.type == "cuda" else 1)
    figures["warm_up"] = {"ours, at most": warm_up, "the library": arguments.warm_up_peer}
    bench = Bench(loaded.device, loaded.model.get_decoder(), count, arguments.runs, warm_up)
    scorer = Scorer(loaded, arguments.batch_tokens)
    figures["ceilings"] = {length: ceilings(scorer, length) for length in (512, 2048)}
    for work in works:
        for name, compress in _engines(arguments, pool, work, figures["rows"]).items():
            _tell(f"{work.name}: {name}")
            speed, texts = bench.speed(compress, work.prompts, work.origin)
            row = _our_row(work, name, speed, texts) | _against(speed, figures["ceilings"])
            figures["rows"].append(row)
            save(arguments.json, figures)
    _print(figures)


def _works(arguments: argparse.Namespace, tokenizer: Any) -> list[Work]:
    works = []
    for how in arguments.demonstrations:
        for count in filter(None, (arguments.prompts, arguments.many)):
            peer = count if count == arguments.prompts else 0
            works.append(Work(f"gsm8k {how}", gsm8k(arguments.data, count, how), peer))
    if count := arguments.documents:
        texts = documents(arguments.data, count, LENGTH, tokenizer)
        works.append(Work("documents", texts, min(count, arguments.peer_documents)))
    return works


def _ask_peer(arguments: argparse.Namespace, works: Sequence[Work], device: str) -> dict[str, Any]:
    """Fills in the answers and the counts of origin tokens; facts of the peer's process."""
    cases: list[dict[str, Any]] = []
    for work in works:
        timed = [case(0, one, **OPTIONS[work.kind]) for one in work.prompts[: work.peer]]
        cases += [*warming(timed[: arguments.warm_up_peer]), *timed]
    cases += [case(0, one, "count") for work in works for one in work.prompts]
    found, answers = _answers(arguments, device, arguments.dtype, cases)
    rest = iter(answers)
    for work in works:
        work.answers = list(islice(rest, work.peer))
    for work in works:
        work.origin = [one["origin_tokens"] for one in islice(rest, len(work.prompts))]
    return {"peer_facts": found}


def _check(arguments: argparse.Namespace, pool: ModelPool, works: Sequence[Work]) -> dict[str, str]:
    """Share of equal texts, by work: reference fidelity against the library, both in float32."""
    checked = {work.name: (work, work.prompts[: min(work.peer, arguments.check)]) for work in works}
    if arguments.dtype == "float32":
        answers = [answer for work, prompts in checked.values() for answer in work.answers[: len(prompts)]]
    else:
        device = pool.causal_lm(arguments.model, "float32").device.type
        cases = [case(0, one, **OPTIONS[work.kind]) for work, prompts in checked.values() for one in prompts]
        answers = _answers(arguments, device, "float32", cases)[1] if cases else []
    rest, shares = iter(answers), {}
    for name, (work, prompts) in checked.items():
        if prompts:
            compress = reference(pool, arguments.model, "float32", arguments.batch_tokens, OPTIONS[work.kind])
            texts = compress(prompts, lambda tokens: None)
            shares[name] = _equal(texts, list(islice(rest, len(prompts))))
            _tell(f"{name}: {shares[name]} texts equal in float32")
    return shares


def _answers(
    arguments: argparse.Namespace, device: str, dtype: str, cases: Sequence[dict[str, Any]]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    with tempfile.TemporaryDirectory() as temporary:
        model = convert(resolve(arguments.model).folder, Path(temporary))
        peer = Peer(build(arguments.peer, arguments.wheels), model, device, dtype, arguments.threads)
        return peer.answers(cases, _tell)


def _engines(
    arguments: argparse.Namespace, pool: ModelPool, work: Work, rows: Sequence[dict[str, Any]]
) -> dict[str, Compressor]:
    """Our engines for this work, by what the table calls them."""
    common = {"model": arguments.model, "dtype": arguments.dtype, "batch_tokens": arguments.batch_tokens}
    engines = {}
    if "reference" in arguments.fidelity:
        engines["reference"] = reference(pool, **common, options=OPTIONS[work.kind])
    if "paper" in arguments.fidelity:
        by = {"rank_contexts_by": arguments.rank_contexts_by}
        for budget in _budgets(work, rows):
            spec = LLMLinguaSpec(kind="compress", device=arguments.device, **common, **budget, **by)
            engines[f"paper {next(iter(budget.values()))}"] = staged(pool, spec, arguments.model)
    return engines


def _budgets(work: Work, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What was asked for, and the tokens that the library returned for this family."""
    returned = [round(row["kept"]) for row in rows if row["engine"] == "llmlingua" and row["family"] == work.family]
    asked = BUDGETS[work.kind]
    return [asked, *({"target_tokens": tokens} for tokens in returned if [tokens] != [*asked.values()])]


def _peer_row(work: Work, count: Any) -> dict[str, Any]:
    done = [one for one in work.answers if "error" not in one]
    if not done:
        raise SystemExit(f"{work.name}: the library failed on all prompts: {work.answers[0]['error']}")
    seconds, tokens = sum(one["seconds"] for one in done), sum(one["origin_tokens"] for one in done)
    each = Spread.of([one["seconds"] for one in done])
    kept = count([one["compressed_prompt"] for one in done])
    own = sum(count([prompt.render() for prompt in work.prompts[: len(work.answers)]]))
    scored = sum(one["scored"] for one in done) / own
    return {
        "work": work.name, "family": work.family, "engine": "llmlingua", "prompts": len(done), "origin_tokens": tokens,
        "seconds": {"median": seconds}, "seconds_a_prompt": asdict(each), "tokens_per_second": tokens / seconds,
        "cpu_seconds": sum(one["cpu_seconds"] for one in done),
        "scored": scored, "passed": scored, "kept": sum(kept) / len(kept), "refused": len(work.answers) - len(done),
        "compressed_cl100k": sum(one["compressed_tokens"] for one in done) / len(done),
    }  # fmt: skip


def _our_row(work: Work, engine: str, speed: Speed, texts: Texts) -> dict[str, Any]:
    row = {"work": work.name, "family": work.family, "engine": engine, **asdict(speed)}
    if engine == "reference" and work.answers:
        row["equal"] = _equal(texts[: len(work.answers)], work.answers)
    return row


def _against(speed: Speed, ceilings: dict[int, dict[str, float]]) -> dict[str, float]:
    """Tokens passed per second over the bare model's, and 75% of what its full passes would allow, in origin tokens."""
    own = speed.own_tokens / speed.seconds.median
    forward, with_head = (max(one[name] for one in ceilings.values()) for name in ("forward", "forward_and_head"))
    return {
        "of_forward": own * (speed.passed or speed.scored) / forward,
        "bound": 0.75 * with_head / speed.scored * speed.tokens_per_second / own,
    }


def _equal(texts: Texts, answers: Sequence[dict[str, Any]]) -> str:
    same = sum(text == answer.get("compressed_prompt") for text, answer in zip(texts, answers, strict=True))
    return f"{same}/{len(answers)}"


def _print(figures: dict[str, Any]) -> None:
    peers = {row["family"]: row["tokens_per_second"] for row in figures["rows"] if row["engine"] == "llmlingua"}
    print(table([_shown(row, peers.get(row["family"])) for row in figures["rows"]], COLUMNS))
    for length, rates in figures["ceilings"].items():
        said = ", ".join(f"{name.replace('_', ' ')} {rate:,.0f}" for name, rate in rates.items())
        print(f"bare model, rows of {length} tokens: {said} tokens/s")
    if "equal_in_float32" in figures:
        print(f"equal in float32: {figures['equal_in_float32']}")
    print(f"prompts of each family run unmeasured before: {figures['warm_up']}")
    print(f"ours: {figures['facts']}\nllmlingua: {figures.get('peer_facts')}")


def _shown(row: dict[str, Any], peer: float | None) -> dict[str, Any]:
    seconds = row["seconds"]
    return {
        **row, "tokens": row["origin_tokens"], "tokens/s": row["tokens_per_second"], "seconds": seconds["median"],
        "lowest": seconds.get("lowest"), "highest": seconds.get("highest"), "cpu s": row["cpu_seconds"],
        "x peer": row["tokens_per_second"] / peer if peer else None, "of forward": row.get("of_forward"),
    }  # fmt: skip


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with gsm8k, prose, squality, qmsum in it")
    parser.add_argument("--model", default="smollm2-135m-instruct", help="the scorer, of both")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--threads", type=int, help="CPU threads of the peer; default: torch's choice, as for ours")
    parser.add_argument("--batch-tokens", type=int, default=16_384)
    parser.add_argument("--prompts", type=int, default=32, help="few-shot prompts for both")
    parser.add_argument("--many", type=int, default=2048, help="few-shot prompts for ours alone; 0: none")
    parser.add_argument("--demonstrations", nargs="+", default=["drawn", "distinct"],
                        choices=["drawn", "distinct", "fixed"])  # fmt: skip
    parser.add_argument("--documents", type=int, default=256, help="documents of 4,096 tokens; 0: none")
    parser.add_argument("--peer-documents", type=int, default=4, help="of these, the peer gets so many")
    parser.add_argument("--fidelity", nargs="+", default=["reference", "paper"], choices=["reference", "paper"])
    parser.add_argument("--rank-contexts-by", default="perplexity", choices=["perplexity", "bm25", "random"],
                        help="how paper fidelity chooses contexts")  # fmt: skip
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--warm-up", type=int, help="prompts that ours compresses unmeasured; default: 256, on a CPU 1")
    parser.add_argument("--warm-up-peer", type=int, default=2, help="the same for the library, of each family")
    parser.add_argument("--check", type=int, default=8, help="prompts of each work compared in float32")
    parser.add_argument("--no-peer", action="store_true", help="ours alone")
    parser.add_argument("--peer", type=Path, metavar="FOLDER", help="the peer's environment; default: in the cache")
    parser.add_argument("--wheels", type=Path, metavar="FOLDER", help="what benchmarks.peers.environment --pack made")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser.parse_args()


if __name__ == "__main__":
    main()
