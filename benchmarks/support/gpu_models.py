"""The models on a GPU: agreement with the CPU, speed of training steps, trainings to the end."""

import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.support.op_contests import path
from benchmarks.support.training_steps import events_per_s, trained
from recsys import config as configs
from recsys.features.batches import TrainBatches, query_batches
from recsys.features.dataset import PreparedDataset
from recsys.models import registry
from recsys.models.bundle import load_bundle
from recsys.models.ranking.score import scores_of
from recsys.pipelines.evaluation.full_ranking import rank_targets
from recsys.pipelines.evaluation.metrics import metrics_per_query
from recsys.pipelines.run_config import TrainConfig
from recsys.pipelines.training import train


def model_parts(
    name: str, runs: Path, out: Path, *, device: str, seconds: float, epochs: int | None
) -> dict[str, Callable[[], dict[str, Any]]]:
    """What is measured of one config, by the part's name.

    Args:
        name: of the config below configs/, without its ending.
        runs: folder of the prepared datasets.
        out: folder of the training.
        seconds: of timed steps.
        epochs: of the training; None for the config's own.
    """
    config = _load_config(name, runs, device, epochs)
    return {
        "agreement": partial(_agreement, config, device),
        "speed": partial(_speed, config, device, seconds),
        "speed, torch path": partial(_speed, config, device, seconds, "torch"),
        "quality": partial(_quality, config, out / name.replace("/", "-")),
    }


def _load_config(name: str, runs: Path, device: str, epochs: int | None) -> TrainConfig:
    """The config of configs/, on this device."""
    mapping = configs.read(Path("configs") / f"{name}.yaml")
    mapping |= {"data": str(runs / name.split("/")[0] / "data")}
    mapping["train"] |= {"device": device, **({} if epochs is None else {"epochs": epochs})}
    return configs.load(TrainConfig, mapping)


def _agreement(config: TrainConfig, device: str) -> dict[str, float]:
    """Largest difference of loss, gradients and scores between this device and the CPU, dropout off, float32."""
    dataset = PreparedDataset.open(config.data)
    found = {}
    for place in ("cpu", device):
        torch.manual_seed(0)
        model: Any = registry.build(config.model["name"], {**config.model_config, "dropout": 0.0}, dataset.num_items)
        model.to(place)
        batches = TrainBatches(dataset, max_len=model.train_len, tokens_per_batch=4096, seed=0)
        batch = next(iter(batches.epoch(0))).to(place)
        loss = model.loss(batch, torch.Generator().manual_seed(0))
        torch.autograd.backward(loss)
        gradients = torch.cat([parameter.grad.flatten().cpu() for parameter in model.parameters()])
        _, asked = next(iter(query_batches(dataset, dataset.queries("valid"), max_len=model.max_len, max_rows=64)))
        scores = scores_of(model.eval(), asked.to(place))[:, 1:].cpu()
        found[place] = (float(loss.detach()), gradients, scores)
    (loss_a, grad_a, score_a), (loss_b, grad_b, score_b) = found["cpu"], found[device]
    return {
        "loss": abs(loss_a - loss_b),
        "gradient_relative": float((grad_a - grad_b).norm() / grad_a.norm()),
        "score": float((score_a - score_b).abs().max()),
    }


def _speed(config: TrainConfig, device: str, seconds: float, kernels: str = "auto") -> dict[str, Any]:
    """Real events per second of training steps by a path of the kernels, each timed to its end on the device."""
    with path(kernels):
        speeds = events_per_s(trained(config, device), seconds)
    return {"events_per_s": round(statistics.median(speeds)), "steps": len(speeds)}


def _quality(config: TrainConfig, out: Path) -> dict[str, Any]:
    """Train to the end and rank the test part in full."""
    began = time.perf_counter()
    result = train(config, out)
    seconds = time.perf_counter() - began
    dataset, bundle = PreparedDataset.open(config.data), load_bundle(result.bundle)
    queries = dataset.queries("test")
    ranks = rank_targets(bundle.model, dataset, queries)
    figures = {name: float(value.mean()) for name, value in metrics_per_query(ranks, queries.target_offsets).items()}
    return {
        "seconds": round(seconds, 1),
        "epochs": result.epochs,
        "best_epoch": result.best_epoch,
        "protocol": dataset.protocol_string("test", "exclude"),
        "validation": result.validation,
        "test": figures,
    }
