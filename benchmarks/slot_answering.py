"""Answers from cached slots, and from contexts that are encoded first, beside answers from the full text: one engine.

    python -m benchmarks.slot_answering --model FOLDER --rows 8 32 256 --json FILE                    # a GPU, bfloat16
    OMP_NUM_THREADS=1 python -m benchmarks.slot_answering --model FOLDER --dtype float32 --device cpu --tokens 256 \\
        --span 64 --rows 4 --new 32                                            # on a CPU: seconds are the process's own

``FOLDER`` has config.json and the tokenizer's files; without any weights they are random, and so is the
encoder: speed depends on shapes alone. Each row is a context of ``--tokens`` random tokens, unlike all others, and a
question of ``--question``; its answer is greedy, has ``--new`` tokens, and no end of its own. All rows are worked on at
once, on all sides by the engine that the stage ``generate`` has:

    full text        context and question, as tokens
    cached slots     ``tokens / ratio`` slots, [FT] and the question; slots are on the host in float16, as a store gives
                     them, and how they get to the device counts
    encode + answer  the contexts are encoded first, in spans of ``--span``, as the stage ``encode`` does; slots stay on
                     the device

Of each side: seconds, the median of ``--runs`` behind a warm-up, and those until the first tokens are there (``read``);
bytes of keys and values that the engine held for an answer, and how many answers a GB of them has room for (1e9 bytes).

The floor is what operations and bytes allow (``roofline``), at this device's own rates, measured at the start: O
operations a second of one large matrix product, B bytes a second of one large copy. With P numbers in the layers'
products, H in the head, L layers, h heads of size s, R rows, n places of a prompt, c bytes of keys and values of one
place and b of a number, it is

    reading     max(R * (2 * (P * n + H) + 4 * L * h * s * n * (n + 1) / 2) / O, ((P + H) * b + R * n * c) / B)
    one step    max(R * (2 * (P + H) + 4 * L * h * s * m) / O, ((P + H) * b + R * m * c) / B) behind m - 1 columns,
                for m from n + 1 to n + new - 1: the last token of an answer is not read
    encoding    as reading, with every span's memory tokens among its places, and no head; low-rank weights (r * (in +
                out) of a product) are read once, and either added to the products' own, which is 2 * r * in * out
                operations once, or two products more for each place: whichever is less, of all places of all rows

``times`` is the seconds of the full text over those of a side, ``by roofline`` the same of their floors, and ``share``
the one over the other: what we make of what there is to gain.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.answering_sides import CACHED, ENCODED, FULL, Bench
from benchmarks.measuring import facts, save, table
from benchmarks.random_weights import random_encoder, with_weights
from benchmarks.roofline import Machine, Shapes
from pipeline.generation.decoding import passes_for
from pipeline.memory.encode_stage import Encode
from pipeline.memory.resident import Resident, resident
from pipeline.models import ModelPool
from schemas.job import TargetSpec
from schemas.memory import EncodeSpec

Side = dict[str, Any]

_SECONDS = "s", "floor s", "read s", "floor read s", "encode s", "floor encode s"
_GAIN = "tokens/s", "answers/s", "MB an answer", "answers/GB", "times", "by roofline", "share"


def main() -> None:
    given = _parse()
    pool = ModelPool(given.device)
    with tempfile.TemporaryDirectory() as temporary:
        there = _resident(given, pool, Path(temporary))
        if passes_for(there.base) is None:
            raise SystemExit(
                "this model is decoded by transformers' generate, not by an engine of ours: choose another"
            )
        if (places := given.tokens + given.question + given.new) > there.base.window:
            raise SystemExit(f"{places} places, and the model holds {there.base.window}: fewer --tokens")
        device, shapes = there.base.device, Shapes.of(there.base.model)
        machine = Machine.measured(device, there.base.model.dtype)
        print(f"{machine.operations / 1e12:,.3f}e12 operations/s, {machine.bytes / 1e9:,.0f}e9 bytes/s", flush=True)
        found: list[Side] = []
        for rows in given.rows:
            bench = Bench(there, given, pool, machine, shapes, rows)
            sides = {one["side"]: one for one in bench.sides()}
            found += [_against(sides[FULL], one) for one in sides.values()]
            print(table(found, ["rows", "side", *_SECONDS, *_GAIN]))
            print(_verdict(bench, *found[-3:]), flush=True)
            known = {"machine": asdict(machine), "shapes": asdict(shapes), "rows": found}
            save(given.json, {"facts": facts(device, given.dtype), **known})


def _resident(given: argparse.Namespace, pool: ModelPool, temporary: Path) -> Resident:
    """Model and encoder as a worker has them."""
    model, folder = str(with_weights(given.model, temporary / "model")), str(temporary / "encoder")
    random_encoder(folder, model, pool, rank=given.rank, layout=given.layout, span=given.span)
    spec = EncodeSpec.model_validate({"kind": "encode", "encoder": folder, "dtype": given.dtype})
    stage = Encode(spec, TargetSpec(model=model))
    return resident(*stage.found(), model, given.dtype, given.device, pool)


def _against(full: Side, side: Side) -> Side:
    times, floor = full["s"] / side["s"], full["floor s"] / side["floor s"]
    more = {"times": times, "by roofline": floor, "share": times / floor}
    return {**side, **more, "answers/GB times": side["answers/GB"] / full["answers/GB"]}


def _verdict(bench: Bench, full: Side, cached: Side, encoded: Side) -> str:
    """What is gained, and from how many answers on encoding is worth it."""
    encoding, saved = bench.operations()
    measured, floors = (pays(encoded[name], cached[name], full[name]) for name in ("s", "floor s"))
    return "\n".join(
        [
            f"{bench.rows} rows, {CACHED}: {cached['times']:.2f} times as fast as the {FULL}, {cached['share']:.0%} of "
            f"the {cached['by roofline']:.2f} that the roofline allows",
            f"  reading and then writing take {_over_floors(full)} times their floors from the {FULL}, "
            f"{_over_floors(cached)} times from slots",
            f"  a GB of keys and values holds {cached['answers/GB times']:.2f} times as many answers; as many contexts "
            f"would be {bench.ratio:.2f}, but questions and answers are as long as before",
            f"  encoding a context takes {encoding:.2e} operations, {'more' if encoding > saved else 'less'} than the "
            f"{saved:.2e} of reading that it saves",
            f"  {ENCODED}: used once {encoded['times']:.2f} times as fast (roofline: {encoded['by roofline']:.2f}), "
            f"{encoded['share']:.0%}; it pays from {measured} on (roofline: {floors})",
        ]
    )


def _over_floors(side: Side) -> str:
    """Times that reading takes its floor, and all that comes behind it."""
    reading, floor = side["read s"], side["floor read s"]
    writing = (side["s"] - reading) / (side["floor s"] - floor) if side["floor s"] > floor else 0.0
    return f"{reading / floor:.1f} and {writing:.1f}"


def pays(first: float, more: float, full: float) -> str:
    """From how many answers to a context on encoding it is worth it, by seconds: of the first answer, which it is
    encoded for, of each ``more``, and of each from the full text."""
    if first > full and more >= full:
        return "no number of answers"
    count = max(1, math.ceil((first - more) / (full - more))) if more < full else 1
    return f"{count:,} answer{'' if count == 1 else 's'} a context"


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--rows", type=int, nargs="+", default=[8, 32, 256])
    parser.add_argument("--tokens", type=int, default=2048, help="of a context")
    parser.add_argument("--question", type=int, default=16, help="tokens of a question")
    parser.add_argument("--new", type=int, default=128, help="tokens of an answer")
    parser.add_argument("--ratio", type=float, default=4.0, help="tokens a slot")
    parser.add_argument("--span", type=int, default=512, help="most tokens that are encoded together")
    parser.add_argument("--layout", default="interleaved", choices=["interleaved", "appended", "pooled"])
    parser.add_argument("--rank", type=int, default=32, help="of the encoder's low-rank weights")
    parser.add_argument("--batch-tokens", type=int, default=16_384, help="of a pass that encodes")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
