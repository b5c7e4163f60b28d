"""Small runs on the circle, and what they logged."""

import json
from pathlib import Path
from typing import Any

from recsys.features.dataset import PreparedDataset
from recsys.pipelines.optimization import OptimizationConfig
from recsys.pipelines.run_config import TrainConfig

SMALL: dict[str, Any] = {"d_model": 16, "num_layers": 1, "num_heads": 2, "d_ff": 32, "max_len": 12}


def config_of(circle: PreparedDataset, name: str = "sasrec", **train_keys: Any) -> TrainConfig:
    optimization = OptimizationConfig(**{"epochs": 3, "tokens_per_batch": 256, "lr": 1e-2, "threads": 1, **train_keys})
    return TrainConfig(data=circle.path, model={"name": name, **SMALL}, train=optimization, seed=5)


def events_of(out: Path, kind: str) -> list[dict[str, Any]]:
    lines = (out / "log.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]
