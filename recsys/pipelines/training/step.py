"""One optimizer step: loss, gradient, clipping, learning rate."""

import math

import numpy as np
import torch
from torch import Tensor, nn

from recsys.errors import TrainingDiverged
from recsys.features.batches import JaggedBatch
from recsys.models.protocols import NextItemModel
from recsys.pipelines.optimization import build_optimizer, learning_rate_factor
from recsys.pipelines.run_config import TrainConfig
from recsys.pipelines.training.state import RunState


class Stepper:
    """Takes optimizer steps on a model.

    Args:
        model: its loss is minimised.
        module: the same, as an nn.Module, on the device that trains.
        config: of the run.
        num_steps: of the whole run, for the schedule.
    """

    def __init__(self, model: NextItemModel, module: nn.Module, config: TrainConfig, num_steps: int) -> None:
        self.model, self.module, self.config, self.num_steps = model, module, config, num_steps
        self.optimizer = build_optimizer(module, config.train)

    def take(self, batch: JaggedBatch, state: RunState, seconds: float) -> Tensor:
        """One step on `batch`, `seconds` into the run; returns the loss. Counts it in the state.

        Raises:
            TrainingDiverged: on the CPU, where asking costs nothing: the loss is not finite. The weights stay.
        """
        config = self.config.train
        generator = seed_of_step(self.config.seed, state.epoch, state.step_in_epoch)
        rate = config.lr * learning_rate_factor(config, state.step, self.num_steps, seconds)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = self.model.loss(batch, generator)
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        if config.clip_norm:
            nn.utils.clip_grad_norm_(self.module.parameters(), config.clip_norm)
        state.step, state.step_in_epoch = state.step + 1, state.step_in_epoch + 1
        if loss.device.type == "cpu":
            self.finite(loss, state)
        self.optimizer.step()
        return loss.detach()

    def finite(self, loss: Tensor, state: RunState) -> float:
        """The loss of the step just taken, as a number.

        Raises:
            TrainingDiverged: it is not finite.
        """
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingDiverged(
                f"the loss is {value} at step {state.step} (lr={self.config.train.lr:g}); the last checkpoint is kept; "
                "lower train.lr or set train.clip_norm=1.0"
            )
        return value


def seed_of_step(seed: int, epoch: int, step: int) -> torch.Generator:
    """Seeds torch (dropout) and returns the generator of masks and negatives: both depend on these three alone."""
    mixed = int(np.random.SeedSequence([seed, epoch + 1, step]).generate_state(1, np.uint64)[0] >> np.uint64(1))
    torch.manual_seed(mixed)
    return torch.Generator().manual_seed(mixed ^ 0x5DEECE66D)
