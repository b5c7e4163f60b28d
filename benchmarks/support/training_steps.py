"""The steps of a training, timed one by one."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from recsys.features.batches import TrainBatches
from recsys.features.dataset import PreparedDataset
from recsys.models import registry
from recsys.pipelines.optimization import build_batches, build_optimizer
from recsys.pipelines.run_config import TrainConfig

WARM_UP_STEPS = 5


@dataclass(frozen=True)
class Trained:
    """A config's model, its batches, and one step on a batch, which returns when the device has done it."""

    model: Any
    batches: TrainBatches
    step: Callable[[Any, int], None]


def trained(config: TrainConfig, device: str = "cpu") -> Trained:
    """What a config trains, built on this device."""
    dataset = PreparedDataset.open(config.data)
    torch.manual_seed(0)
    model: Any = registry.build(config.model["name"], config.model_config, dataset.num_items)
    model.to(device).train()
    optimizer = build_optimizer(model, config.train)

    def step(batch: Any, number: int) -> None:
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(model.loss(batch.to(device), torch.Generator().manual_seed(number)))
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return Trained(model, build_batches(model, dataset, config.train, config.seed), step)


def events_per_s(subject: Trained, seconds: float) -> list[float]:
    """Real events per second of each step after warm-up, for so many seconds."""
    speeds: list[float] = []
    until, number, epoch = time.perf_counter() + seconds, 0, 0
    while time.perf_counter() < until:
        for batch in subject.batches.epoch(epoch):
            began = time.perf_counter()
            subject.step(batch, number)
            number += 1
            if number > WARM_UP_STEPS:
                speeds.append(len(batch.values) / (time.perf_counter() - began))
            if time.perf_counter() >= until:
                break
        epoch += 1
    return speeds
