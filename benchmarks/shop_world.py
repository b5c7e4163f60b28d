"""The shop between counting and truth, before any model: is the world what docs/shop.md says it is?

    python -m benchmarks.shop_world [--seeds 101 102 103] [--intent-share 0.95 0]

World seeds that are not the default. Tuned floors and the oracle on the time split, next item, seen items left out.
Passes where the best floor stays at most .8 of the oracle's NDCG@10, the oracle is at least .25, at least a fifth of
the test users are new, and in the null world (intent_share 0) the best floor's interval reaches the oracle's.
"""

import argparse
import dataclasses
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.support.record import append
from recsys.features.prepare import PrepareConfig, SplitConfig, prepare
from recsys.features.simulate.shop import ShopConfig, simulate
from recsys.models.oracle import ShopOracle
from recsys.pipelines.evaluation.evaluate import evaluate
from recsys.pipelines.floors.fit import fit_floors

METRIC = "ndcg@10"


def measure(config: ShopConfig) -> dict[str, Any]:
    """Figures of floors and oracle in one world."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        world = simulate(config, Path(folder) / "world")
        seconds = time.perf_counter() - began
        split = SplitConfig(protocol="time", target="next")
        dataset = prepare(world / "interactions.parquet", Path(folder) / "data", PrepareConfig(split=split))
        evaluation = evaluate({**fit_floors(dataset), "oracle": ShopOracle(world, dataset)}, dataset)
    floor, oracle = evaluation.metrics[str(evaluation.best_floor)][METRIC], evaluation.metrics["oracle"][METRIC]
    new = evaluation.by_user["new"]["n"] + evaluation.cold_users
    row = {
        "seed": config.seed,
        "intent_share": config.intent_share,
        "events": dataset.num_events,
        "simulate_s": round(seconds, 2),
        "n": evaluation.n,
        "new_users": round(new / (evaluation.n + evaluation.cold_users), 3),
        "cold_targets": evaluation.cold_targets,
        "best_floor": evaluation.best_floor,
        **{name: dataclasses.asdict(figures[METRIC]) for name, figures in evaluation.metrics.items()},
        "floor_over_oracle": round(floor.mean / oracle.mean, 3),
        "protocol": evaluation.protocol,
    }
    return row | {"faults": _faults(row)}


def _faults(row: dict[str, Any]) -> list[str]:
    """What a world fails of its pass conditions."""
    oracle, floor = row["oracle"], row[row["best_floor"]]
    if row["intent_share"] == 0:
        return [] if floor["high"] >= oracle["low"] else ["null world: the floor stays clearly under the oracle"]
    checks = {
        "the floor is above .8 of the oracle": row["floor_over_oracle"] > 0.8,
        "the oracle is below .25": oracle["mean"] < 0.25,
        "fewer than a fifth of the test users are new": row["new_users"] < 0.2,
    }
    return [fault for fault, is_so in checks.items() if is_so]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every world, print a row each and append all to results/; exit code 1 where one fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[101, 102, 103])
    parser.add_argument("--intent-share", type=float, nargs="+", default=[ShopConfig().intent_share, 0.0])
    options = parser.parse_args(arguments)
    columns = ("popularity", "transition", "oracle", "best/oracle")
    print(f"NDCG@10  {'seed':>5} {'intents':>8}", *(f"{name:>11}" for name in columns))
    worlds = []
    for share in options.intent_share:
        for seed in options.seeds:
            worlds.append(measure(ShopConfig(seed=seed, intent_share=share)))
            print(_line(worlds[-1]), flush=True)
    append("shop_world", {"worlds": worlds})
    if any(world["faults"] for world in worlds):
        sys.exit(1)


def _line(world: dict[str, Any]) -> str:
    popularity, transition, oracle = (world[name]["mean"] for name in ("popularity", "transition-knn", "oracle"))
    figures = f"{popularity:>11.4f} {transition:>11.4f} {oracle:>11.4f} {world['floor_over_oracle']:>11.3f}"
    verdict = "; ".join(f"FAILS: {fault}" for fault in world["faults"])
    return f"         {world['seed']:>5} {world['intent_share']:>8.2f} {figures}  {verdict}".rstrip()


if __name__ == "__main__":
    main()
