"""The training loop: from a prepared dataset and a config to a bundle. Needs torch, numpy and safetensors alone.

A run folder can be stopped at any moment and started again: the weights at the end are the same to the last bit, since
every random draw is a function of (seed, epoch, step) and a checkpoint holds all the rest. With `max_seconds` steps and
learning rate follow the clock: such a run goes on where it stood, its time counted over all resumes, but its weights
are those of no other run.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from recsys.errors import ConfigError
from recsys.features.batches import TrainBatches
from recsys.features.leakage import open_without_leaks
from recsys.files import sha256_of, storage_errors
from recsys.models import registry
from recsys.models.protocols import NextItemModel, ReadsDataset
from recsys.pipelines.optimization import OptimizationConfig, build_batches
from recsys.pipelines.run_config import TrainConfig, begin_warm, open_run, record_of
from recsys.pipelines.run_log import Observer, RunClock, RunLog
from recsys.pipelines.stopping import on_stop_signal
from recsys.pipelines.training.memory import memory_errors
from recsys.pipelines.training.plan import Plan
from recsys.pipelines.training.result import Stopped, TrainResult, write_bundle
from recsys.pipelines.training.state import Checkpoints, RunState, place_of
from recsys.pipelines.training.step import Stepper, seed_of_step
from recsys.pipelines.training.tables import log_tables
from recsys.pipelines.training.validation import Validation, weights_of


def train(config: TrainConfig, out: Path, observe: Observer | None = None) -> TrainResult:
    """Train, or go on training, in the run folder `out`.

    Args:
        config: the run. Where `out` holds a run already, its config must be the same.
        out: run folder; gets run.json, log.jsonl, checkpoints/ and, at the end, bundle/.
        observe: called with every logged event.

    Raises:
        ConfigError, DataError: the config or the dataset cannot be used.
        CheckpointError: `out` holds another run.
        InputError: `out` cannot be written.
        StorageError: the disk is full or failed; the last good checkpoint stays.
        OutOfMemory: memory, or the GPU's, is spent; the last good checkpoint stays.
        TrainingDiverged: the loss stopped being finite; the last good checkpoint stays.
        Stopped: SIGINT or SIGTERM; the state is saved and the same call goes on from there.
    """
    out = Path(out)
    remedy = "free some disk space and run the same command again: it goes on from its checkpoint"
    with storage_errors(out, remedy), memory_errors(out), _with_threads(config.train):
        return _Run(config, out, observe or _ignore).finish()


class _Run:
    """One training run: its parts, and where it stands."""

    def __init__(self, config: TrainConfig, out: Path, observe: Observer) -> None:
        self.config, self.out, self.optimization = config, out, config.train
        self.device = _device(self.optimization.device)
        self.dataset = open_without_leaks(config.data)
        self.model_config = registry.fitted_config(config.model["name"], config.model_config, self.dataset)
        self.model = self._model()
        warm = begin_warm(self.model, config, self.model_config, self.dataset, out)
        self.module = _as_module(self.model).to(self.device)
        self.batches = self._batches()
        self.plan = Plan(self.batches, self.optimization)
        self.stepper = Stepper(self.model, self.module, config, self.plan.total)
        self.validation = Validation(self.dataset, self.optimization.validation_users, config.seed)
        self.log = RunLog(out / "log.jsonl", observe)
        self.checkpoints = Checkpoints(
            out / "checkpoints", self.module, self.stepper.optimizer, self.stepper.average, self.log.warn
        )
        self.state, self.is_stopping = RunState(), False
        self.record = record_of(config, self.dataset) | ({"warm_start": warm} if warm else {})

    def finish(self) -> TrainResult:
        with open_run(self.out, self.record), on_stop_signal(self._stop):
            self._begin()
            while not self.plan.is_over(self.state):
                self._epoch(self.state.epoch)
            return self._end()

    def _model(self) -> NextItemModel:
        seed_of_step(self.config.seed, -1, 0)
        model = registry.build(self.config.model["name"], self.model_config, self.dataset.num_items)
        if isinstance(model, ReadsDataset):
            model.read(self.dataset)
        return model

    def _batches(self) -> TrainBatches:
        batches = build_batches(self.model, self.dataset, self.optimization, self.config.seed)
        if not batches.num_tokens:
            raise ConfigError(
                f"{self.config.data}: no user has two training events; prepare with more data or lower filters"
            )
        return batches

    def _stop(self) -> None:
        self.is_stopping = True

    def _begin(self) -> None:
        resumed = self.checkpoints.load_newest()
        self.state = resumed or self.state
        self.log.write(
            "start",
            self.state.step,
            model=self.config.model["name"],
            parameters=sum(p.numel() for p in self.module.parameters()),
            tokens_per_epoch=self.batches.num_tokens,
            steps=self.plan.total,
            max_seconds=self.optimization.max_seconds,
            resumed=resumed is not None,
            **place_of(self.device),
        )

    def _epoch(self, epoch: int) -> None:
        is_whole, clock = self._steps(epoch)
        log_tables(self.module, self.log, self.state.step, epoch)
        is_due = self.plan.is_validation_due(self.state, epoch)
        if is_due and len(self.validation):
            self._validate(epoch)
        if is_whole:
            self.state.epoch, self.state.step_in_epoch = epoch + 1, 0
        self.state.seconds = clock.seconds()
        if is_due or self.optimization.max_seconds is None:
            self.state.validated_at_s = self.state.seconds
            self._save()

    def _steps(self, epoch: int) -> tuple[bool, RunClock]:
        """The steps of one epoch that are still to do; whether the epoch is whole, and the clock that runs."""
        self.module.train()
        state, clock, num_steps = self.state, RunClock(self.state.seconds), self.plan.steps_of(epoch)
        batches = self.batches.epoch(epoch, state.step_in_epoch * self.optimization.accumulate)
        while group := list(islice(batches, self.optimization.accumulate)):
            loss = self.stepper.take(group, state, clock.seconds())
            state.seconds = clock.seconds()
            clock.count(sum(len(batch.values) for batch in group))
            is_last = state.step_in_epoch == num_steps or self.plan.is_time_spent(state)
            if is_last or clock.is_time_to_log():
                self._log_step(epoch, loss, clock)
            if self.is_stopping or (not is_last and self.plan.is_checkpoint_due(state)):
                self.stepper.finite(loss, state)
                self._save()
            if self.is_stopping:
                raise Stopped(f"stopped at step {state.step}; the same command goes on from there: {self.out}")
            if is_last:
                break
            clock.resume()
        return state.step_in_epoch == num_steps, clock

    def _validate(self, epoch: int) -> None:
        began = time.perf_counter()
        self.module.eval()
        with self.stepper.averaged():
            figures = self.validation.figures(self.model)
            if self.state.count_validation(figures, epoch):
                self.checkpoints.best_weights = weights_of(self.module)
        seconds = round(time.perf_counter() - began, 3)
        self.log.write("validation", self.state.step, epoch=epoch, seconds=seconds, n=len(self.validation), **figures)

    def _save(self) -> None:
        self.stepper.check_weights(self.state)
        path = self.checkpoints.save(self.state)
        self.log.write("checkpoint", self.state.step, path=str(path.relative_to(self.out)))

    def _log_step(self, epoch: int, loss: Tensor, clock: RunClock) -> None:
        self.log.write(
            "step",
            self.state.step,
            epoch=epoch,
            loss=self.stepper.finite(loss, self.state),
            tokens_per_s=round(clock.tokens_per_s()),
            seconds_left=round(self.plan.seconds_left(self.state, clock.seconds_per_step()), 1),
        )

    def _end(self) -> TrainResult:
        state = self.state
        if self.checkpoints.best_weights:
            self.module.load_state_dict(self.checkpoints.best_weights)
        elif self.stepper.average is not None:
            self.stepper.average.copy_into_weights()
        self.module.eval()
        path = write_bundle(
            self.out / "bundle",
            self.model,
            (self.config.model["name"], self.model_config),
            self.dataset,
            self.record,
            self.validation.record(state),
        )
        result = TrainResult(
            bundle=path,
            epochs=state.epoch,
            steps=state.step,
            best_epoch=state.best_epoch,
            validation=state.best,
            seconds=state.seconds,
            weights_sha256=sha256_of(path / "weights.safetensors"),
        )
        self.log.write(
            "end", state.step, best_epoch=result.best_epoch, seconds=round(result.seconds, 3), **result.validation
        )
        return result


def _as_module(model: NextItemModel) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model {type(model).__name__} is no torch.nn.Module and cannot be trained")
    return model


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("train.device=cuda: torch sees no GPU here; set train.device=cpu")
    return torch.device(name)


@contextmanager
def _with_threads(config: OptimizationConfig) -> Iterator[None]:
    """Inside, torch computes with `config.threads` threads; after it with as many as before."""
    before = torch.get_num_threads()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _ignore(event: dict[str, Any]) -> None:
    """Nobody watches."""
