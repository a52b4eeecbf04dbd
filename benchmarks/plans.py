"""Plans of drafting by name, the same for all benchmarks: those that ``contextmill tune-drafting`` measures; and the
models of a plan, as a generate stage has them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from pipeline.generation.stage import Generate
from pipeline.generation.tuning import Settings, planned, plans
from pipeline.models import LoadedModel, ModelPool
from pipeline.stages import Run
from schemas.job import TargetSpec
from schemas.stage import GenerateSpec


def add_plans(parser: argparse.ArgumentParser, default: Sequence[str] | None = None) -> None:
    """Options that say which plans. Without ``default``, all."""
    parser.add_argument("--drafters", nargs="*", default=[], help="the largest first; layers:N: the target's own")
    parser.add_argument("--plans", nargs="+", default=default, help="of those that tune-drafting measures")
    parser.add_argument("--own", nargs="+", type=json.loads, default=[], help="settings of a generate stage, as JSON")


def chosen(arguments: argparse.Namespace, dtype: str = "float32") -> dict[str, GenerateSpec]:
    """By name, with room for all rows at once; of those that a stage would refuse, why. Ends the program where there is
    no plan of that name."""
    known = plans(GenerateSpec(kind="generate", drafters=arguments.drafters))
    wanted = known if arguments.plans is None else arguments.plans
    if unknown := [name for name in wanted if name not in known]:
        raise SystemExit(f"--plans: no {', '.join(unknown)} among {', '.join(known)}")
    own = {json.dumps(one)[1:-1]: {**one, **_drafters(one, arguments.drafters)} for one in arguments.own}
    stage = GenerateSpec(kind="generate", dtype=dtype)
    specs = {name: planned(stage, one) for name, one in ({name: known[name] for name in wanted} | own).items()}
    for name, why in specs.items():
        if isinstance(why, str):
            print(f"{name} is left out: {why}", flush=True)
    return {name: one for name, one in specs.items() if isinstance(one, GenerateSpec)}


def _drafters(settings: Settings, drafters: Sequence[str]) -> Settings:
    """Plans with rounds have drafters; others copy."""
    return {"drafters": drafters} if {"draft_rounds", "draft_matrix"}.intersection(settings) else {}


def models(pool: ModelPool, target: str, drafters: Sequence[str], dtype: str) -> tuple[LoadedModel, list[LoadedModel]]:
    """The target and its drafters. Ends the program where one cannot draft."""
    stage = Generate(GenerateSpec(kind="generate", dtype=dtype, drafters=list(drafters)), TargetSpec(model=target))
    stage.check()
    loaded, found = stage.load(Run(pool)), list(stage.drafters(Run(pool)))
    if refused := [one for one in found if isinstance(one, str)]:
        raise SystemExit("\n".join(refused))
    return loaded, [one for one in found if not isinstance(one, str)]
