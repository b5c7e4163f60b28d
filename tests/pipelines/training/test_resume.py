"""What a resumed run brings back, and what it says where it cannot promise the same bytes."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.support.killed_run import KilledRun
from recsys import config as configs
from recsys.features.dataset import PreparedDataset
from recsys.pipelines.training import Stopped, train
from tests.pipelines.training.small import config_of, events_of

ALL_ON: dict[str, Any] = {
    "ema": 0.9,
    "accumulate": 2,
    "precision": "bf16",
    "clip_norm": 0.5,
    "warmup_steps": 5,
    "decay": "cosine",
    "weight_decay": 0.01,
    "tokens_per_batch": 128,
    "checkpoint_every": 3,
}


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def stop_at(step: int) -> Callable[[dict[str, Any]], None]:
    def observe(event: dict[str, Any]) -> None:
        if event["event"] == "checkpoint" and event["step"] >= step:
            os.kill(os.getpid(), signal.SIGINT)

    return observe


def test_kills_at_steps_inside_writes_and_at_an_epochs_end_change_no_byte(
    circle: PreparedDataset, tmp_path: Path
) -> None:
    """One run, killed again and again; `benchmarks.resume` does it at 20 steps of each model, with and without all."""
    config = config_of(circle, "bert4rec", epochs=4, patience=None, **ALL_ON)
    # Wide enough that a write takes longer than a signal.
    config = replace(config, model={**config.model, "d_model": 64, "d_ff": 256})
    file = tmp_path / "run.json"
    file.write_text(json.dumps(configs.dump(config)))
    whole, run = KilledRun(file, tmp_path / "whole"), KilledRun(file, tmp_path / "killed")
    wanted, generator = whole.finish(), np.random.default_rng(7)
    deaths = [
        run.kill_at_step(2),
        run.kill_at_epoch_end(0),
        run.kill_in_write(generator, writes=2),
        run.kill_at_step(int(generator.integers(1, 4))),
        run.kill_in_write(generator, writes=2),
    ]
    assert deaths[0].resumed_from == 0
    assert max(death.resumed_from for death in deaths) > 0
    assert run.finish() == wanted
    curves = [[(e["epoch"], e["ndcg@10"]) for e in events_of(out, "validation")] for out in (run.out, whole.out)]
    assert curves[0] == curves[1]


def test_patience_counts_over_a_resume(circle: PreparedDataset, tmp_path: Path) -> None:
    """Stopped one bad validation before the end, the run must not wait for as many again."""
    config = config_of(circle, epochs=40, lr=3e-2, patience=3)
    whole = train(config, tmp_path / "whole")
    ends = [event["step"] for event in events_of(tmp_path / "whole", "validation")]
    with pytest.raises(Stopped):
        train(config, tmp_path / "parts", stop_at(ends[-2]))
    parts = train(config, tmp_path / "parts")
    assert (parts.epochs, parts.best_epoch, parts.weights_sha256) == (
        whole.epochs,
        whole.best_epoch,
        whole.weights_sha256,
    )


def test_another_number_of_threads_goes_on_and_warns(circle: PreparedDataset, tmp_path: Path, threads: None) -> None:
    del threads
    config = config_of(circle, checkpoint_every=2)
    with pytest.raises(Stopped):
        train(config, tmp_path / "run", stop_at(2))
    events: list[dict[str, Any]] = []
    more = replace(config, train=replace(config.train, threads=2))
    train(more, tmp_path / "run", events.append)
    (warning,) = [event["message"] for event in events if event["event"] == "warning"]
    assert warning == "resumed with threads=2, began with threads=1: the last bits of the weights may differ"
    assert [event["message"] for event in events_of(tmp_path / "run", "warning")] == [warning]


@pytest.mark.parametrize("name", ["device", "gpu", "instructions", "torch", "kernels", "recsys", "commit"])
def test_whatever_the_last_bits_depend_on_is_compared(circle: PreparedDataset, tmp_path: Path, name: str) -> None:
    config = config_of(circle, checkpoint_every=2)
    with pytest.raises(Stopped):
        train(config, tmp_path / "run", stop_at(2))
    for state in (tmp_path / "run" / "checkpoints").glob("*/state.json"):
        state.write_text(json.dumps(json.loads(state.read_text()) | {name: "another"}))
    train(config, tmp_path / "run")
    (warning,) = events_of(tmp_path / "run", "warning")
    assert warning["message"].startswith(f"resumed with {name}=")
    assert f"began with {name}=another" in warning["message"]


def test_the_same_threads_do_not_warn(circle: PreparedDataset, tmp_path: Path) -> None:
    config = config_of(circle, checkpoint_every=2)
    with pytest.raises(Stopped):
        train(config, tmp_path / "run", stop_at(2))
    events: list[dict[str, Any]] = []
    train(config, tmp_path / "run", events.append)
    assert [event for event in events if event["event"] == "warning"] == []


def test_a_run_that_began_before_its_settings_existed_goes_on(circle: PreparedDataset, tmp_path: Path) -> None:
    """run.json and state.json as they were written before ema, accumulate, precision, device and torch stood there."""
    config = config_of(circle, checkpoint_every=2)
    whole = train(config, tmp_path / "whole")
    with pytest.raises(Stopped):
        train(config, tmp_path / "run", stop_at(4))
    file = tmp_path / "run" / "run.json"
    record = json.loads(file.read_text())
    for key in ("ema", "accumulate", "precision"):
        del record["config"]["train"][key]
    del record["config"]["model"]["activation"]
    file.write_text(json.dumps(record))
    for state in (tmp_path / "run" / "checkpoints").glob("*/state.json"):
        stored = json.loads(state.read_text())
        del stored["device"], stored["torch"]
        state.write_text(json.dumps(stored))
    assert train(config, tmp_path / "run").weights_sha256 == whole.weights_sha256
