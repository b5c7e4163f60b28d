"""BERT4Rec as its authors trained it: the settings, the counts of their data, and a run that stops and goes on."""

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recsys import config as configs
from recsys.features.dataset import PreparedDataset
from recsys.features.prepare import FilterConfig, PrepareConfig, SplitConfig, prepare
from recsys.models import registry
from recsys.models.bundle import load_bundle
from recsys.pipelines.evaluation.full_ranking import rank_targets
from recsys.pipelines.evaluation.metrics import metrics_per_query
from recsys.pipelines.optimization import OptimizationConfig, build_batches, learning_rate_factor
from recsys.pipelines.run_config import TrainConfig
from recsys.pipelines.training import Stopped, train

ROOT = Path(__file__).resolve().parents[2]
AUTHORS_STEPS, AUTHORS_BATCH = 400_000, 256
SMALL = {"d_model": 16, "num_layers": 1, "num_heads": 2, "d_ff": 32, "max_len": 6, "window_prop": 0.5, "copies": 3}


def faithful(data: str) -> TrainConfig:
    return configs.load(TrainConfig, configs.read(ROOT / "configs" / data / "bert4rec-faithful.yaml"))


@pytest.mark.parametrize(
    ("data", "published"),
    [
        ("amazon-beauty-bert4rec", (50, 0.6, 30, 0.1, 0.5, 0.2)),
        ("ml-1m", (200, 0.2, 40, 0.5, 0.2, 0.2)),
    ],
)
def test_the_settings_are_the_published_ones(data: str, published: tuple[float, ...]) -> None:
    model, optimization = faithful(data).model_config, faithful(data).train
    names = ("max_len", "mask_share", "max_predictions", "window_prop", "dropout", "attention_dropout")
    assert tuple(model[name] for name in names) == published
    assert [model[name] for name in ("d_model", "num_heads", "d_ff", "num_layers", "copies")] == [64, 2, 256, 2, 10]
    assert optimization == OptimizationConfig(
        optimizer="bert_adam",
        lr=1e-4,
        beta2=0.999,
        weight_decay=0.01,
        warmup_steps=100,
        decay="linear",
        clip_norm=5.0,
        sequences_per_batch=AUTHORS_BATCH,
        epochs=optimization.epochs,
        patience=None,
    )


@pytest.mark.skipif(not os.environ.get("RECSYS_DATA"), reason="RECSYS_DATA names no folder of real datasets")
@pytest.mark.parametrize(
    ("data", "least", "counts"),
    [("amazon-beauty-bert4rec", 1, (41_738, 459_118)), ("ml-1m", 5, (10_272, 112_992))],
)
def test_windows_and_instances_are_counted_as_the_authors_code_makes_them(
    data: str, least: int, counts: tuple[int, int], tmp_path: Path
) -> None:
    source = Path(os.environ["RECSYS_DATA"]) / data / "sequences.parquet"
    if not source.is_file():
        pytest.skip(f"RECSYS_DATA holds no {data}/sequences.parquet")
    prepared = PrepareConfig(filters=FilterConfig(min_item_events=least), split=SplitConfig(protocol="loo-novalid"))
    dataset, config = prepare(source, tmp_path / "data", prepared), faithful(data)
    model: Any = registry.build("bert4rec", config.model_config, dataset.num_items)
    batches = build_batches(model, dataset, config.train, config.seed)
    assert (batches.num_windows, batches.num_instances) == counts
    assert batches.num_instances == 11 * batches.num_windows
    steps = len(batches.plan(0)) * config.train.epochs
    assert abs(steps - AUTHORS_STEPS) <= len(batches.plan(0)) / 2, "no other number of epochs is nearer to their steps"
    last = int((np.concatenate(batches.plan(0)) % 11 == 10).sum())
    assert last == batches.num_windows, "one of eleven is masked at its last event"


def small_run(circle: PreparedDataset, **train_keys: Any) -> TrainConfig:
    """The faithful settings of Beauty on the circle, with a network that fits it."""
    config = faithful("amazon-beauty-bert4rec")
    keys = {"lr": 5e-3, "warmup_steps": 4, "sequences_per_batch": 32, "epochs": 2, "threads": 1, **train_keys}
    return replace(
        config, data=circle.path, model={**config.model, **SMALL, "dropout": 0.1}, train=replace(config.train, **keys)
    )


def test_a_stopped_run_ends_with_the_same_bytes(circle: PreparedDataset, tmp_path: Path) -> None:
    config = small_run(circle, checkpoint_every=5)
    whole = train(config, tmp_path / "whole")

    def stop(event: dict[str, Any]) -> None:
        if event["event"] == "checkpoint" and event["step"] in (5, 30):
            os.kill(os.getpid(), signal.SIGINT)

    for _ in range(2):
        with pytest.raises(Stopped):
            train(config, tmp_path / "parts", stop)
    assert train(config, tmp_path / "parts").weights_sha256 == whole.weights_sha256


def test_it_learns_without_a_validation_part(circle_csv: Path, tmp_path: Path) -> None:
    data = prepare(circle_csv, tmp_path / "data", PrepareConfig(split=SplitConfig(protocol="loo-novalid")))
    result = train(small_run(data, epochs=16), tmp_path / "run")
    assert (result.best_epoch, result.validation) == (None, {})
    queries = data.queries("test")
    ranks = rank_targets(load_bundle(result.bundle).model, data, queries)
    assert metrics_per_query(ranks, queries.target_offsets)["ndcg@10"].mean() > 0.8


def test_a_run_steps_by_sequences_over_every_copy_of_every_window(circle: PreparedDataset, tmp_path: Path) -> None:
    config = small_run(circle, epochs=1)
    model = registry.build("bert4rec", config.model_config, circle.num_items)
    batches = build_batches(model, circle, config.train, 0)
    assert batches.num_instances == 4 * batches.num_windows
    assert batches.num_windows > len(circle.train_slices()), "some users have more than one window"
    assert {len(batch.lengths) for batch in list(batches.epoch(0))[:-1]} == {32}
    told: list[dict[str, Any]] = []
    result = train(config, tmp_path / "run", told.append)
    assert result.steps == -(-batches.num_instances // 32)
    assert told[0]["tokens_per_epoch"] == batches.num_tokens


def test_the_rate_of_the_faithful_settings_warms_up_for_100_steps_and_ends_at_0() -> None:
    optimization = faithful("amazon-beauty-bert4rec").train
    factors = [learning_rate_factor(optimization, step, AUTHORS_STEPS) for step in (0, 99, 200_050, AUTHORS_STEPS - 1)]
    assert factors == pytest.approx([0.01, 1.0, 0.5, 0.0], abs=1e-5)
