"""The shop between counting and truth, before any model: is the world what docs/shop.md says it is?

    python -m benchmarks.shop_world [--seeds 101 102 103] [--knob intent_share=0 0.5 0.95]

World seeds that are not the default. Tuned floors and the oracle on the time split, next item, seen items left out.
Passes where the best floor stays at most .8 of the oracle's NDCG@10, the oracle is at least .25, at least a fifth of the
test users are new, and in the null world (intent_share 0) the best floor's interval reaches the oracle's.
"""

import argparse
import dataclasses
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.record import append
from recsys.features.prepare import PrepareConfig, SplitConfig, prepare
from recsys.features.simulate.shop import ShopConfig, simulate
from recsys.models.oracle import ShopOracle
from recsys.pipelines.evaluation import evaluate
from recsys.pipelines.floors import fit_floors

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
    return {
        "seed": config.seed,
        "intent_share": config.intent_share,
        "events": dataset.num_events,
        "simulate_s": round(seconds, 2),
        "n": evaluation.n,
        "new_users": round(
            (evaluation.by_user["new"]["n"] + evaluation.cold_users) / (evaluation.n + evaluation.cold_users), 3
        ),
        "cold_targets": evaluation.cold_targets,
        "best_floor": evaluation.best_floor,
        **{name: dataclasses.asdict(figures[METRIC]) for name, figures in evaluation.metrics.items()},
        "floor_over_oracle": round(floor.mean / oracle.mean, 3),
        "protocol": evaluation.protocol,
    }


def faults(row: dict[str, Any]) -> list[str]:
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every world, print a row each, append them to results/; 1 where one fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[101, 102, 103])
    parser.add_argument("--intent-share", type=float, nargs="+", default=[ShopConfig().intent_share, 0.0])
    options = parser.parse_args(arguments)
    failed = False
    print(
        f"{'seed':>5} {'intents':>8} {'popularity':>11} {'transition':>11} {'oracle':>7} {'floor/oracle':>13} {'new users':>10}"
    )  # noqa: T201  # a table is what it is for
    for share in options.intent_share:
        for seed in options.seeds:
            row = measure(ShopConfig(seed=seed, intent_share=share))
            means = [row[name]["mean"] for name in ("popularity", "transition-knn", "oracle")]
            print(
                f"{seed:>5} {share:>8.2f} {means[0]:>11.4f} {means[1]:>11.4f} {means[2]:>7.4f} {row['floor_over_oracle']:>13.3f} {row['new_users']:>10.1%}"
            )  # noqa: T201  # as above
            append("shop_world", row | {"faults": faults(row)})
            for fault in faults(row):
                failed = True
                print(f"      FAILS: {fault}")  # noqa: T201  # as above
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
