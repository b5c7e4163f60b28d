"""Real events per second of each model, and where the time of a step goes.

    python -m benchmarks.training_speed [--only ml-1m] [--seconds 20]

Needs the prepared datasets of configs/ml-1m and configs/amazon-beauty (benchmarks.path makes them). An event counts
once an epoch, whether it is predicted or only read; nothing is padding. Each figure is the median over the steps after
warm-up.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.support.record import append
from recsys import config as configs
from recsys.features.dataset import PreparedDataset
from recsys.models import registry
from recsys.pipelines.optimization import build_batches, build_optimizer
from recsys.pipelines.run_config import TrainConfig

CONFIGS = ("ml-1m/sasrec", "ml-1m/bert4rec", "amazon-beauty/sasrec", "amazon-beauty/bert4rec")
WARM_UP_STEPS = 5


def measure(name: str, seconds: float) -> dict[str, Any]:
    """Events per second of one config, and the share of each part of a step."""
    config = configs.load(TrainConfig, configs.read(Path("configs") / f"{name}.yaml"))
    dataset = PreparedDataset.open(config.data)
    torch.manual_seed(0)
    model: Any = registry.build(config.model["name"], config.model_config, dataset.num_items)
    batches = build_batches(model, dataset, config.train, config.seed)
    optimizer = build_optimizer(model, config.train)
    model.train()

    def step(batch: Any, number: int) -> None:
        optimizer.zero_grad(set_to_none=True)
        model.loss(batch, torch.Generator().manual_seed(number)).backward()
        optimizer.step()

    speeds: list[float] = []
    until, epoch, number = time.perf_counter() + seconds, 0, 0
    while time.perf_counter() < until:
        for batch in batches.epoch(epoch):
            began = time.perf_counter()
            step(batch, number)
            number += 1
            if number > WARM_UP_STEPS:
                speeds.append(len(batch.values) / (time.perf_counter() - began))
            if time.perf_counter() >= until:
                break
        epoch += 1
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for number, batch in enumerate(batches.epoch(0)):
            step(batch, number)
            if number == 4:
                break
    median = statistics.median(speeds)
    return {
        "config": name,
        "events_per_s": round(median),
        "p10": round(statistics.quantiles(speeds, n=10)[0]),
        "p90": round(statistics.quantiles(speeds, n=10)[-1]),
        "steps": len(speeds),
        "epoch_s": round(batches.num_tokens / median, 2),
        "events_per_epoch": batches.num_tokens,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "profile": _shares(profiler),
    }


def _shares(profiler: Any) -> dict[str, float]:
    """The ten operators that take the most time of their own, as shares of the whole."""
    averages = profiler.key_averages()
    total = sum(entry.self_cpu_time_total for entry in averages)
    best = sorted(averages, key=lambda entry: -entry.self_cpu_time_total)[:10]
    return {entry.key: round(entry.self_cpu_time_total / total, 3) for entry in best}


def main() -> None:
    """Print a line a config and append the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="of timed steps for each config")
    parser.add_argument("--only", default="", help="configs whose name holds this")
    arguments = parser.parse_args()
    rows = []
    for name in (name for name in CONFIGS if arguments.only in name):
        row = measure(name, arguments.seconds)
        rows.append(row)
        top = ", ".join(f"{key} {share:.0%}" for key, share in list(row["profile"].items())[:5])
        print(f"{name:<24} {row['events_per_s']:>8,} events/s  epoch {row['epoch_s']:>6.1f} s   {top}")
    file = append("training_speed", {"threads": torch.get_num_threads(), "rows": rows})
    print(f"written to {file}")


if __name__ == "__main__":
    main()
