"""Run folders as training writes them, and one store that they are sent to."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recsys.features.vocabulary import Vocabulary
from recsys.models import registry
from recsys.models.bundle import save_bundle
from recsys.models.tracking_server import connect
from recsys.pipelines.run_folder import RunFolder, evaluation_file, evaluation_label

NUM_ITEMS = 12
MODEL = {"d_model": 8, "num_layers": 1, "num_heads": 1, "max_len": 6}


class Runs:
    """Writes run folders."""

    def write(self, folder: Path, num_steps: int = 5, record: dict[str, Any] | None = None) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        plain = {
            "format": 1,
            "config": {"data": "data", "model": {"name": "sasrec", **MODEL}, "train": {"lr": 0.001}, "seed": 7},
            "data_hash": "0123456789ab",
            "protocol": "loo/next/full-rank",
            "commit": "f" * 40,
            "recsys": "0.1.0",
            "torch": "2.13.0",
        }
        (folder / "run.json").write_text(json.dumps({**plain, **(record or {})}))
        self.log(folder, {"event": "start", "step": 0, "parameters": 100})
        for step in range(1, num_steps + 1):
            self.log(folder, {"event": "step", "step": step, "epoch": 0, "loss": 1 / step, "tokens_per_s": 1000 + step})
        self.log(folder, {"event": "validation", "step": num_steps, "epoch": 0, "ndcg@10": 0.25, "n": 40})
        return folder

    def log(self, folder: Path, event: dict[str, Any]) -> None:
        with (folder / "log.jsonl").open("a") as file:
            file.write(json.dumps({"time": 1.7e9 + event["step"], **event}) + "\n")

    def end(self, folder: Path, bundle: Path, step: int = 5) -> None:
        shutil.copytree(bundle, folder / "bundle", dirs_exist_ok=True)
        self.log(folder, {"event": "end", "step": step, "seconds": 1.5})

    def evaluate(self, folder: Path, ndcg: float, **changed: str) -> None:
        """As `recsys evaluate` writes it."""
        names = {"popularity": 0.125, "sasrec": ndcg}
        value: dict[str, Any] = {
            "protocol": "loo/next/full-rank/exclude-seen",
            "split": "test",
            "seen": "exclude",
            "metrics": {name: {"ndcg@10": {"mean": mean, "low": 0.1, "high": 0.4}} for name, mean in names.items()},
            "best_floor": "popularity",
            "model": "sasrec",
            "bundle_version": RunFolder(folder).bundle_version,
        }
        value |= changed
        file = evaluation_file(evaluation_label(value["split"], value["seen"]))
        (folder / file).write_text(json.dumps(value))


class Peek:
    """What a store holds."""

    def history(self, uri: str, run_id: str, key: str) -> list[tuple[int, float]]:
        with connect(uri) as client:
            return sorted((point.step, point.value) for point in client.get_metric_history(run_id, key))

    def runs(self, uri: str, experiment: str) -> list[Any]:
        with connect(uri) as client:
            found = client.get_experiment_by_name(experiment)
            return list(client.search_runs([found.experiment_id])) if found else []

    def artifacts(self, uri: str, run_id: str) -> set[str]:
        with connect(uri) as client:
            return {file.path for file in client.list_artifacts(run_id)}


@pytest.fixture
def runs() -> Runs:
    return Runs()


@pytest.fixture
def peek() -> Peek:
    return Peek()


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    config = {"name": "sasrec", **MODEL}
    items = Vocabulary.from_ids([f"i{n}" for n in range(1, NUM_ITEMS + 1)])
    return save_bundle(
        tmp_path_factory.mktemp("bundle") / "bundle",
        model=registry.build("sasrec", MODEL, NUM_ITEMS),
        name="sasrec",
        config={key: value for key, value in config.items() if key != "name"},
        items=items,
        popularity=np.arange(NUM_ITEMS + 1),
        metrics={},
        data={"data_hash": "abc"},
        golden_histories=[["i1", "i2"]],
    )


@pytest.fixture(scope="session")
def first(tmp_path_factory: pytest.TempPathFactory, bundle: Path) -> "tuple[Path, subprocess.CompletedProcess[str]]":
    """A run that was sent by a process of its own into a database that it made."""
    folder = tmp_path_factory.mktemp("first")
    Runs().end(Runs().write(folder / "runs" / "quiet"), bundle)
    (folder / "here").mkdir()
    imports = "import sys; from pathlib import Path; from recsys.pipelines.tracking.tracker import sync"
    code = f"{imports}; sync([Path(sys.argv[1])])"
    environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    command = [sys.executable, "-c", code, str(folder / "runs" / "quiet")]
    done = subprocess.run(command, cwd=folder / "here", env=environment, capture_output=True, text=True, check=False)
    return folder, done


@pytest.fixture(scope="session")
def store(first: "tuple[Path, subprocess.CompletedProcess[str]]") -> str:
    """One database for all tests: making one takes seconds."""
    return f"sqlite:///{first[0]}/runs/mlflow.db"
