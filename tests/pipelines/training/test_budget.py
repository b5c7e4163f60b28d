"""A run with a time budget: it ends when the time is spent, counts its time over resumes, and decays by the clock."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from recsys.errors import CheckpointError
from recsys.features.dataset import PreparedDataset
from recsys.models.bundle import check_golden, load_bundle
from recsys.pipelines.optimization import OptimizationConfig, learning_rate_factor
from recsys.pipelines.run_config import TrainConfig
from recsys.pipelines.training import Stopped, train

SMALL: dict[str, Any] = {"d_model": 16, "num_layers": 1, "num_heads": 2, "d_ff": 32, "max_len": 12}
BUDGET_S = 0.6
SLACK_S = 10  # of a machine that does other things: the last step and the last validation stand on top


def config_of(circle: PreparedDataset, **train_keys: Any) -> TrainConfig:
    keys = {"epochs": 10_000, "max_seconds": BUDGET_S, "tokens_per_batch": 128, "threads": 1, "patience": None}
    return TrainConfig(
        data=circle.path,
        model={"name": "sasrec", **SMALL},
        train=OptimizationConfig(**{**keys, "lr": 1e-2, "decay": "linear", **train_keys}),
        seed=5,
    )


def events_of(out: Path, kind: str) -> list[dict[str, Any]]:
    lines = (out / "log.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


def test_a_run_ends_when_its_time_is_spent(circle: PreparedDataset, tmp_path: Path) -> None:
    result = train(config_of(circle), tmp_path / "run")
    assert BUDGET_S <= result.seconds < BUDGET_S + SLACK_S
    assert 0 < result.epochs < 10_000
    assert result.validation["ndcg@10"] > 0.3
    assert check_golden(load_bundle(result.bundle)) == []


def test_short_epochs_are_not_all_validated(circle: PreparedDataset, tmp_path: Path) -> None:
    """Ranking all users after each epoch of a few steps would eat the time that is to be trained."""
    result = train(config_of(circle, tokens_per_batch=4096), tmp_path / "run")
    validations = events_of(tmp_path / "run", "validation")
    assert 1 <= len(validations) <= 13
    assert result.epochs > len(validations)
    assert validations[-1]["step"] == result.steps, "the end is validated"
    assert result.validation["ndcg@10"] == max(event["ndcg@10"] for event in validations)


def test_an_epoch_longer_than_the_time_is_cut_and_validated(circle: PreparedDataset, tmp_path: Path) -> None:
    result = train(config_of(circle, max_seconds=0.01, tokens_per_batch=16), tmp_path / "run")
    assert (result.epochs, result.best_epoch) == (0, 0)
    assert 0 < result.steps < 90
    assert len(events_of(tmp_path / "run", "validation")) == 1


def test_epochs_still_end_a_run_that_has_time_left(circle: PreparedDataset, tmp_path: Path) -> None:
    result = train(config_of(circle, epochs=2, max_seconds=600), tmp_path / "run")
    assert result.epochs == 2
    assert result.seconds < 600


def test_a_stopped_run_goes_on_and_its_time_is_counted_over_all_resumes(
    circle: PreparedDataset, tmp_path: Path
) -> None:
    config = config_of(circle)

    def stop(event: dict[str, Any]) -> None:
        if event["event"] == "validation":
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Stopped):
        train(config, tmp_path / "run", stop)
    (start,) = events_of(tmp_path / "run", "start")
    result = train(config, tmp_path / "run")
    resumed = events_of(tmp_path / "run", "start")[-1]
    assert resumed["resumed"]
    assert resumed["step"] > start["step"]
    assert BUDGET_S <= result.seconds < BUDGET_S + SLACK_S


def test_a_finished_run_is_not_trained_again(circle: PreparedDataset, tmp_path: Path) -> None:
    first = train(config_of(circle), tmp_path / "run")
    again = train(config_of(circle), tmp_path / "run")
    assert (again.steps, again.weights_sha256) == (first.steps, first.weights_sha256)


def test_another_budget_is_another_run(circle: PreparedDataset, tmp_path: Path) -> None:
    train(config_of(circle, max_seconds=0.05), tmp_path / "run")
    with pytest.raises(CheckpointError, match="began with another config"):
        train(config_of(circle, max_seconds=0.1), tmp_path / "run")


def test_the_rate_decays_with_the_time_that_is_spent() -> None:
    config = OptimizationConfig(epochs=1000, max_seconds=10.0, warmup_steps=4, decay="linear")
    assert learning_rate_factor(config, 1, 100_000, 0.0) == 0.5
    assert learning_rate_factor(config, 4, 100_000, 0.0) == 1.0
    assert learning_rate_factor(config, 4, 100_000, 7.5) == 0.25
    assert learning_rate_factor(config, 4, 100_000, 12.0) == 0.0
    assert learning_rate_factor(config, 75_001, 100_000, 1.0) == pytest.approx(0.25, abs=1e-4)


def test_without_a_budget_the_clock_changes_nothing() -> None:
    config = OptimizationConfig(epochs=10, decay="linear")
    assert learning_rate_factor(config, 25, 100, 0.0) == learning_rate_factor(config, 25, 100, 1e9) == 0.75


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("inf"), float("nan")])
def test_a_budget_without_time_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="max_seconds"):
        OptimizationConfig(max_seconds=seconds)
