"""How the weights are found: the optimizer, its schedule, the batches, and how long it goes on."""

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from recsys.errors import ConfigError
from recsys.features.batches import TrainBatches
from recsys.features.dataset import PreparedDataset
from recsys.models.protocols import NextItemModel, SamplesWindows, TrainsRows, rows_of
from recsys.pipelines.bert_adam import BertAdam

MAX_THREADS = 1_024


@dataclass(frozen=True, kw_only=True)
class OptimizationConfig:
    """How the weights are found."""

    epochs: int = 20
    max_seconds: float | None = (
        None  # of training, validations included, over all resumes; ends before `epochs` if spent
    )
    optimizer: Literal["adamw", "bert_adam"] = "adamw"  # bert_adam: no bias correction, eps 1e-6
    lr: float = 1e-3
    beta2: float = 0.98
    weight_decay: float = 0.0  # decoupled; not on biases and norms, nor, with adamw, on embeddings
    warmup_steps: int = 0
    decay: Literal["none", "linear", "cosine"] = "none"  # to 0 at the last step, or at the last second
    clip_norm: float | None = None
    ema: float | None = None  # decay a step of an average of the weights; the average is validated and kept
    accumulate: int = 1  # batches a step; the gradient is that of the mean over all their targets
    precision: Literal["float32", "bf16"] = "float32"  # bf16: autocast in the loss; weights and moments stay float32
    tokens_per_batch: int = 16_384  # at most; not looked at where sequences_per_batch is given
    sequences_per_batch: int | None = None
    validate_every: int = 1  # epochs
    validation_users: int | None = None  # a seeded sample; all by default
    patience: int | None = 5  # validations without a better NDCG@10 before it stops
    checkpoint_every: int | None = None  # steps; at the end of each epoch by default
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int | None = None  # of the CPU; all by default

    def __post_init__(self) -> None:
        for name in ("epochs", "tokens_per_batch", "validate_every", "accumulate"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("patience", "checkpoint_every", "validation_users", "threads", "sequences_per_batch"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1, or null")
        if self.threads is not None and self.threads > MAX_THREADS:
            raise ValueError(f"threads={self.threads} must be at most {MAX_THREADS:,}, or null")
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps={self.warmup_steps} must be at least 0")
        if not 0.0 < self.lr < math.inf:
            raise ValueError(f"lr={self.lr} must be above 0")
        if not 0.0 <= self.beta2 < 1.0:
            raise ValueError(f"beta2={self.beta2} must be in [0, 1)")
        if not 0.0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay={self.weight_decay} must be at least 0")
        if self.clip_norm is not None and not 0.0 < self.clip_norm < math.inf:
            raise ValueError(f"clip_norm={self.clip_norm} must be above 0, or null")
        if self.ema is not None and not 0.0 < self.ema < 1.0:
            raise ValueError(f"ema={self.ema} must be in (0, 1), such as 0.999, or null")
        if self.max_seconds is not None and not 0.0 < self.max_seconds < math.inf:
            raise ValueError(f"max_seconds={self.max_seconds} must be above 0, or null")


def build_optimizer(module: nn.Module, config: OptimizationConfig) -> torch.optim.Optimizer:
    """The optimizer over all parameters, each a group of its own with its weight decay.

    AdamW decays the matrices of linear layers alone; BertAdam all but biases and norms, embeddings included.
    """
    decayed = _all_but_biases_and_norms(module) if config.optimizer == "bert_adam" else _linear_matrices(module)
    parameters = list(module.parameters())
    groups = [{"params": [p], "weight_decay": config.weight_decay if id(p) in decayed else 0.0} for p in parameters]
    if config.optimizer == "bert_adam":
        return BertAdam(groups, lr=config.lr, betas=(0.9, config.beta2))
    return torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, config.beta2), fused=True)


def check_rows(module: nn.Module, config: OptimizationConfig) -> None:
    """Hold that the rows which a part of the model trains itself can be trained so.

    Raises:
        ConfigError: a setting knows parameters alone.
    """
    if not (parts := rows_of(module)):
        return
    name = next(iter(parts))
    if config.optimizer != "adamw":
        raise ConfigError(
            f"train.optimizer={config.optimizer} does not reach the rows of {name}, which have an optimizer of their "
            "own; set train.optimizer=adamw, or model.inputs.embedding=dense"
        )
    if config.ema is not None:
        raise ConfigError(
            f"train.ema={config.ema} keeps an average of parameters, and the rows of {name} are none; "
            "set train.ema=null, or model.inputs.embedding=dense"
        )


def clip_gradients(module: nn.Module, parts: Collection[TrainsRows], max_norm: float) -> None:
    """Shorten the gradient of parameters and rows together to the length `max_norm`, if it is longer."""
    parameters = [parameter for parameter in module.parameters() if parameter.grad is not None]
    if not parts:
        nn.utils.clip_grad_norm_(parameters, max_norm)
        return
    of_parameters = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    lengths: list[Tensor] = [of_parameters, *(part.gradient_norm().to(of_parameters.device) for part in parts)]
    total = torch.stack(lengths).norm()
    nn.utils.clip_grads_with_norm_(parameters, max_norm, total)
    factor = min(1.0, max_norm / (float(total) + 1e-6))  # torch's, of the line before
    for part in parts:
        part.scale_gradients(factor)


def build_batches(
    model: NextItemModel, dataset: PreparedDataset, config: OptimizationConfig, seed: int
) -> TrainBatches:
    """The training batches of `dataset`, cut and repeated as the model wants them, as large as the config says.

    Raises:
        ConfigError: a batch of `tokens_per_batch` cannot hold one sequence.
    """
    if config.sequences_per_batch is None and config.tokens_per_batch < model.train_len:
        raise ConfigError(
            f"train.tokens_per_batch={config.tokens_per_batch} is less than one sequence of {model.train_len} events; "
            "raise it, or lower model.max_len"
        )
    return TrainBatches(
        dataset,
        max_len=model.train_len,
        tokens_per_batch=config.tokens_per_batch,
        sequences_per_batch=config.sequences_per_batch,
        sampling=model.sampling if isinstance(model, SamplesWindows) else None,
        seed=seed,
    )


def learning_rate_factor(config: OptimizationConfig, step: int, num_steps: int, seconds: float = 0.0) -> float:
    """The share of the full learning rate at `step` (0 is the first) of `num_steps`, `seconds` into the run.

    With `max_seconds` the decay follows the share of the steps or of the time that is spent, whichever is greater.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, num_steps - config.warmup_steps)
    if config.max_seconds is not None:
        done = min(1.0, max(done, seconds / config.max_seconds))
    if config.decay == "linear":
        return 1.0 - done
    return 0.5 * (1.0 + math.cos(math.pi * done)) if config.decay == "cosine" else 1.0


def _linear_matrices(module: nn.Module) -> set[int]:
    return {id(part.weight) for part in module.modules() if isinstance(part, nn.Linear)}


def _all_but_biases_and_norms(module: nn.Module) -> set[int]:
    norms = {id(p) for part in module.modules() if isinstance(part, nn.LayerNorm) for p in part.parameters()}
    named = {id(p) for name, p in module.named_parameters() if not name.endswith("bias")}
    return named - norms
