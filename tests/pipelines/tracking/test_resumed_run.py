"""A run that was killed while it was tracked goes on as the same run of the server."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from recsys import config as configs
from recsys.features.dataset import PreparedDataset
from recsys.pipelines.optimization import OptimizationConfig
from recsys.pipelines.run_config import TrainConfig
from recsys.pipelines.tracking.cursor import TrackingCursor
from recsys.pipelines.tracking.tracker import Tracker
from recsys.pipelines.training import train

pytest.importorskip("mlflow", reason="needs the extra tracking")

KILLED = """
import os, signal, sys
from pathlib import Path
from recsys import config as configs
from recsys.pipelines.run_config import TrainConfig
from recsys.pipelines.tracking.tracker import Tracker
from recsys.pipelines.training import train

file, out, uri = sys.argv[1:]
tracker = Tracker(Path(out), uri, "killed")

def observe(event):
    if event["event"] == "validation" and event["epoch"] == 2:  # told before it is logged
        tracker.send(status="RUNNING")
        os.kill(os.getpid(), signal.SIGKILL)

train(configs.load(TrainConfig, configs.read(Path(file))), Path(out), observe)
"""


def test_a_killed_run_goes_on_as_the_same_run_of_the_server(
    circle: PreparedDataset, tmp_path: Path, store: str, peek: Any
) -> None:
    model = {"name": "sasrec", "d_model": 8, "num_layers": 1, "num_heads": 1, "max_len": 8}
    settings = OptimizationConfig(epochs=4, tokens_per_batch=256, lr=1e-2, threads=1, patience=None)
    config = TrainConfig(data=circle.path, model=model, train=settings)
    (tmp_path / "run.json").write_text(json.dumps(configs.dump(config)))
    out = tmp_path / "run"
    command = [sys.executable, "-c", KILLED, str(tmp_path / "run.json"), str(out), store]
    died = subprocess.run(command, capture_output=True, text=True, check=False)
    assert died.returncode == -signal.SIGKILL, died.stderr
    before = TrackingCursor.read(out)
    assert before is not None
    assert before.run_id is not None
    assert len(peek.history(store, before.run_id, "valid/ndcg_at_10")) == 2

    tracker = Tracker(out, store, "killed")
    train(config, out, tracker.observe)
    tracker.close("FINISHED")
    after = TrackingCursor.read(out)
    assert after is not None
    assert after.run_id == before.run_id
    (run,) = peek.runs(store, "killed")
    assert (run.info.run_id, run.info.status) == (before.run_id, "FINISHED")
    steps = [step for step, _ in peek.history(store, before.run_id, "valid/ndcg_at_10")]
    assert len(steps) == len(set(steps)) == 4
