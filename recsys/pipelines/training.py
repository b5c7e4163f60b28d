"""The training loop: from a prepared dataset and a config to a bundle. Needs torch, numpy and safetensors alone.

    python -m recsys.pipelines.training run.json OUT    on a bare machine; `recsys train --resolve` writes run.json

A run folder can be stopped at any moment and started again: the weights at the end are the same to the last bit, since
every random draw is a function of (seed, epoch, step) and a checkpoint holds all the rest. With `max_seconds` steps and
learning rate follow the clock: such a run goes on where it stood, its time counted over all resumes, but its weights
are those of no other run.
"""

import json
import math
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from recsys import config as configs
from recsys.errors import CheckpointError, ConfigError, RecsysError, TrainingDiverged
from recsys.features.batches import JaggedBatch, TrainBatches
from recsys.features.dataset import PreparedDataset, Queries
from recsys.features.leakage import open_without_leaks
from recsys.files import sha256_of, storage_errors
from recsys.models import registry
from recsys.models.bundle import save_bundle
from recsys.models.protocols import NextItemModel, ReadsDataset
from recsys.pipelines import checkpoint
from recsys.pipelines.evaluation.full_ranking import rank_targets
from recsys.pipelines.evaluation.metrics import metrics_per_query
from recsys.pipelines.optimization import OptimizationConfig, build_optimizer, learning_rate_factor
from recsys.pipelines.run_config import TrainConfig, open_run, record_of
from recsys.pipelines.run_log import Observer, RunClock, RunLog
from recsys.pipelines.stopping import on_stop_signal

GOLDEN_USERS = 8
METRIC = "ndcg@10"
# Of a run with a time budget: it is validated and saved this often at most, however short its epochs.
VALIDATIONS_IN_BUDGET = 12


@dataclass(frozen=True)
class TrainResult:
    """Where the run ended and what it found."""

    bundle: Path
    epochs: int
    steps: int
    best_epoch: int | None
    validation: dict[str, float]  # of the best epoch; empty where the protocol holds out none
    seconds: float
    weights_sha256: str  # of the weights in the bundle


class Stopped(RecsysError):
    """The run was asked to stop; it saved a checkpoint first."""


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
        TrainingDiverged: the loss stopped being finite; the last good checkpoint stays.
        Stopped: SIGINT or SIGTERM; the state is saved and the same call goes on from there.
    """
    out = Path(out)
    with storage_errors(out, "free some disk space and run the same command again: it goes on from its checkpoint"):
        return _Run(config, out, observe or _ignore).finish()


class _Run:
    """One training run: its parts, and where it stands."""

    def __init__(self, config: TrainConfig, out: Path, observe: Observer) -> None:
        self.config, self.out, self.optimization = config, out, config.train
        if self.optimization.threads:
            torch.set_num_threads(self.optimization.threads)
        self.device = _device(self.optimization.device)
        self.dataset = open_without_leaks(config.data)
        seed_of_step(config.seed, -1, 0)
        self.model = registry.build(config.model["name"], config.model_config, self.dataset.num_items)
        self.module = _as_module(self.model).to(self.device)
        if isinstance(self.model, ReadsDataset):
            self.model.read(self.dataset)
        self.batches = TrainBatches(
            self.dataset,
            max_len=self.model.train_len,
            tokens_per_batch=self.optimization.tokens_per_batch,
            seed=config.seed,
        )
        if not self.batches.num_tokens:
            raise ConfigError(
                f"{config.data}: no user has two training events; prepare with more data or lower filters"
            )
        self.optimizer = build_optimizer(self.module, self.optimization)
        self.queries = _validation_queries(self.dataset, self.optimization.validation_users, config.seed)
        self.steps = _Steps(self.batches, self.optimization)
        self.log = RunLog(out / "log.jsonl", observe)
        self.best_weights: dict[str, Tensor] = {}
        self.state: dict[str, Any] = {
            "epoch": 0,
            "step_in_epoch": 0,
            "best_epoch": None,
            "best": {},
            "bad": 0,
            "seconds": 0.0,
            "validated_at_s": 0.0,
        }
        self.step, self.is_stopping = 0, False
        self.record = record_of(config, self.dataset)

    def finish(self) -> TrainResult:
        with open_run(self.out, self.record), on_stop_signal(self._stop):
            self._begin()
            while not self._is_over():
                self._epoch(self.state["epoch"])
            return self._end()

    def _stop(self) -> None:
        self.is_stopping = True

    def _begin(self) -> None:
        is_resumed = self._load_newest()
        if is_resumed:
            self.step = self.state["step"]
            if self.state["threads"] != torch.get_num_threads():
                self.log.warn(
                    f"resumed with {torch.get_num_threads()} threads, began with {self.state['threads']}: "
                    "the last bits of the weights may differ"
                )
        self.log.write(
            "start",
            self.step,
            model=self.config.model["name"],
            parameters=sum(p.numel() for p in self.module.parameters()),
            tokens_per_epoch=self.batches.num_tokens,
            steps=self.steps.total,
            max_seconds=self.optimization.max_seconds,
            device=str(self.device),
            resumed=is_resumed,
        )

    def _load_newest(self) -> bool:
        """Go on from the newest checkpoint that is whole."""
        found = checkpoint.found_in(self.out / "checkpoints")
        for path in found:
            try:
                self.state, self.best_weights = checkpoint.load_checkpoint(
                    path, model=self.module, optimizer=self.optimizer
                )
            except CheckpointError as error:
                if path == found[-1]:
                    raise
                self.log.warn(f"{error}; going on from the one before")
            else:
                return True
        return False

    def _epoch(self, epoch: int) -> None:
        self.state["epoch"] = epoch
        self.module.train()
        first, num_steps = self.state["step_in_epoch"], self.steps.in_epoch(epoch)
        clock = RunClock(self.state["seconds"])
        is_whole = True
        for number, batch in enumerate(self.batches.epoch(epoch, first), start=first):
            loss = self._optimize(batch.to(self.device), epoch, number, clock.seconds())
            self.step += 1
            self.state |= {"step_in_epoch": number + 1, "seconds": clock.seconds()}
            clock.count(len(batch.values))
            is_whole = number + 1 == num_steps
            is_last = is_whole or self._is_time_spent()
            if is_last or clock.is_time_to_log():
                self._log_step(epoch, _finite(loss, self.step, self.optimization.lr), clock)
            if self.is_stopping or (not is_last and self._is_checkpoint_due()):
                _finite(loss, self.step, self.optimization.lr)
                self._save()
            if self.is_stopping:
                raise Stopped(f"stopped at step {self.step}; the same command goes on from there: {self.out}")
            if is_last:
                break
            clock.resume()
        is_due = self._is_validation_due(epoch)
        if is_due:
            self._validate(epoch)
        if is_whole:
            self.state |= {"epoch": epoch + 1, "step_in_epoch": 0}
        self.state["seconds"] = clock.seconds()
        if is_due or self.optimization.max_seconds is None:
            self.state["validated_at_s"] = self.state["seconds"]
            self._save()

    def _is_over(self) -> bool:
        return self.state["epoch"] >= self.optimization.epochs or self._is_time_spent() or self._is_patience_spent()

    def _is_time_spent(self) -> bool:
        budget = self.optimization.max_seconds
        return budget is not None and self.state["seconds"] >= budget

    def _is_validation_due(self, epoch: int) -> bool:
        """At the end of every n-th epoch and of the run; with a time budget also not too soon after the one before."""
        if epoch + 1 == self.optimization.epochs or self._is_time_spent():
            return True
        budget = self.optimization.max_seconds
        is_soon = budget is not None and (
            self.state["seconds"] - self.state.get("validated_at_s", 0.0) < budget / VALIDATIONS_IN_BUDGET
        )
        return (epoch + 1) % self.optimization.validate_every == 0 and not is_soon

    def _optimize(self, batch: JaggedBatch, epoch: int, number: int, seconds: float) -> Tensor:
        generator = seed_of_step(self.config.seed, epoch, number)
        rate = self.optimization.lr * learning_rate_factor(self.optimization, self.step, self.steps.total, seconds)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = self.model.loss(batch, generator)
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        if self.optimization.clip_norm:
            nn.utils.clip_grad_norm_(self.module.parameters(), self.optimization.clip_norm)
        if self.device.type == "cpu":
            _finite(loss, self.step + 1, self.optimization.lr)
        self.optimizer.step()
        return loss.detach()

    def _validate(self, epoch: int) -> None:
        if self.queries is None:
            return
        began = time.perf_counter()
        self.module.eval()
        ranks = rank_targets(self.model, self.dataset, self.queries)
        figures = {
            name: float(values.mean()) for name, values in metrics_per_query(ranks, self.queries.target_offsets).items()
        }
        if not self.state["best"] or figures[METRIC] > self.state["best"][METRIC]:
            self.state |= {"best": figures, "best_epoch": epoch, "bad": 0}
            self.best_weights = {key: value.detach().cpu().clone() for key, value in self.module.state_dict().items()}
        else:
            self.state["bad"] += 1
        seconds = time.perf_counter() - began
        self.log.write(
            "validation", self.step, epoch=epoch, seconds=round(seconds, 3), n=len(self.queries.user), **figures
        )

    def _is_patience_spent(self) -> bool:
        patience = self.optimization.patience
        return patience is not None and self.state["bad"] >= patience

    def _is_checkpoint_due(self) -> bool:
        every = self.optimization.checkpoint_every
        return every is not None and self.step % every == 0

    def _save(self) -> None:
        path = checkpoint.save_checkpoint(
            self.out / "checkpoints",
            self.step,
            model=self.module,
            optimizer=self.optimizer,
            best=self.best_weights,
            state={**self.state, "threads": torch.get_num_threads()},
        )
        self.log.write("checkpoint", self.step, path=str(path.relative_to(self.out)))

    def _log_step(self, epoch: int, loss: float, clock: RunClock) -> None:
        seconds_left = (self.steps.total - self.step) * clock.seconds_per_step()
        if self.optimization.max_seconds is not None:
            seconds_left = min(seconds_left, max(0.0, self.optimization.max_seconds - self.state["seconds"]))
        self.log.write(
            "step",
            self.step,
            epoch=epoch,
            loss=loss,
            tokens_per_s=round(clock.tokens_per_s()),
            seconds_left=round(seconds_left, 1),
        )

    def _end(self) -> TrainResult:
        if self.best_weights:
            self.module.load_state_dict(self.best_weights)
        self.module.eval()
        slices = self.dataset.train_slices()
        path = save_bundle(
            self.out / "bundle",
            model=self.model,
            name=self.config.model["name"],
            config=self.config.model_config,
            items=self.dataset.items,
            popularity=self.dataset.train_counts(),
            metrics={"validation": self._validation_record()},
            data={k: self.record[k] for k in ("data_hash", "protocol", "order", "recsys", "commit")},
            golden_histories=_golden_histories(self.dataset),
            history_lengths=slices.lengths,
            item_table=_existing(self.config.data / "items.parquet"),
        )
        result = TrainResult(
            bundle=path,
            epochs=self.state["epoch"],
            steps=self.step,
            best_epoch=self.state["best_epoch"],
            validation=self.state["best"],
            seconds=self.state["seconds"],
            weights_sha256=sha256_of(path / "weights.safetensors"),
        )
        self.log.write(
            "end", self.step, best_epoch=result.best_epoch, seconds=round(result.seconds, 3), **result.validation
        )
        return result

    def _validation_record(self) -> dict[str, Any]:
        if self.queries is None:
            return {}
        protocol = self.dataset.protocol_string("valid", "exclude")
        return {
            "protocol": protocol,
            "n": len(self.queries.user),
            "epoch": self.state["best_epoch"],
            **self.state["best"],
        }


class _Steps:
    """How many steps the epochs have. With a time budget most of them are never taken: the total is then estimated."""

    def __init__(self, batches: TrainBatches, config: OptimizationConfig) -> None:
        self.batches = batches
        self.counts: dict[int, int] = {}
        known = 1 if config.max_seconds is not None else config.epochs
        self.total = sum(self.in_epoch(epoch) for epoch in range(known)) * config.epochs // known

    def in_epoch(self, epoch: int) -> int:
        if epoch not in self.counts:
            self.counts[epoch] = len(self.batches.plan(epoch))
        return self.counts[epoch]


def seed_of_step(seed: int, epoch: int, step: int) -> torch.Generator:
    """Seeds torch (dropout) and returns the generator of masks and negatives: both depend on these three alone."""
    mixed = int(np.random.SeedSequence([seed, epoch + 1, step]).generate_state(1, np.uint64)[0] >> np.uint64(1))
    torch.manual_seed(mixed)
    return torch.Generator().manual_seed(mixed ^ 0x5DEECE66D)


def _validation_queries(dataset: PreparedDataset, sample: int | None, seed: int) -> Queries | None:
    queries = dataset.queries("valid")
    if not len(queries.user):
        return None
    if sample is None or sample >= len(queries.user):
        return queries
    rows = np.sort(np.random.default_rng([seed, 7]).choice(len(queries.user), sample, replace=False))
    columns = ("shard", "start", "end", "user", "target_start", "target_end")
    times = None if queries.query_time is None else queries.query_time[rows]
    return replace(queries, query_time=times, **{name: getattr(queries, name)[rows] for name in columns})


def _golden_histories(dataset: PreparedDataset) -> list[list[int | str]]:
    """Histories of a few users with the most varied lengths, and one of a new user."""
    slices = dataset.train_slices()
    order = np.argsort(slices.lengths, kind="stable")
    chosen = order[np.linspace(0, len(order) - 1, GOLDEN_USERS).astype(np.int64)]
    histories: list[list[int | str]] = [
        list(dataset.items.decode(np.asarray(slices.gather(int(i))[0][-50:], dtype=np.int64))) for i in chosen
    ]
    return [*histories, []]


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("train.device=cuda: torch sees no GPU here; set train.device=cpu")
    if name not in ("cpu", "cuda"):
        raise ConfigError(f"train.device={name!r}: wanted auto, cpu or cuda")
    return torch.device(name)


def _finite(loss: Tensor, step: int, lr: float) -> float:
    value = float(loss.detach())
    if not math.isfinite(value):
        raise TrainingDiverged(
            f"the loss is {value} at step {step} (lr={lr:g}); the last checkpoint is kept; "
            "lower train.lr or set train.clip_norm=1.0"
        )
    return value


def _as_module(model: NextItemModel) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model {type(model).__name__} is no torch.nn.Module and cannot be trained")
    return model


def _existing(path: Path) -> Path | None:
    return path if path.is_file() else None


def _ignore(event: dict[str, Any]) -> None:
    """Nobody watches."""


def main(arguments: list[str]) -> int:
    """`python -m recsys.pipelines.training run.json [OUT]`: train from plain JSON."""
    if not 1 <= len(arguments) <= 2:
        sys.stderr.write("usage: python -m recsys.pipelines.training run.json [OUT]\n")
        return 2
    file = Path(arguments[0])

    def show(event: dict[str, Any]) -> None:
        sys.stderr.write(json.dumps(event) + "\n")

    try:
        mapping = configs.read(file)
        result = train(
            configs.load(TrainConfig, mapping.get("config", mapping)),
            Path(arguments[1] if arguments[1:] else "run"),
            show,
        )
    except RecsysError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2 if isinstance(error, ValueError) else 1
    sys.stdout.write(
        json.dumps({"bundle": str(result.bundle), "weights_sha256": result.weights_sha256, **result.validation}) + "\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
