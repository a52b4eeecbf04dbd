"""Tables of an encoder in Markdown: the curves of its trainings, what it repeats and continues, what it answers.

    contextmill icae evaluate NAME -t prose=held-out.jsonl --tokens 128 --tokens 512 --json > found.json
    python -m benchmarks.icae_tables NAME --training BEFORE --evaluation found.json --into docs/memory.md

Encoders by name or folder. With ``--into`` the tables stand between the lines ``<!-- NAME: measured -->`` and
``<!-- NAME: end -->`` of that file; without it they are printed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipeline.accounting.wording import duration, points, span
from pipeline.models import encoders
from pipeline.models.encoders import CURVE, EncoderManifest, Four
from schemas.settings import Settings

PARTS = 10
"""Of a curve: each is the mean of as many steps."""


def main() -> None:
    arguments = _parse()
    cache = Settings().cache
    folder = encoders.find(arguments.encoder, cache)
    manifest = encoders.read_manifest(folder)
    trainings = [*(encoders.find(name, cache) for name in arguments.training), folder]
    found = json.loads(arguments.evaluation.read_text())
    if found["sha256"] != manifest.sha256:
        raise SystemExit(f"error: {arguments.evaluation} is of another encoder than {folder}")
    if found.get("unfinished"):
        raise SystemExit(f"error: {arguments.evaluation} is unfinished: what made it was interrupted")
    if found.get("refine"):
        raise SystemExit(f"error: {arguments.evaluation} is of slots that were fitted, and not the encoder's own")
    if found.get("starts"):
        raise SystemExit(f"error: {arguments.evaluation} is of the first tokens of texts, and not of any")
    text = "\n\n".join("\n".join(one) for one in tables(manifest, trainings, found))
    if arguments.into is None:
        print(text)
    else:
        arguments.into.write_text(filled(arguments.into.read_text(), folder.name, text))


def tables(manifest: EncoderManifest, trainings: Sequence[Path], found: dict[str, Any]) -> Iterator[list[str]]:
    """Each as its lines."""
    yield _table(
        ["training", *(f"{100 * part // PARTS}%" for part in range(1, PARTS + 1)), "took"],
        [_curve(folder) for folder in trainings],
    )
    yield _table(
        ["repeated from slots", "tokens", "slots", "BLEU-4", "95%", "prefix", "likeliest", "nats"],
        [_repeated(one) for one in found["repeated"]],
    )
    if len(found["stored"]) > len(found["repeated"]):
        yield _table(
            ["by how slots are stored", "tokens", "slots", "stored", "bytes a slot", "BLEU-4", "difference", "95%",
             "prefix", "nats"],
            [_stored(one) for one in found["stored"]],
        )  # fmt: skip
    yield _table(
        ["perplexity of what follows", "tokens", "slots", "alone", "text", "last tokens", "slots", "kept"],
        [_continued(one) for one in found["continued"]],
    )
    if answers := manifest.answers:
        rows = {"nats a token": answers.nats, "token F1": answers.token_f1, "BLEU-4": answers.bleu4}
        yield _table(
            [f"{answers.rows} held-out answers", "from nothing", "from the text", "from slots before", "after"],
            [_answered(name, four) for name, four in rows.items()],
        )


def filled(text: str, name: str, made: str) -> str:
    """``text`` with ``made`` between its two lines for the encoder ``name``. Raises ``SystemExit`` without these."""
    begin, end = f"<!-- {name}: measured -->", f"<!-- {name}: end -->"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise SystemExit(f"error: there must be one line {begin}, and one {end} behind it")
    return f"{text[: text.index(begin)]}{begin}\n\n{made}\n\n{text[text.index(end) :]}"


def _curve(folder: Path) -> list[str]:
    """Losses, nats a token, as they went down."""
    curve = pq.read_table(folder / CURVE).to_pydict()
    losses, steps = curve["loss"], len(curve["loss"])
    bounds = [part * steps // PARTS for part in range(PARTS + 1)]
    means = [f"{sum(losses[a:b]) / max(1, b - a):.3f}" for a, b in pairwise(bounds)]
    return [f"{folder.name}, {steps:,} steps", *means, duration(curve["seconds"][-1])]


def _repeated(one: dict[str, Any]) -> list[str]:
    bleu = one["bleu4"]
    scores = [points(bleu["value"]), span(bleu["low"], bleu["high"])] if bleu else ["–", "–"]
    rest = [points(one["prefix"]["value"]), points(one["agreement"]["value"]), f"{one['nats']['value']:.3f}"]
    return [one["kind"], f"{one['tokens']:,}", f"{one['slots']:,}", *scores, *rest]


def _stored(one: dict[str, Any]) -> list[str]:
    bleu, gap = one["bleu4"], one["difference"]
    apart = [points(gap["value"]), span(gap["low"], gap["high"])] if gap else ["–", "–"]
    scores = [points(bleu["value"] if bleu else None), *apart, points(one["prefix"]["value"])]
    what = [one["kind"], f"{one['tokens']:,}", f"{one['slots']:,}", one["form"], f"{one['bytes']:,.0f}"]
    return [*what, *scores, f"{one['nats']['value']:.3f}"]


def _continued(one: dict[str, Any]) -> list[str]:
    values = (f"{one[name]:.2f}" for name in ("none", "full", "tail", "behind_slots"))
    return [one["kind"], f"{one['tokens']:,}", f"{one['slots']:,}", *values, points(one["kept"])]


def _answered(name: str, four: Four) -> list[str]:
    scored = name != "nats a token"
    return [name, *("–" if one is None else points(one) if scored else f"{one:.3f}" for one in four)]


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (heading, ["---"] * len(heading), *rows)]


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoder", metavar="NAME")
    parser.add_argument("--training", action="append", default=[], help="those that it went on from, in their order")
    parser.add_argument("--evaluation", type=Path, required=True, help="what `icae evaluate --json` said of it")
    parser.add_argument("--into", type=Path, help="a file with two lines between which the tables go")
    return parser.parse_args()


if __name__ == "__main__":
    main()
