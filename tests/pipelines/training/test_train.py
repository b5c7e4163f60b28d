import json
import os
import resource
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from recsys import config as configs
from recsys.errors import CheckpointError, ConfigError, InputError, StorageError, TrainingDiverged
from recsys.features.dataset import PreparedDataset
from recsys.features.prepare import PrepareConfig, prepare
from recsys.models.bundle import check_golden, load_bundle
from recsys.models.masking import draw_masks
from recsys.models.registry import names
from recsys.pipelines.evaluation.full_ranking import rank_targets
from recsys.pipelines.evaluation.metrics import metrics_per_query
from recsys.pipelines.optimization import OptimizationConfig, learning_rate_factor
from recsys.pipelines.run_config import TrainConfig
from recsys.pipelines.training import Stopped, seed_of_step, train
from tests.pipelines.training.small import SMALL, config_of, events_of

EPOCHS = {"sasrec": 20, "bert4rec": 60}


@pytest.mark.parametrize("name", names())
def test_a_run_learns_the_circle_and_leaves_a_bundle(circle: PreparedDataset, tmp_path: Path, name: str) -> None:
    result = train(config_of(circle, name, epochs=EPOCHS[name], patience=None), tmp_path / "run")
    assert result.validation["ndcg@10"] > 0.8
    bundle = load_bundle(result.bundle)
    assert bundle.name == name
    assert bundle.metrics["validation"]["ndcg@10"] == result.validation["ndcg@10"]
    assert bundle.metrics["validation"]["protocol"].startswith("loo/next/full-rank/")
    assert check_golden(bundle) == []
    assert [event["epoch"] for event in events_of(tmp_path / "run", "validation")] == list(range(EPOCHS[name]))


def test_the_bundle_holds_the_weights_of_the_best_validation(circle: PreparedDataset, tmp_path: Path) -> None:
    result = train(config_of(circle, epochs=6, lr=5e-2, patience=None), tmp_path / "run")
    curve = [event["ndcg@10"] for event in events_of(tmp_path / "run", "validation")]
    assert result.best_epoch == int(np.argmax(curve))
    assert result.best_epoch < 5, "were the last epoch the best, a mistake would not be seen"
    assert result.validation["ndcg@10"] == max(curve)
    queries = circle.queries("valid")
    ranks = rank_targets(load_bundle(result.bundle).model, circle, queries)
    found = metrics_per_query(ranks, queries.target_offsets)["ndcg@10"].mean()
    assert found == pytest.approx(max(curve), abs=1e-9)


def test_early_stopping_waits_for_patience_validations(circle: PreparedDataset, tmp_path: Path) -> None:
    config = config_of(circle, epochs=40, lr=3e-2, patience=2)
    result = train(config, tmp_path / "run")
    curve = [event["ndcg@10"] for event in events_of(tmp_path / "run", "validation")]
    assert len(curve) == result.epochs < 40
    assert int(np.argmax(curve)) == len(curve) - 3
    again = train(config, tmp_path / "run")
    assert (again.epochs, again.weights_sha256) == (result.epochs, result.weights_sha256)


def test_the_schedule_and_the_epoch_reach_the_weights(circle: PreparedDataset, tmp_path: Path) -> None:
    """With a warm-up far longer than the run the weights hardly move; a run's second epoch draws other masks."""
    still = train(config_of(circle, epochs=2, warmup_steps=100_000), tmp_path / "still")
    moving = train(config_of(circle, epochs=2, warmup_steps=4), tmp_path / "moving")
    losses = [[e["loss"] for e in events_of(tmp_path / name, "step")] for name in ("still", "moving")]
    assert abs(losses[0][-1] - np.log(20)) < 0.1
    assert losses[1][-1] < losses[0][-1] - 0.2
    assert still.weights_sha256 != moving.weights_sha256
    first, second = (draw_masks((50,), 0.2, 0.0, seed_of_step(0, epoch, 0)) for epoch in (0, 1))
    assert not first.equal(second)


@pytest.mark.parametrize("name", names())
def test_a_stopped_run_ends_with_the_same_bytes(circle: PreparedDataset, tmp_path: Path, name: str) -> None:
    config = config_of(circle, name, checkpoint_every=2)
    whole = train(config, tmp_path / "whole")

    def stop_at(step: int) -> Callable[[dict[str, Any]], None]:
        def observe(event: dict[str, Any]) -> None:
            if event["event"] == "checkpoint" and event["step"] >= step:
                os.kill(os.getpid(), signal.SIGINT)

        return observe

    for step in (2, 9):
        with pytest.raises(Stopped, match="goes on from there"):
            train(config, tmp_path / "parts", stop_at(step))
    assert train(config, tmp_path / "parts").weights_sha256 == whole.weights_sha256
    logged = [(event["epoch"], event["ndcg@10"]) for event in events_of(tmp_path / "parts", "validation")]
    assert logged == [(event["epoch"], event["ndcg@10"]) for event in events_of(tmp_path / "whole", "validation")]


def test_a_finished_run_is_not_trained_again(circle: PreparedDataset, tmp_path: Path) -> None:
    first = train(config_of(circle), tmp_path / "run")
    events: list[dict[str, Any]] = []
    second = train(config_of(circle), tmp_path / "run", events.append)
    assert second.weights_sha256 == first.weights_sha256
    assert [event for event in events if event["event"] == "step"] == []


def test_another_seed_gives_other_weights(circle: PreparedDataset, tmp_path: Path) -> None:
    config = config_of(circle, epochs=1)
    first, second = train(config, tmp_path / "a"), train(replace(config, seed=6), tmp_path / "b")
    assert first.weights_sha256 != second.weights_sha256
    assert train(config, tmp_path / "c").weights_sha256 == first.weights_sha256


def test_a_run_folder_of_another_config_is_refused(circle: PreparedDataset, tmp_path: Path) -> None:
    train(config_of(circle, epochs=1), tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"began with another config \(train.epochs=1, now 2\)"):
        train(config_of(circle, epochs=2), tmp_path / "run")


def test_a_run_of_a_version_that_lacked_a_setting_goes_on(circle: PreparedDataset, tmp_path: Path) -> None:
    first = train(config_of(circle, epochs=1), tmp_path / "run")
    file = tmp_path / "run" / "run.json"
    record = json.loads(file.read_text())
    del record["config"]["train"]["max_seconds"], record["config"]["model"]["block"]
    file.write_text(json.dumps(record))
    assert train(config_of(circle, epochs=1), tmp_path / "run").weights_sha256 == first.weights_sha256
    record["config"]["model"]["a_setting_that_went"] = 1
    file.write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match=r"began with another config \(model.a_setting_that_went=1, now null, "):
        train(config_of(circle, epochs=1), tmp_path / "run")


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(
    circle: PreparedDataset, tmp_path: Path
) -> None:
    good = config_of(circle, epochs=1)
    train(good, tmp_path / "good")
    weights = load_file(tmp_path / "good" / "bundle" / "weights.safetensors")
    assert all(np.isfinite(value).all() for value in weights.values())
    with pytest.raises(TrainingDiverged, match=r"the loss is (nan|inf) at step \d+ \(lr=1e\+30\).*lower train.lr"):
        train(config_of(circle, epochs=3, lr=1e30), tmp_path / "bad")
    assert not (tmp_path / "bad" / "bundle").exists()


def test_a_model_without_a_name_and_an_unknown_device_are_refused(circle: PreparedDataset) -> None:
    with pytest.raises(ValueError, match="model.name is missing; known models: bert4rec, sasrec"):
        TrainConfig(data=circle.path, model={})
    given = {"data": str(circle.path), "model": {"name": "sasrec"}, "train": {"device": "tpu"}}
    with pytest.raises(ConfigError, match="train.device='tpu'"):
        configs.load(TrainConfig, given)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("epochs", 0),
        ("sequences_per_batch", 0),
        ("lr", 0.0),
        ("patience", 0),
        ("tokens_per_batch", 0),
        ("checkpoint_every", -1),
    ],
)
def test_a_setting_out_of_range_is_named(key: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{key}={value} must be"):
        OptimizationConfig(**{key: value})  # type: ignore[arg-type]  # the wrong value is the test


def test_the_learning_rate_rises_then_falls_to_zero() -> None:
    config = OptimizationConfig(warmup_steps=10, decay="linear")
    factors = [learning_rate_factor(config, step, 110) for step in range(110)]
    assert factors[:3] == [0.1, 0.2, 0.3]
    assert factors[9] == factors[10] == 1.0
    assert factors[60] == 0.5
    assert 0 < factors[-1] < 0.011
    cosine = OptimizationConfig(decay="cosine")
    assert learning_rate_factor(cosine, 50, 100) == pytest.approx(0.5)
    assert learning_rate_factor(cosine, 25, 100) == pytest.approx(0.8536, abs=1e-4)
    assert learning_rate_factor(OptimizationConfig(), 99, 100) == 1.0


def test_a_second_process_in_the_same_run_folder_is_refused(circle: PreparedDataset, tmp_path: Path) -> None:
    config = config_of(circle, epochs=1)

    def intrude(event: dict[str, Any]) -> None:
        if event["event"] == "start":
            with pytest.raises(
                CheckpointError, match="another process trains there; wait for it, or name another --out"
            ):
                train(config, tmp_path / "run")

    first = train(config, tmp_path / "run", intrude)
    assert train(config, tmp_path / "run").weights_sha256 == first.weights_sha256


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(circle: PreparedDataset, tmp_path: Path) -> None:
    config = config_of(circle, checkpoint_every=2)
    whole = train(config, tmp_path / "whole")

    def stop(event: dict[str, Any]) -> None:
        if event["event"] == "checkpoint" and event["step"] >= 8:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped):
        train(config, tmp_path / "run", stop)
    newest = sorted((tmp_path / "run" / "checkpoints").glob("step-*"))[-1] / "tensors.safetensors"
    data = bytearray(newest.read_bytes())
    data[-1] ^= 1
    newest.write_bytes(data)
    events: list[dict[str, Any]] = []
    assert train(config, tmp_path / "run", events.append).weights_sha256 == whole.weights_sha256
    (warning,) = [event["message"] for event in events if event["event"] == "warning"]
    assert "its bytes differ" in warning
    assert "going on from the one before" in warning


def test_the_number_of_threads_is_that_of_before_after_a_run(circle: PreparedDataset, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    events: list[dict[str, Any]] = []
    train(config_of(circle, epochs=1, threads=before + 1), tmp_path / "run", events.append)
    assert events[0]["threads"] == before + 1
    assert torch.get_num_threads() == before


def test_a_folder_of_other_things_and_a_file_are_refused(circle: PreparedDataset, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("...")
    with pytest.raises(CheckpointError, match="is no run folder and holds other things; name a new --out"):
        train(config_of(circle), tmp_path / "mine")
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["thesis.tex"]
    with pytest.raises(InputError, match=r"thesis.tex.*cannot be written.*name another place"):
        train(config_of(circle), tmp_path / "mine" / "thesis.tex")


def test_a_full_disk_ends_the_run_in_one_line_and_keeps_the_checkpoint_before(
    circle: PreparedDataset, tmp_path: Path
) -> None:
    """A limit on the size of files stands for the disk; the run goes on once it is lifted."""
    config = config_of(circle, checkpoint_every=3)
    whole = train(config, tmp_path / "whole")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(event: dict[str, Any]) -> None:
        if event["event"] == "checkpoint":
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))

    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with pytest.raises(StorageError, match="cannot be written .*older checkpoints are kept; free some disk space"):
            train(config, tmp_path / "run", fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000003"]
    assert train(config, tmp_path / "run").weights_sha256 == whole.weights_sha256


def test_every_epoch_draws_masks_of_its_own(tmp_path: Path) -> None:
    """One user, no dropout, weights that stand still: only the masks can change the loss."""
    (tmp_path / "one.txt").write_text("u " + " ".join(f"i{n % 7}" for n in range(12)) + "\n")
    data = prepare(tmp_path / "one.txt", tmp_path / "data", PrepareConfig())
    model = {"name": "bert4rec", **SMALL, "dropout": 0.0, "mask_share": 0.3}
    config = TrainConfig(data=data.path, model=model, train=OptimizationConfig(epochs=6, lr=1e-12, patience=None))
    train(config, tmp_path / "run")
    assert len({event["loss"] for event in events_of(tmp_path / "run", "step")}) > 2
