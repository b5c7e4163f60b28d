"""One optimizer step: the loss of a few batches, their gradient, clipping, learning rate, average of the weights."""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import Tensor, nn

from recsys.errors import TrainingDiverged
from recsys.features.batches import JaggedBatch
from recsys.models.protocols import CountsTargets, NextItemModel, rows_of
from recsys.pipelines.optimization import build_optimizer, check_rows, clip_gradients, learning_rate_factor
from recsys.pipelines.run_config import TrainConfig
from recsys.pipelines.training.average import WeightAverage
from recsys.pipelines.training.state import RunState

_REMEDY = "lower train.lr or set train.clip_norm=1.0, and name another --out"


class Stepper:
    """Takes optimizer steps on a model.

    Args:
        model: its loss is minimised.
        module: the same, as an nn.Module, on the device that trains.
        config: of the run.
        num_steps: of the whole run, for the schedule.

    Raises:
        ConfigError: the model trains rows of its own, and a setting does not reach them.
    """

    def __init__(self, model: NextItemModel, module: nn.Module, config: TrainConfig, num_steps: int) -> None:
        self.model, self.module, self.config, self.num_steps = model, module, config, num_steps
        self.device = next(parameter.device for parameter in module.parameters())
        check_rows(module, config.train)
        self.optimizer, self.rows = build_optimizer(module, config.train), rows_of(module)
        self.average = None if config.train.ema is None else WeightAverage(module, config.train.ema)
        self.rate = 0.0  # of the last step

    def take(self, batches: Sequence[JaggedBatch], state: RunState, seconds: float) -> Tensor:
        """One step along the gradient of the mean over the batches' targets; counts it in the state.

        Args:
            batches: of one step. They weigh by their targets, or the same where the model does not count them.
            state: where the run stands before the step.
            seconds: into the run.

        Returns:
            Scalar: the mean loss over the targets.

        Raises:
            TrainingDiverged: on the CPU, where asking costs nothing: the loss is not finite. The weights stay.
        """
        config, first = self.config.train, state.step_in_epoch * self.config.train.accumulate
        self.rate = config.lr * learning_rate_factor(config, state.step, self.num_steps, seconds)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate
        self.optimizer.zero_grad(set_to_none=True)
        for part in self.rows.values():
            part.drop_gradients()
        loss = self._backward(batches, state.epoch, first)
        if config.clip_norm is not None:
            clip_gradients(self.module, self.rows.values(), config.clip_norm)
        state.step, state.step_in_epoch = state.step + 1, state.step_in_epoch + 1
        if self.device.type == "cpu":
            self.finite(loss, state)
        self.optimizer.step()
        for part in self.rows.values():
            part.step(self.rate)
        if self.average is not None:
            self.average.update(state.step)
        return loss

    def averaged(self) -> AbstractContextManager[None]:
        """Inside, the module has the weights that are validated and kept: their average where there is one."""
        return nullcontext() if self.average is None else self.average.in_place()

    def finite(self, loss: Tensor, state: RunState) -> float:
        """The loss of the step just taken, as a number.

        Raises:
            TrainingDiverged: it is not finite.
        """
        value = float(loss.detach())
        if not math.isfinite(value):
            raise self._diverged(f"the loss is {value}", state)
        return value

    def check_weights(self, state: RunState) -> None:
        """Hold that no weight is NaN or infinite, so that every checkpoint is one to go on from.

        Raises:
            TrainingDiverged: a parameter or a row is not finite, though the loss before it was; it is named.
        """
        for name, parameter in self.module.named_parameters():
            if not bool(torch.isfinite(parameter).all()):
                raise self._diverged(f"{name} is not finite", state)
        for name, part in self.rows.items():
            if not part.is_finite():
                raise self._diverged(f"a row of {name} is not finite", state)

    def _backward(self, batches: Sequence[JaggedBatch], epoch: int, first: int) -> Tensor:
        """Leaves the gradient of the batches, of which `first` is the number in the epoch; returns their mean loss."""
        shares = self._shares(batches, epoch, first)
        losses = []
        is_bf16 = self.config.train.precision == "bf16"
        for number, (batch, share) in enumerate(zip(batches, shares, strict=True), start=first):
            generator = seed_of_step(self.config.seed, epoch, number)
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=is_bf16):
                loss = self.model.loss(batch.to(self.device), generator)
            torch.autograd.backward(loss * share)
            losses.append(loss.detach().float() * share)
        return torch.stack(losses).sum()

    def _shares(self, batches: Sequence[JaggedBatch], epoch: int, first: int) -> list[float]:
        """What each batch weighs: its share of the targets."""
        if len(batches) == 1 or not isinstance(self.model, CountsTargets):
            return [1.0 / len(batches)] * len(batches)
        counts = [
            self.model.num_targets(batch, seed_of_step(self.config.seed, epoch, number))
            for number, batch in enumerate(batches, start=first)
        ]
        return [count / max(sum(counts), 1) for count in counts]

    def _diverged(self, what: str, state: RunState) -> TrainingDiverged:
        return TrainingDiverged(
            f"{what} at step {state.step} (lr={self.rate:g}); the last checkpoint is kept; {_REMEDY}"
        )


def seed_of_step(seed: int, epoch: int, step: int) -> torch.Generator:
    """Seeds torch (dropout) and returns the generator of masks and negatives: both depend on these three alone."""
    mixed = int(np.random.SeedSequence([seed, epoch + 1, step]).generate_state(1, np.uint64)[0] >> np.uint64(1))
    torch.manual_seed(mixed)
    return torch.Generator().manual_seed(mixed ^ 0x5DEECE66D)
