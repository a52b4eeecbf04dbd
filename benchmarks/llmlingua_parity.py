"""Are our compressed prompts llmlingua 0.2.2's, string for string? Takes any file of its outputs.

    python -m benchmarks.llmlingua_parity cases.jsonl
    python -m benchmarks.llmlingua_parity cases.jsonl --only fewshot --device cuda --batch-tokens 65536

A line of the file is one case: id, family, context (a list), instruction, question, kwargs (of compress_prompt;
"structured": true for structured_compress_prompt; "json_config" for compress_json, the JSON text in context[0]), and
in expected, or beside it, compressed_prompt or its compressed_prompt_sha256 (of the UTF-8 text; of an object's
json.dumps). A case with neither is one where the library raises: ours must then be a text within the budget, and JSON
where JSON was compressed. A refusal never matches.

A mismatch is a tie if it goes away when decisions that are closer than 1e-4, recomputed in float64, are turned; the
margin of the first one is printed. Exit status: 0 if all match or are ties and ties are at most 2% of the cases.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.parity.cases import Case, read_cases, same
from benchmarks.parity.scorer import Scoring, folder_of_the_reference
from benchmarks.parity.ties import Tie, find_tie

MOST_TIES = 0.02


def main() -> None:
    arguments = _parse()
    cases = [case for case in read_cases(arguments.file) if arguments.only in (None, case.family)]
    if not cases:
        raise SystemExit(f"error: {arguments.file} has no case" + (f" of {arguments.only}" if arguments.only else ""))
    with folder_of_the_reference(arguments.model) as folder:
        scoring = Scoring(folder, arguments.device, arguments.dtype, arguments.batch_tokens)
        verdicts = Counter[tuple[str, str]]()
        for case, verdict in judged(cases, scoring, arguments.abreast):
            verdicts[case.family, verdict] += 1
    raise SystemExit(_report([case.family for case in cases], verdicts))


def judged(cases: Sequence[Case], scoring: Scoring, abreast: int) -> Iterator[tuple[Case, str]]:
    """Every case with ``matched``, ``tie`` or ``mismatch``; says on stderr how far it is, on stdout what is amiss."""
    begun, done = time.perf_counter(), 0
    for case in cases:
        if case.refused:
            print(f"mismatch  {case.id}: refused, {case.refused}")
            yield case, "mismatch"
    for some in _together([case for case in cases if not case.refused], abreast):
        for case, text in zip(some, scoring.compress(some), strict=True):
            yield case, _verdict(case, text, scoring)
        done += len(some)
        print(f"\r{done}/{len(cases)} cases, {time.perf_counter() - begun:.0f} s ", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)


def _verdict(case: Case, text: str | None, scoring: Scoring) -> str:
    if text is None or case.crashed:
        lack = "refused" if text is None else scoring.lacks(case, text)
        if lack:
            print(f"mismatch  {case.id}: {lack}")
        return "mismatch" if lack else "matched"
    if same(case, text):
        return "matched"
    tie = find_tie(case, text, scoring)
    if isinstance(tie, Tie):
        print(f"tie       {case.id}: {tie.what}, margin {tie.margin:.2e} in float64")
        return "tie"
    print(f"mismatch  {case.id}: {tie}")
    return "mismatch"


def _together(cases: Sequence[Case], abreast: int) -> Iterator[list[Case]]:
    """Cases of equal options, at most ``abreast`` at a time."""
    groups: dict[str, list[Case]] = {}
    for case in cases:
        groups.setdefault(case.options.model_dump_json(), []).append(case)
    for group in groups.values():
        for first in range(0, len(group), abreast):
            yield group[first : first + abreast]


def _report(families: Sequence[str], verdicts: Counter[tuple[str, str]]) -> int:
    print(f"{'family':<28}{'matched':>9}{'ties':>6}{'total':>7}")
    totals = Counter(families)
    for family, total in totals.items():
        print(f"{family:<28}{verdicts[family, 'matched']:>9}{verdicts[family, 'tie']:>6}{total:>7}")
    matched, ties = (sum(verdicts[family, kind] for family in totals) for kind in ("matched", "tie"))
    print(f"{'all':<28}{matched:>9}{ties:>6}{len(families):>7}")
    if matched + ties < len(families):
        return 1
    if ties > MOST_TIES * len(families):
        print(f"more than {MOST_TIES:.0%} of the cases are ties")
        return 1
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="outputs of the library, one JSON object a line")
    parser.add_argument("--only", metavar="FAMILY", help="cases of this family alone")
    parser.add_argument("--model", default="smollm2-135m-instruct", help="the model that made the outputs")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--batch-tokens", type=int, default=8192, help="most padded tokens in a forward pass")
    parser.add_argument("--abreast", type=int, default=16, help="most cases compressed together")
    return parser.parse_args()


if __name__ == "__main__":
    main()
