"""A training step with item vectors in a matrix and in a table, in turn, on the same batches of ML-1M.

RECSYS_DATA=FOLDER python -m benchmarks.table_step [--models sasrec bert4rec] [--rounds 50] [--no-record]
"""

import argparse
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from benchmarks.support.interaction_sets import prepared
from benchmarks.support.number_arguments import MOST_THREADS, whole
from benchmarks.support.record import append
from recsys import config as configs
from recsys.features.batches import TrainBatches
from recsys.features.dataset import PreparedDataset
from recsys.models import registry
from recsys.models.protocols import ReadsDataset
from recsys.pipelines.optimization import build_batches
from recsys.pipelines.run_config import TrainConfig
from recsys.pipelines.training.state import RunState
from recsys.pipelines.training.step import Stepper, seed_of_step

CONFIGS = Path(__file__).parents[1] / "configs" / "ml-1m"
MODELS = ("sasrec", "bert4rec")
WARM_UP = 3  # rounds that are not counted


def sides_of(name: str, dataset: PreparedDataset) -> dict[str, tuple[Stepper, TrainBatches]]:
    """What trains the model, and on what, by where the vectors stand."""
    sides = {}
    for kind, file in (("dense", f"{name}.yaml"), ("table", f"{name}-table.yaml")):
        config = replace(configs.load(TrainConfig, configs.read(CONFIGS / file)), data=dataset.path)
        seed_of_step(config.seed, -1, 0)
        model = registry.build(name, registry.fitted_config(name, config.model_config, dataset), dataset.num_items)
        assert isinstance(model, nn.Module)
        if isinstance(model, ReadsDataset):
            model.read(dataset)
        batches = build_batches(model, dataset, config.train, config.seed)
        sides[kind] = Stepper(model, model.train(), config, num_steps=1000), batches
    return sides


def measure(sides: Mapping[str, tuple[Stepper, TrainBatches]], rounds: int) -> dict[str, float]:
    """Median seconds of a step, by where the vectors stand."""
    running = {kind: (stepper, batches.epoch(0), RunState()) for kind, (stepper, batches) in sides.items()}
    seconds: dict[str, list[float]] = {kind: [] for kind in sides}
    for _ in range(rounds + WARM_UP):
        for kind, (stepper, batches, state) in running.items():
            batch = next(batches)
            began = time.perf_counter()
            stepper.take([batch], state, 0.0)
            seconds[kind].append(time.perf_counter() - began)
    return {kind: statistics.median(values[WARM_UP:]) for kind, values in seconds.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """A line a model; all appended to results/."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--rounds", type=whole(), default=50)
    parser.add_argument("--threads", type=whole(1, MOST_THREADS), default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/train-quality"), help="folder of datasets")
    parser.add_argument("--no-record", action="store_true", help="write no line of results")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    dataset = prepared("ml-1m", options.out / "data")
    found = {}
    for name in options.models:
        sides = sides_of(name, dataset)
        most = min(batches.num_batches(0) for _, batches in sides.values()) - WARM_UP
        if options.rounds > most:
            parser.error(f"argument --rounds: {options.rounds}; an epoch of {name} has batches for {most}")
        found[name] = measure(sides, options.rounds)
        print(f"{name:<9} dense {found[name]['dense']:.4f} s, table {found[name]['table']:.4f} s", flush=True)
    if not options.no_record:
        append("table_step", {"rounds": options.rounds, "threads": options.threads, "median_s": found})


if __name__ == "__main__":
    main()
