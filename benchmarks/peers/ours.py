"""Ours: seconds of each epoch of training as `recsys train` runs it, and the lists that it recommends afterwards.

    python -m benchmarks.peers.ours SETTINGS.json

SETTINGS holds `config` (of the run), `out` (its folder, made anew) and optionally `lists` (a Parquet file to write: the
ten best unseen items of each test query). Prints one JSON object as its last line, as the scripts in runners/ do.
"""

import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import polars as pl
import torch

from recsys import config as configs
from recsys.features.dataset import PreparedDataset
from recsys.models.bundle import load_bundle
from recsys.pipelines.evaluation.top_lists import top_lists
from recsys.pipelines.run_config import TrainConfig
from recsys.pipelines.training import train

K = 10


class EpochClock:
    """Seconds of each epoch from the events that a run logs: from the event before its first step to its last step."""

    def __init__(self) -> None:
        self.begins: dict[int, float] = {}
        self.ends: dict[int, float] = {}
        self.events: int | None = None  # of an epoch
        self.last = time.perf_counter()

    def observe(self, event: dict[str, Any]) -> None:
        """Take one logged event."""
        at = time.perf_counter()
        if event["event"] == "start":
            self.events = int(event["tokens_per_epoch"])
        if event["event"] == "step":
            self.begins.setdefault(event["epoch"], self.last)
            self.ends[event["epoch"]] = at
        self.last = at

    def seconds(self) -> list[float]:
        """Of each epoch in order."""
        return [self.ends[epoch] - self.begins[epoch] for epoch in sorted(self.ends)]


def main(settings: dict[str, Any]) -> None:
    """Train; write the lists where they are wanted; print the seconds."""
    out = Path(settings["out"])
    shutil.rmtree(out, ignore_errors=True)
    config, clock = configs.load(TrainConfig, settings["config"]), EpochClock()
    result = train(config, out, clock.observe)
    dataset, model = PreparedDataset.open(config.data), _model_of(result.bundle)
    if settings.get("lists"):
        write_lists(model, dataset, Path(settings["lists"]))
    shutil.rmtree(out)
    found = {
        "version": torch.__version__,
        "epoch_s": [round(value, 3) for value in clock.seconds()],
        "steps": result.steps // result.epochs,
        "events": clock.events,
        "items": dataset.num_items,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "loss_positions": "every" if config.model["name"] == "sasrec" else "masked",
    }
    print(json.dumps(found))


def _model_of(bundle: Path) -> Any:
    return load_bundle(bundle).model


def write_lists(model: Any, dataset: PreparedDataset, file: Path) -> None:
    """The K best unseen items of each test query: user_id, item_id, rank from 1 on."""
    queries = dataset.queries("test")
    lists = top_lists(model.eval(), dataset, queries, K)
    rows, places = lists.nonzero()
    table = {"user_id": queries.user[rows], "item_id": lists[rows, places], "rank": places + 1}
    pl.DataFrame(table).write_parquet(file)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
